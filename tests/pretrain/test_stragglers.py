"""Slow ranks are named within 20 steps, even ones never: simulated times with noise."""

import numpy as np
import pytest

from pretrain.health.health import Health
from pretrain.health.stragglers import Stragglers


def times(rng: np.random.Generator, ranks: int, noise: float, outliers: float) -> np.ndarray:
    """Seconds of a step: log-normal noise of each rank, now and then a multiple, and what slows all alike."""
    common = 0.1 * np.exp(rng.normal(0, 0.3))
    own = np.exp(rng.normal(0, noise, ranks))
    return common * own * np.where(rng.random(ranks) < outliers, rng.uniform(1.5, 5, ranks), 1.0)


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1])
def test_a_rank_slowed_by_1_3_is_named_within_20_steps(ranks: int, noise: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng([seed, ranks])
        stragglers, slowed = Stragglers([0] * ranks), seed % ranks
        for _ in range(40):
            stragglers.note(list(times(rng, ranks, noise, 0.01)))
        assert not stragglers.slow
        named = 0
        for step in range(1, 21):
            seconds = times(rng, ranks, noise, 0.01)
            seconds[slowed] *= 1.3
            stragglers.note(list(seconds))
            if slowed in stragglers.slow:
                named = step
                break
        assert 0 < named <= 20
        assert list(stragglers.slow) == [slowed]
        assert stragglers.slow[slowed] == pytest.approx(1.3, rel=0.25)


@pytest.mark.parametrize(("ranks", "noise"), [(2, 0.02), (2, 0.1), (3, 0.1), (8, 0.1), (64, 0.05), (256, 0.1)])
def test_no_false_alarm_in_1000_even_steps(ranks: int, noise: float) -> None:
    for seed in range(3):
        rng = np.random.default_rng([seed, ranks])
        stragglers = Stragglers([0] * ranks)
        for _ in range(1000):
            stragglers.note(list(times(rng, ranks, noise, 0.02)))
            assert not stragglers.slow


def test_exact_times_give_the_exact_ratio() -> None:
    stragglers = Stragglers([0] * 4)
    for _ in range(20):
        stragglers.note([1.0, 1.0, 1.25, 1.0])
    assert stragglers.slow == {2: pytest.approx(1.25, rel=1e-12)}
    for _ in range(20):
        stragglers.note([1.0] * 4)
    assert stragglers.slow == {}


def test_stages_of_a_pipeline_are_not_compared_with_each_other() -> None:
    """The second stage takes twice as long by nature; in it, rank 3 is slow."""
    stragglers = Stragglers(["first", "first", "second", "second", "alone"])
    for _ in range(20):
        stragglers.note([1.0, 1.0, 2.0, 2.8, 9.0])
    assert list(stragglers.slow) == [3]


def test_the_first_two_steps_do_not_count() -> None:
    stragglers = Stragglers([0, 0])
    for step in range(24):
        stragglers.note([0.0, 50.0] if step < 2 else [1.0, 1.0])
    assert stragglers.slow == {}


def test_lines_of_metrics_name_slow_ranks_and_say_once_that_there_are_none() -> None:
    health = Health(stragglers=Stragglers([0] * 4), name_of="rank {} on n".format)

    def after(steps: int, seconds: list[float]) -> dict[str, float | str]:
        for _ in range(steps):
            health.note(seconds)
        return health.metrics()

    assert health.metrics() == {"health/slow_ranks": 0}
    assert after(24, [1.0, 1.0, 1.0, 1.0]) == {}
    found = after(24, [1.0, 1.5, 1.0, 1.0])
    assert found.pop("health/slowest_ratio") == pytest.approx(1.5)
    assert found == {"health/slow_ranks": 1, "health/slowest_rank": 1, "health/slow": "rank 1 on n (1.50 times)"}
    assert after(24, [1.0, 1.0, 1.0, 1.0]) == {"health/slow_ranks": 0}
    assert after(24, [1.0, 1.0, 1.0, 1.0]) == {}
    assert Health().metrics() == {}
