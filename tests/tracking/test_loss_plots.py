"""Curves: what is drawn is the closed form, and no file or label brings the drawing down."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pretrain.tracking.plots import _limits, _read, _running_mean, plot_losses
from pretrain.tracking.spool import Spool
from runtime.errors import UserError


def _run(path: Path, losses: list[float], layouts: Sequence[str] = (), attempts: Sequence[int] = ()) -> Path:
    with Spool(path) as spool:
        for step, loss in enumerate(losses, 1):
            values: dict[str, float | str] = {"tokens": 1000 * step, "train/loss": loss}
            values |= {"optim/grad_norm": 1.0 / step, "optim/lr": 1e-4 * step}
            values |= {"run/layout": layouts[step - 1]} if layouts else {}
            spool.write(step, values | ({"run/attempt": attempts[step - 1]} if attempts else {}))
    return path


def test_running_mean_by_enumeration() -> None:
    values = np.array([1.0, 2.0, math.nan, 4.0, 9.0])
    assert _running_mean(values, 1)[[0, 1, 3, 4]].tolist() == [1.0, 2.0, 4.0, 9.0]
    assert math.isnan(_running_mean(values, 1)[2])
    assert _running_mean(values, 3).tolist() == [1.0, 1.5, 3.0, 6.5, 6.5]


def test_limits_hold_the_line_but_not_the_spike() -> None:
    raw = np.r_[np.linspace(4, 2, 1000), 500.0]
    low, high = _limits([raw], [raw[:1000]])
    assert low < 2.0
    assert 4.0 < high < 5.0


def test_marks_stand_between_the_layouts(tmp_path: Path) -> None:
    path = _run(tmp_path / "m", [3.0] * 5, ["tp1", "tp1", "tp2", "tp2", "tp2"], [0, 0, 1, 1, 2])
    assert _read("x", path).marks == [(2000.0, "tp2"), (4000.0, "restart")]


def test_a_picture_of_hostile_runs(tmp_path: Path) -> None:
    layouts = [f"$megatron_{{tp{step}" for step in range(30)]
    first = _run(tmp_path / "a", [5.0, math.nan, math.inf, *[3.0] * 27], layouts)
    second = _run(tmp_path / "b", [2.0])
    out = tmp_path / "plots" / "loss.png"
    plot_losses([("_hidden $x^ \n 失", first), ("long " * 60, second)], out, title="$bad_ \\title{")
    data = out.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1600, 1056)
    plot_losses([("only NaN", _run(tmp_path / "c", [math.nan] * 4))], out)
    assert out.read_bytes() != data


def test_runs_without_points_are_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"step": 1, "train/loss": 2.0}\n')
    with pytest.raises(UserError, match=r"empty\.jsonl holds no step with tokens and train/loss"):
        plot_losses([("x", empty)], tmp_path / "out.png")
    with pytest.raises(UserError, match="no run to plot"):
        plot_losses([], tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
