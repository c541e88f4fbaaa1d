"""The digest of a point's configuration: places and ways to save have no part, all that decides its numbers has."""

from typing import Any

import pytest

from pretrain.config import RunConfig
from pretrain.scaling.identity import config_digest
from pretrain.scaling.sweep import Evaluation
from runtime.settings import Settings

VALUES: dict[str, Any] = {
    "name": "masked-1",
    "model": {"layers": 2, "width": 24, "heads": 3, "kv_heads": 3, "ffn": 66, "vocabulary": 300},
    "optimizer": {"lr": 0.01, "schedule": {"kind": "wsd", "warmup": 64}},
    "train": {"steps": 8, "global_batch": 8, "sequence_length": 32},
    "data": {"path": "data", "unique_tokens": 1024},
}


def digest(changes: dict[str, Any], **evaluation: int) -> str:
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in VALUES.items()}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return config_digest(RunConfig.parse(values, "here"), Evaluation.parse(evaluation, "here"))


def test_tables_that_were_written_stay_good() -> None:
    """Another digest here means that every table which is kept says that its points are others."""
    assert digest({}) == "80e7e667b15425ec44d661075ab09b52"


@pytest.mark.parametrize(
    "changes",
    [
        {"data.path": "/elsewhere/data"},
        {"tracking.uri": "http://host:5000", "tracking.enabled": False},
        {"checkpoint.every": 3, "checkpoint.async": True},
        {"lease.stale": 99.0, "watchdog.save": 99.0, "profile": {"first": 1, "last": 2}},
        {"train.log_every": 7, "train.time_limit": "1h", "train.time_reserve": 5},
        {"objective": {"kind": "masked"}, "train.compile": False},  # as said by default
        {"optimizer.lr": 1e-2, "train.steps": 8.0},
    ],
)
def test_what_has_no_part(changes: dict[str, Any]) -> None:
    assert digest(changes) == digest({})


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "masked-2"},
        {"objective": {"kind": "autoregressive"}},
        {"objective": {"kind": "masked", "epsilon": 0.01}},
        {"optimizer.lr": 0.011},
        {"optimizer.clip": 2.0},
        {"optimizer.schedule": {"kind": "segments", "segments": [{"until": 64, "start": 1.0}]}},
        {"model.init_std": 0.1},
        {"train.seed": 1},
        {"train.steps": 9},
        {"train.precision": "bf16"},
        {"data.unique_tokens": 512},
        {"data.packing": "document", "data.unique_tokens": None},
        {"guard": {"spike": 9.0}},
    ],
)
def test_what_has_a_part(changes: dict[str, Any]) -> None:
    assert digest(changes) != digest({})


def test_the_validation_has_a_part() -> None:
    found = {digest({}, **one) for one in ({}, {"windows": 8}, {"draws": 8}, {"seed": 1})}
    assert len(found) == 4
    assert digest({}, windows=256, draws=16, seed=0) == digest({})


def test_a_key_that_is_new_changes_nothing() -> None:
    class Older(Settings):
        windows: int = 256

    class Newer(Older):
        more: int = 0

    config = RunConfig.parse(VALUES, "here")
    assert config_digest(config, Older(windows=9)) == config_digest(config, Newer(windows=9))
    assert config_digest(config, Newer(windows=9, more=1)) != config_digest(config, Newer(windows=9))
