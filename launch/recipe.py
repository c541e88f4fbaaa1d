"""Recipes: YAML files with one level of `base:`, and `key=value` overrides on top."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pretrain.config import RunConfig
from pretrain.tracking.uri import redact
from runtime.errors import UserError, suggestion
from runtime.files import write_atomic
from runtime.settings import parse_yaml, read_yaml


def shipped_recipes() -> dict[str, Path]:
    """Names and paths of the recipes that come with the package."""
    folder = Path(str(resources.files("launch"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str, overrides: list[str]) -> RunConfig:
    """Resolve a shipped name or a path, then `key=value` overrides. Raises UserError naming the key."""
    values = _read(_find(recipe))
    for override in overrides:
        _apply(values, override)
    return RunConfig.parse(values, recipe)


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_recipe` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def write_config(path: Path, config: RunConfig) -> None:
    """Write the resolved configuration. Nobody else may read it if its tracking URI has a password or token in it.

    Raises OSError.
    """
    uri = config.tracking.uri or ""
    write_atomic(path, dump_config(config), 0o600 if redact(uri) != uri else 0o666)


def _find(recipe: str) -> Path:
    shipped = shipped_recipes()
    if recipe in shipped:
        return shipped[recipe]
    path = Path(recipe)
    if path.is_file():
        return path
    raise UserError(f"recipe {recipe!r} is neither a file nor one of {', '.join(shipped)}{suggestion(recipe, shipped)}")


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be the name of a recipe")
    sibling = path.parent / base
    parent = read_yaml(sibling if sibling.is_file() else _find(base))
    if "base" in parent:
        raise UserError(f"{path}: base {base!r} has a base itself; one level is allowed")
    return _merge(parent, values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        retagged = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) != old.get("kind")
        )
        nested = isinstance(old, dict) and isinstance(value, dict) and not retagged
        merged[key] = _merge(dict(old or {}), value) if nested else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not key=value, for example train.steps=100")
    try:
        value = parse_yaml(text)
    except ValueError:
        raise UserError(f"override {key}: {text!r} is not a YAML value; quote it, as in {key}='\"…\"'") from None
    *path, last = key.split(".")
    section: Any = values
    for part in path:
        section = section.setdefault(part, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise UserError(f"override {key}: {part} holds no keys")
    if last == "kind" and section.get("kind") != value:
        section.clear()  # another kind has other keys
    section[last] = value
