"""Failures in numbers: a published count, closed forms, and a simulation of Daly's formula."""

import math

import numpy as np
import pytest

from launch.recipe import load_recipe
from pretrain.planning.interruptions import Interruptions, best_interval, expected_goodput, interruption_plan
from runtime.errors import UserError

DAY = 86400.0


def test_the_default_rate_is_that_of_the_llama_3_report() -> None:
    """419 unexpected interruptions in 54 days on 16,384 GPUs (arXiv 2407.21783)."""
    assert Interruptions().expected(16384, 54 * DAY) == pytest.approx(419, rel=0.02)
    gpu_hours = 54 * 24 * 16384 / 419
    assert gpu_hours == pytest.approx(50_000, rel=0.02)


def test_the_best_interval_is_near_the_optimum_of_the_goodput() -> None:
    save, mean = 30.0, 4 * 3600.0
    best = best_interval(save, mean)
    assert best == math.sqrt(2 * save * mean)
    grid = [expected_goodput(best * factor, save, 300.0, mean) for factor in np.linspace(0.25, 4, 400)]
    assert expected_goodput(best, save, 300.0, mean) == pytest.approx(max(grid), abs=2e-4)
    assert grid[0] < max(grid) - 0.01


def test_without_interruptions_only_saves_cost() -> None:
    assert expected_goodput(90.0, 10.0, 600.0, 1e12) == pytest.approx(0.9, rel=1e-6)
    assert expected_goodput(1e6, 1.0, 1.0, 1.0) == 0.0  # never comes to its first checkpoint


@pytest.mark.parametrize(("interval", "save", "restart", "mean"), [(3.0, 0.2, 15.0, 60.0), (600, 30, 300, 10000)])
def test_simulated_runs_have_the_expected_goodput(interval: float, save: float, restart: float, mean: float) -> None:
    source = np.random.Generator(np.random.Philox(7))
    wall = useful = 0.0
    pending = 0.0  # of a restart that must be whole before training goes on
    for alive in source.exponential(mean, 100_000):
        wall += alive
        useful += max(0.0, alive - pending) // (interval + save) * interval
        pending = restart
    assert useful / wall == pytest.approx(expected_goodput(interval, save, restart, mean), rel=0.01)


def test_the_plan_of_a_big_run() -> None:
    config = load_recipe("llada-8b", [])
    found = interruption_plan(config, 16384, 1e11, 0.2, Interruptions(save_seconds=20.0))
    assert found["mean_hours"] == 50_000 / 16384
    assert found["best_every_seconds"] == pytest.approx(math.sqrt(2 * 20 * 50_000 / 16384 * 3600), rel=0.1)
    assert 0.85 < found["goodput"] <= found["best_goodput"] + 1e-3 < 1
    assert found["restart_seconds"] == 600.0
    sync = interruption_plan(config, 16384, 1e11, 0.2, Interruptions())
    beside = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"in_background": True})})
    assert interruption_plan(beside, 16384, 1e11, 0.2, Interruptions())["goodput"] > sync["goodput"]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_figures_that_cannot_be(value: float) -> None:
    with pytest.raises(UserError, match="--gpu-hours-per-interruption"):
        Interruptions(gpu_hours=value)
    with pytest.raises(UserError, match="--save-seconds"):
        Interruptions(save_seconds=value)
