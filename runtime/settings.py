"""Strict, immutable settings read from YAML: a wrong key or value is one clear line."""

from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from runtime.errors import UserError, one_line, suggestion


class Settings(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused, finite numbers, no conversions to str.

    Nor are `true` and `false` (YAML also reads `yes` and `on` so) taken for the numbers 1 and 0.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), serialize_by_alias=True
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields:
                kind = cls.model_fields[name].annotation
                kinds = {kind, *get_args(kind)}
                if kinds & {int, float} and bool not in kinds:
                    raise ValueError(f"{name} is {str(value).lower()}, give a number")
        return values

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Validate `values`. Raises UserError naming the key, `where` it stands, and the mend."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{where}: {_explain(cls, error)}") from None


class _StrictLoader(yaml.SafeLoader):
    """Plain values only, and no key twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} stands twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value that `text` stands for in YAML. Raises ValueError with the reason if it is not valid YAML."""
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-45
        raise ValueError(one_line(error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError naming the file."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML ({one_line(error)}): mend it there") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not keys and values: see `lacuna config show`")
    return values


def known_keys(settings: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Keys of `settings` as users write them, each with the settings classes that may stand below it."""
    below: dict[str, list[type[BaseModel]]] = {}
    for name, field in settings.model_fields.items():
        below[field.alias or name] = list(_classes_in(field.annotation))
    return below


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _classes_in(part)]


def _explain(settings: type[BaseModel], error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    # a misspelt key is also a missing one: the misspelling is what to mend
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    names, level = _walk(settings, first)
    key = ".".join(names)
    if first["type"] == "extra_forbidden":
        known = [name for s in level for name in known_keys(s)]
        return f"unknown key {key!r}{suggestion(names[-1], known, '.'.join(names[:-1]))}"
    if first["type"] == "union_tag_invalid":
        tag, kinds = str(first["ctx"]["tag"]), first["ctx"]["expected_tags"]
        near = suggestion(tag, kinds.replace("'", "").split(", "))
        return f"{key}.kind: {tag!r} is not one of {kinds}{near}"
    if first["type"] == "union_tag_not_found":
        return f"{key}.kind is missing: say which kind it is"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f" (given: {first['input']!r:.60})"
    return f"{key}: {message}{given}" if key else message


def _walk(settings: type[BaseModel], error: ErrorDetails) -> tuple[list[str], list[type[BaseModel]]]:
    """The key as a user writes it, and the settings classes of the section that its last part stands in.

    pydantic's path also holds the tag of each union (`objective.masked.epsilon`); it is left out here.
    """
    names: list[str] = []
    level, below = [settings], [settings]
    path = [str(part) for part in error["loc"]]
    unknown = len(path) - 1 if error["type"] == "extra_forbidden" else -1
    for index, part in enumerate(path):
        level = below
        tagged = [s for s in level if "kind" in s.model_fields and part in get_args(s.model_fields["kind"].annotation)]
        if tagged and index != unknown and not any(part in s.model_fields for s in level):
            below = tagged
            continue
        names.append(part)
        if not part.isdecimal():
            below = [c for s in level for c in known_keys(s).get(part, [])]
    return names, level
