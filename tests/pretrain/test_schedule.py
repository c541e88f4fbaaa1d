"""Learning-rate schedules over tokens: the published recipes' numbers, and what holds for any."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from launch.recipe import load_recipe
from pretrain.config import RunConfig
from pretrain.loop import learning_rate
from pretrain.schedule import Segment, SegmentSchedule, WarmupStableDecay
from runtime.errors import UserError
from tests.support.tiny import tiny_config

TRILLION = 10**12


def rate(config: RunConfig, tokens: float) -> float:
    return config.optimizer.lr * config.optimizer.schedule.factor(tokens, config.train.total_tokens)


def test_tokens_a_step_of_the_recipes() -> None:
    expected = {"llada-8b": 5_242_880, "llada-1b": 5_242_880, "ar-1b": 5_242_880, "ar-7b": 17_301_504}
    assert {name: load_recipe(name, []).train.tokens_per_step for name in expected} == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, 0.0),
        (1000 * 5_242_880, 2e-4),
        (2000 * 5_242_880, 4e-4),
        (0.6 * TRILLION, 4e-4),
        (1.2 * TRILLION - 1, 4e-4),
        (1.2 * TRILLION, 1e-4),
        (1.2 * TRILLION + 1, 1e-4),
        (2.0 * TRILLION, 1e-4),
        (2.15 * TRILLION, 5.5e-5),
        (2.3 * TRILLION, 1e-5),
    ],
)
def test_rates_of_the_8b_recipe(tokens: float, expected: float) -> None:
    assert rate(load_recipe("llada-8b", []), tokens) == pytest.approx(expected, rel=1e-12)


def test_the_8b_recipe_by_iteration() -> None:
    """Iteration 1000 has half the peak; the step down comes with iteration 228,882; the run ends at 2.3 T tokens."""
    config = load_recipe("llada-8b", [])
    assert learning_rate(config, 0) == pytest.approx(4e-4 / 2000, rel=1e-12)
    assert learning_rate(config, 999) == pytest.approx(2e-4, rel=1e-12)
    assert learning_rate(config, 1999) == pytest.approx(4e-4, rel=1e-12)
    rates = [learning_rate(config, iteration - 1) for iteration in (228_881, 228_882)]
    assert rates == pytest.approx([4e-4, 1e-4], rel=1e-12)
    assert config.train.total_tokens == pytest.approx(2.3 * TRILLION, rel=1e-6)
    assert learning_rate(config, config.train.steps - 1) == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize(("name", "peak"), [("llada-1b", 4e-4), ("ar-1b", 4e-4), ("ar-7b", 4.2e-4)])
def test_the_other_recipes_warm_up_over_2000_iterations_and_stay(name: str, peak: float) -> None:
    config = load_recipe(name, [])
    assert learning_rate(config, 999) == pytest.approx(peak / 2, rel=1e-12)
    for step in (1999, 2000, config.train.steps // 2, config.train.steps - 1):
        assert learning_rate(config, step) == pytest.approx(peak, rel=1e-12)


@settings(deadline=None)
@given(st.integers(1, 200), st.sampled_from([1, 2, 4, 8]))
def test_the_same_tokens_have_the_same_rate_under_any_batch(step: int, larger: int) -> None:
    schedule = {"kind": "wsd", "warmup": 3000, "decay": 0.3, "floor": 0.05}
    one = tiny_config(optimizer__schedule=schedule, train__steps=1600, train__global_batch=8)
    other = tiny_config(
        optimizer__schedule=schedule, train__steps=1600 // larger, train__global_batch=8 * larger, train__micro_batch=1
    )
    assert one.train.total_tokens == other.train.total_tokens
    assert learning_rate(other, step - 1) == learning_rate(one, step * larger - 1)


def test_steps_of_a_run_end_at_the_floor() -> None:
    config = tiny_config(optimizer__schedule={"kind": "wsd", "warmup": 1000, "decay": 0.5, "floor": 0.2})
    rates = [learning_rate(config, step) for step in range(config.train.steps)]
    assert rates[-1] == pytest.approx(0.2 * config.optimizer.lr, rel=1e-12)
    assert max(rates) == config.optimizer.lr
    assert rates[0] == pytest.approx(config.optimizer.lr * 256 / 1000, rel=1e-12)


wsd = st.builds(
    WarmupStableDecay,
    warmup=st.integers(0, 1500),
    decay=st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 1)),
    floor=st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 1)),
)


@settings(deadline=None)
@given(wsd, st.integers(1, 2000), st.floats(0, 1))
def test_wsd_stays_between_zero_and_the_peak(schedule: WarmupStableDecay, total: int, share: float) -> None:
    assert 0.0 <= schedule.factor(share * total, total) <= 1.0


@settings(deadline=None)
@given(wsd, st.integers(1, 2000))
def test_wsd_is_a_line_up_a_constant_and_a_line_down(schedule: WarmupStableDecay, total: int) -> None:
    decay_from = (1.0 - schedule.decay) * total
    assume(schedule.warmup <= decay_from)
    factors = [schedule.factor(t, total) for t in range(total + 1)]
    for tokens, factor in enumerate(factors):
        if tokens < schedule.warmup:
            assert factor == pytest.approx(tokens / schedule.warmup, rel=1e-12)
        elif tokens <= decay_from:
            assert factor == 1.0
        else:
            expected = 1.0 - (1.0 - schedule.floor) * (tokens - decay_from) / (total - decay_from)
            assert factor == pytest.approx(expected, rel=1e-9, abs=1e-9)
    if schedule.warmup:
        assert factors[0] == 0.0
    if decay_from < total:
        assert factors[-1] == pytest.approx(schedule.floor, rel=1e-12, abs=1e-12)
    if decay_from < total - 1:  # else the decay has no token to stretch over
        steepest = max(1 / max(schedule.warmup, 1), 1 / (total - decay_from))
        assert all(abs(b - a) <= steepest * (1 + 1e-9) for a, b in itertools.pairwise(factors[1:]))
    assert schedule.factor(2 * total, total) == factors[-1] or schedule.decay * total < 1e-9


def test_wsd_does_not_jump_where_warm_up_meets_decay() -> None:
    schedule = WarmupStableDecay(warmup=900, decay=0.5, floor=0.0)
    factors = [schedule.factor(t, 1000) for t in range(1001)]
    assert max(abs(b - a) for a, b in itertools.pairwise(factors)) < 0.02


bounds = st.lists(st.integers(1, 3000), min_size=1, max_size=5, unique=True).map(sorted)


@settings(deadline=None)
@given(bounds, st.data())
def test_segments_are_lines_that_jump_only_where_declared(untils: list[int], data: st.DataObject) -> None:
    level = st.floats(0, 2)
    segments = [
        Segment(until=until, start=data.draw(level), end=data.draw(st.one_of(st.none(), level))) for until in untils
    ]
    schedule = SegmentSchedule(segments=tuple(segments))
    begin = 0
    for segment in segments:
        end = segment.start if segment.end is None else segment.end
        length = segment.until - begin
        for tokens in {begin, begin + length // 2, segment.until - 1}:
            expected = segment.start + (end - segment.start) * (tokens - begin) / length
            assert schedule.factor(tokens, 1) == pytest.approx(expected, rel=1e-12, abs=1e-12)
        just_before = schedule.factor(math.nextafter(segment.until, 0), 1)
        assert just_before == pytest.approx(end, rel=1e-9, abs=1e-9)
        begin = segment.until
    assert schedule.factor(begin, 1) == schedule.factor(10 * begin, 1) == end


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"kind": "wsd", "warmup": -1}, "warmup"),
        ({"kind": "wsd", "decay": 1.5}, "decay"),
        ({"kind": "wsd", "floor": -0.1}, "floor"),
        ({"kind": "wsd", "decay": float("nan")}, "decay"),
        ({"kind": "segments", "segments": []}, "segments"),
        ({"kind": "segments", "segments": [{"until": 5, "start": 1}, {"until": 5, "start": 1}]}, "until"),
        ({"kind": "segments", "segments": [{"until": 9, "start": 1}, {"until": 5, "start": 1}]}, "until"),
        ({"kind": "segments", "segments": [{"until": 0, "start": 1}]}, "until"),
        ({"kind": "segments", "segments": [{"until": 5, "start": -1}]}, "start"),
        ({"kind": "cosine"}, "cosine"),
        ({"kind": "wsd", "warmpu": 5}, r"did you mean 'optimizer\.schedule\.warmup'"),
    ],
)
def test_bad_schedules_name_the_key(schedule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_config(optimizer__schedule=schedule)
