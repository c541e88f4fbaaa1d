"""A run's configuration and machine as MLflow's parameters and tags, inside MLflow's limits.

Limits of MLflow 3 (`mlflow.utils.validation`): keys of 250 characters out of letters, digits and ` _-.:/`,
parameter values of 6,000 characters, tag values of 8,000. What is shortened here stands whole in the artifact
`config.yaml`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from runtime.files import digest_bytes

KEY_LENGTH = 250
VALUE_LENGTH = 6000
NAME_LENGTH = 250

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. :/]")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` -> text. Strings stay as they are, all else is written as JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            flat |= flatten({str(index): item for index, item in enumerate(value)}, f"{key}.")
        else:
            flat[entity_key(key)] = value_text(value)
    return flat


def entity_key(name: str) -> str:
    """`name` if MLflow takes it as a key, else the nearest name it takes, made unique by a digest.

    MLflow also refuses keys that are not normal as a path (`a//b`, `/a`, `../a`).
    """
    parts = [part for part in _FORBIDDEN.sub("_", name).split("/") if part.strip(".")]
    key = "/".join(parts)
    if key == name and 0 < len(name) <= KEY_LENGTH:
        return name
    return f"{key[: KEY_LENGTH - 9]}:{digest_bytes(name.encode('utf-8', 'backslashreplace'))[:8]}"


def value_text(value: Any, limit: int = VALUE_LENGTH) -> str:
    """`value` as at most `limit` characters that any database takes: valid UTF-8, no NUL."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def run_name(name: Any, otherwise: str) -> str:
    """`name` on one line of at most 250 characters, or `otherwise` if nothing is left of it."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(name or ""))
    return value_text(" ".join(printable.split()), NAME_LENGTH) or otherwise
