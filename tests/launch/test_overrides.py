"""Recipes: one level of base, kinds that bring their own keys, and overrides that cannot smuggle anything in."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.recipe import dump_config, load_recipe, write_config
from runtime.errors import UserError


def _file(folder: Path, name: str, values: dict[str, Any]) -> str:
    (folder / name).write_text(yaml.safe_dump(values))
    return str(folder / name)


def test_a_base_is_merged_key_by_key(tmp_path: Path) -> None:
    child = _file(tmp_path, "child.yaml", {"base": "demo", "name": "child", "optimizer": {"schedule": {"decay": 0.5}}})
    config, demo = load_recipe(child, []), load_recipe("demo", [])
    schedule = demo.optimizer.schedule.model_copy(update={"decay": 0.5})
    optimizer = demo.optimizer.model_copy(update={"schedule": schedule})
    assert config == demo.model_copy(update={"name": "child", "optimizer": optimizer})


def test_a_base_beside_the_file_and_one_level_only(tmp_path: Path) -> None:
    demo = load_recipe("demo", []).model_dump(mode="json")
    _file(tmp_path, "first.yaml", demo)
    second = _file(tmp_path, "second.yaml", {"base": "first.yaml", "train": {"seed": 5}})
    third = _file(tmp_path, "third.yaml", {"base": "second.yaml"})
    assert load_recipe(second, []).train.seed == 5
    with pytest.raises(UserError, match=r"third\.yaml: base 'second\.yaml' has a base itself; one level is allowed"):
        load_recipe(third, [])


@pytest.mark.parametrize(
    ("base", "message"),
    [("dmeo", "did you mean 'demo'"), (["demo"], "base must be the name"), ("", "neither a file nor")],
)
def test_bad_bases(tmp_path: Path, base: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(_file(tmp_path, "child.yaml", {"base": base}), [])


def test_another_kind_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    segments = {"kind": "segments", "segments": [{"until": 10, "start": 1.0}]}
    changes = {"base": "demo", "objective": {"kind": "autoregressive"}, "optimizer": {"schedule": segments}}
    by_file = load_recipe(_file(tmp_path, "child.yaml", changes), [])
    by_override = load_recipe(
        "demo",
        [
            "objective.kind=autoregressive",
            "optimizer.schedule.kind=segments",
            "optimizer.schedule.segments=[{until: 10, start: 1.0}]",
        ],
    )
    assert by_file == by_override
    assert by_file.objective.model_dump() == {"kind": "autoregressive"}
    assert set(by_file.optimizer.schedule.model_dump()) == {"kind", "segments"}
    assert by_file.optimizer.weight_decay == load_recipe("demo", []).optimizer.weight_decay


def test_the_same_kind_keeps_its_keys() -> None:
    assert load_recipe("demo", ["objective.kind=masked"]) == load_recipe("demo", [])
    assert (
        load_recipe("demo", ["objective.epsilon=0.5", "objective.kind=masked"]).objective.model_dump()["epsilon"] == 0.5
    )


def test_overrides_come_in_order_and_make_missing_sections() -> None:
    config = load_recipe("demo", ["train.steps=5", "train.steps=7", "tracking.enabled=false", "optimizer.lr=1e-3"])
    assert (config.train.steps, config.tracking.enabled, config.optimizer.lr) == (7, False, 1e-3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", r"override 'train\.steps' is not key=value, for example train\.steps=100"),
        ("=5", "override '=5' is not key=value"),
        ("train.stepz=5", r"unknown key 'train\.stepz' \(did you mean 'train\.steps'\?\)"),
        ("trian.steps=5", r"unknown key 'trian' \(did you mean 'train'\?\)"),
        ("train..steps=5", r"unknown key 'train\.'"),
        (".train=5", "unknown key ''"),
        ("base=llada-8b", "unknown key 'base'"),
        ("train.steps.more=5", r"override train\.steps\.more: steps holds no keys"),
        ("name.x=5", r"override name\.x: name holds no keys"),
        ("train.steps=many", r"train\.steps: Input should be a valid integer.* \(given: 'many'\)"),
        ("train.steps=", r"train\.steps: Input should be a valid integer \(given: None\)"),
        ("train.steps=1.5", r"train\.steps: Input should be a valid integer"),
        ("train.steps=yes", "train: steps is true, give a number"),
        ("train.steps=[1]", r"train\.steps: Input should be a valid integer \(given: \[1\]\)"),
        ("train.steps=-1", r"train\.steps: Input should be greater than 0 \(given: -1\)"),
        ("train=5", "train: Input should be a valid dictionary"),
        ("optimizer.lr=.inf", r"optimizer\.lr: Input should be a finite number"),
        ("optimizer.lr=.nan", r"optimizer\.lr: Input should be a finite number"),
        ("objective.kind=maskd", r"objective\.kind: 'maskd' is not one of .*did you mean 'masked'"),
        ("parallel.engine=fsdp", r"parallel\.engine: .*'megatron' or 'deepspeed'"),
        ("name=!!python/object/apply:os.system [id]", "override name: .* is not a YAML value"),
        ("name={a: b, train: {steps: 1}}", r"name: Input should be a valid string"),
        ("name=x\ntrain: {steps: 1}", "override name: .* is not a YAML value"),
        ("name=2024-13-45", "override name: '2024-13-45' is not a YAML value"),
        ("name=2024-01-02", r"name: Input should be a valid string \(given: datetime.date"),
        ("name=*other", "override name: .* is not a YAML value"),
        ("name=on", r"name: Input should be a valid string \(given: True\)"),
    ],
)
def test_bad_overrides_name_the_key(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("demo", [override])


@pytest.mark.parametrize(
    "text", ["a: b", "x # y", "true", "1e3", "null", "*a", "&a b", "two\nlines", "日本 é", "-", "{}"]
)
def test_quoted_strings_arrive_and_come_back_as_they_are(text: str, tmp_path: Path) -> None:
    config = load_recipe("demo", [f"data.path={json.dumps(text)}"])
    assert config.data.path == text
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_recipe(str(tmp_path / "config.yaml"), []) == config


@pytest.mark.parametrize(
    ("uri", "others"),
    [("http://me:pa ss@host", 0), ("http://host/?token=x", 0), ("http://host:5000", 0o044), ("sqlite:////me@x", 0o044)],
)
def test_a_configuration_with_a_secret_is_for_its_owner_only(uri: str, others: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    before = os.umask(0o022)
    try:
        for _ in range(2):  # also over an older file that all could read
            write_config(path, load_recipe("demo", [f"tracking.uri={json.dumps(uri)}"]))
            assert path.stat().st_mode & 0o077 == others
            path.chmod(0o644)
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dmeo", r"neither a file nor one of .*\(did you mean 'demo'\?\)"), ("llada-8", "did you mean 'llada-8b'")],
)
def test_a_misspelt_recipe(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(name, [])


def test_a_section_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    text = "base: demo\ntrain: {steps: 5}\ndata: {path: x}\ntrain: {seed: 5}\n"
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(UserError, match="key 'train' stands twice"):
        load_recipe(str(tmp_path / "twice.yaml"), [])
