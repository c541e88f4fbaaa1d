"""What a point of a sweep is, wherever it is trained."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import to_jsonable_python

from pretrain.config import RunConfig
from runtime.files import digest_bytes
from runtime.settings import Settings

_NO_PART = ("checkpoint", "lease", "profile", "tracking", "watchdog")
_NO_PART_IN = {"data": ("path",), "train": ("log_every", "time_limit", "time_reserve")}


def config_digest(config: RunConfig, evaluation: Settings) -> str:
    """The xxh3-128 of all keys that decide what a point comes to, as 32 hexadecimal digits.

    Where its data lies, how it saves, and how it is watched and shown have no part. Keys at their defaults are left
    out, so that one which is new changes no digest.
    """
    keys = {name: value for name, value in _set_keys(config).items() if name not in _NO_PART}
    for section, names in _NO_PART_IN.items():
        kept = {name: value for name, value in keys.pop(section, {}).items() if name not in names}
        keys |= {section: kept} if kept else {}
    canonical = {"config": keys, "evaluation": _set_keys(evaluation)}
    return digest_bytes(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode())


def _set_keys(settings: Settings) -> dict[str, Any]:
    """Keys that differ from their defaults, and any `kind`, which says what the others mean."""
    found: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name == "kind" or value != field.get_default(call_default_factory=True, validated_data={}):
            found[name] = _set_keys(value) if isinstance(value, Settings) else to_jsonable_python(value)
    return found
