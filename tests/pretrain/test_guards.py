"""Harmful steps are refused, leave no trace, and end the run when they do not stop."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.checkpoint.store import Progress
from parallel.engines.base import Engine
from parallel.mesh import Mesh
from pretrain.build import build_engine
from pretrain.guards import Guard, GuardConfig
from runtime.environment import RankInfo
from tests.support.grid import Case, feed_of

CALM = [(2.0 + 0.01 * (k % 7), 1.0 + 0.02 * (k % 5)) for k in range(64)]


def seen(config: GuardConfig) -> Guard:
    guard = Guard(config)
    for loss, norm in CALM:
        guard.note(loss, norm, accepted=True)
    return guard


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_from_the_first_step(bad: float) -> None:
    guard = Guard(GuardConfig())
    assert not guard.accepts(bad, 1.0)
    assert not guard.accepts(1.0, bad)
    assert guard.accepts(1.0, 1.0)


def test_a_spike_is_refused_only_if_asked_for_and_only_upwards() -> None:
    assert Guard(GuardConfig(spike=8.0)).accepts(1e9, 1e9)  # nothing seen yet
    assert seen(GuardConfig()).accepts(50.0, 1.0)
    guard = seen(GuardConfig(spike=8.0))
    assert not guard.accepts(50.0, 1.0)
    assert not guard.accepts(2.0, 50.0)
    assert guard.accepts(0.1, 0.01)
    assert guard.accepts(2.05, 1.1)


def test_refused_steps_do_not_move_the_measure_and_exhaust_patience() -> None:
    guard = seen(GuardConfig(spike=8.0, patience=3))
    for count in (1, 2, 3):
        assert not guard.accepts(50.0, 1.0)
        guard.note(50.0, 1.0, accepted=False)
        assert guard.refused == guard.refused_in_a_row == count
    assert guard.exhausted
    guard.note(2.0, 1.0, accepted=True)
    assert not guard.exhausted
    assert guard.refused == 3


def test_a_continued_run_judges_alike() -> None:
    guard = seen(GuardConfig(spike=8.0))
    guard.note(50.0, 1.0, accepted=False)
    again = Guard(GuardConfig(spike=8.0), guard.state())
    assert again.state() == guard.state()
    for loss in (2.0, 2.1, 2.2, 2.3, 3.0):
        assert again.accepts(loss, 1.0) == guard.accepts(loss, 1.0)


def state_of(engine: Engine) -> list[torch.Tensor]:
    return [fragment.values.clone() for fragment in engine.fragments()]


@pytest.mark.filterwarnings("ignore")  # the engines' own
@pytest.mark.parametrize(
    "layout",
    [{"zero": 0}, {"zero": 1}, *({"engine": "deepspeed", "zero": z} for z in (1, 2, 3))],
    ids=lambda layout: " ".join(map(str, layout.values())),
)
@pytest.mark.parametrize("poison", [False, True], ids=["refused", "not-finite"])
def test_a_refused_step_changes_no_bit_and_the_next_one_trains(layout: dict[str, Any], poison: bool) -> None:
    case = Case(1, layout)
    engine = build_engine(case.config(), Mesh.create(case.config().parallel, RankInfo()))
    feed = feed_of(case)

    def step(number: int, verdict: bool, scale: float = 1.0) -> Any:
        batch = feed.step(number)
        return engine.train_step(
            batch.micro_batches, batch.tokens / scale, 0.01, lambda loss, norm: verdict and math.isfinite(norm)
        )

    assert step(0, True).accepted
    before = state_of(engine)
    result = step(1, True, scale=1e200) if poison else step(1, False)
    assert not result.accepted
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(engine), strict=True))
    assert step(2, True).accepted
    assert not all(torch.equal(a, b) for a, b in zip(before, state_of(engine), strict=True))


@pytest.mark.filterwarnings("ignore")  # the engines' own
def test_the_run_stops_naming_the_last_good_checkpoint(tmp_path: Path) -> None:
    from pretrain.loop import Hooks, train
    from pretrain.saves import Saves
    from runtime.errors import LacunaError
    from runtime.signals import StopRequest

    case = Case(1, {"zero": 0})
    config = case.config().model_copy(update={"guard": GuardConfig(patience=2)})
    engine = build_engine(config, Mesh.create(config.parallel, RankInfo()))
    with torch.no_grad():
        next(f for f in engine.fragments() if f.kind == "weight").values.fill_(math.nan)
    logged: list[int] = []

    def hooks(newest: int) -> Hooks:
        def never(step: int, guard: Guard) -> Progress:
            raise AssertionError("a refused step is not saved")

        saves = Saves(config.checkpoint, tmp_path, engine, never, saved=newest)
        return Hooks(lambda step, _values: logged.append(step), saves)

    with pytest.raises(LacunaError, match=r"2 steps in a row were refused.*step-00000004 and a lower optimizer\.lr"):
        train(config, engine, feed_of(case), range(4, 10), Guard(config.guard), hooks(4), StopRequest())
    with pytest.raises(LacunaError, match=r"no checkpoint yet: start again with a lower optimizer\.lr"):
        train(config, engine, feed_of(case), range(10), Guard(config.guard), hooks(0), StopRequest())
    assert logged == [5, 6, 1, 2]
