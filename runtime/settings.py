"""Strict, immutable settings read from YAML: a wrong key or value is one clear line."""

from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.errors import UserError, suggestion


class Settings(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused, no silent conversions to str."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Validate `values`. Raises UserError naming the key, `where` it stands, and the mend."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{where}: {_explain(cls, error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError naming the file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not keys and values: see `lacuna config show`")
    return values


def known_keys(settings: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Field names of `settings`, each with the settings classes that may stand below it."""
    below: dict[str, list[type[BaseModel]]] = {}
    for name, field in settings.model_fields.items():
        below[name] = list(_classes_in(field.annotation))
    return below


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _classes_in(part)]


def _explain(settings: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{suggestion(path[-1], _siblings(settings, path))}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f" (given: {first['input']!r:.60})"
    return f"{key}: {message}{given}" if key else message


def _siblings(settings: type[BaseModel], path: list[str]) -> list[str]:
    level: list[type[BaseModel]] = [settings]
    for part in path[:-1]:
        deeper = [c for s in level for c in known_keys(s).get(part, [])]
        level = deeper or level  # a union's tag stands in the path, but is no level of its own
    return [name for s in level for name in s.model_fields]
