"""Noise is a pure function of (seed, index) with one level in each stratum of every global batch."""

import dataclasses
import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.objectives.noise import Noise, NoiseSource

SOURCE = NoiseSource(seed=3, sequence_length=32, global_batch=8, epsilon=1e-3, random_length=0.25, stratified=True)


def same(one: Noise, other: Noise) -> bool:
    equal = (one.level, one.probability, one.length) == (other.level, other.probability, other.length)
    return equal and bool(np.array_equal(one.masked, other.masked))


@pytest.mark.parametrize("global_batch", [1, 2, 3, 7, 8, 63, 64, 65, 100, 1280])
def test_every_stratum_of_every_global_batch_has_one_level(global_batch: int) -> None:
    source = dataclasses.replace(SOURCE, global_batch=global_batch, sequence_length=2)
    for step in (0, 1, 2, 1000, 2**31):
        levels = [source.draw(step * global_batch + j).level for j in range(global_batch)]
        strata = sorted(int(Fraction(level) * global_batch) for level in levels)
        assert strata == list(range(global_batch))
        assert all(0.0 <= level < 1.0 for level in levels)


def test_strata_stand_in_another_order_each_step_and_seed() -> None:
    def order(seed: int, step: int) -> tuple[int, ...]:
        source = dataclasses.replace(SOURCE, seed=seed)
        return tuple(int(source.draw(step * 8 + j).level * 8) for j in range(8))

    orders = [order(seed, step) for seed in range(10) for step in range(10)]
    assert len(set(orders)) == len(orders)


def test_without_strata_levels_collide() -> None:
    source = dataclasses.replace(SOURCE, stratified=False)
    strata = [sorted(int(source.draw(step * 8 + j).level * 8) for j in range(8)) for step in range(20)]
    assert sum(s == list(range(8)) for s in strata) <= 1  # by chance 8!/8^8 = 0.24 %


def test_probability_is_that_of_the_reference_code() -> None:
    for index in range(50):
        noise = SOURCE.draw(index)
        assert noise.probability == (1 - 1e-3) * noise.level + 1e-3
        assert 1e-3 <= noise.probability < 1.0


def test_any_order_any_instance_any_number_of_times() -> None:
    expected = {index: SOURCE.draw(index) for index in range(200)}
    indices = list(range(200)) * 2
    random.Random(1).shuffle(indices)
    other = NoiseSource(**dataclasses.asdict(SOURCE))
    for index in indices:
        assert same(other.draw(index), expected[index])


def test_global_random_state_plays_no_part() -> None:
    np.random.seed(0)
    one = SOURCE.draw(5)
    np.random.seed(1)
    assert same(SOURCE.draw(5), one)


def test_indices_and_seeds_differ() -> None:
    draws = [dataclasses.replace(SOURCE, seed=seed).draw(index) for seed in range(20) for index in range(20)]
    assert len({noise.masked.tobytes() + noise.level.hex().encode() for noise in draws}) == 400
    jitters = [noise.level * 8 % 1 for noise in draws]
    assert len(set(jitters)) == 400


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**48))
def test_any_seed_and_index_give_a_valid_draw(seed: int, index: int) -> None:
    noise = dataclasses.replace(SOURCE, seed=seed).draw(index)
    assert 0.0 <= noise.level < 1.0
    assert 1 <= noise.length <= 32
    assert noise.masked.shape == (32,)
    assert noise.masked.dtype == np.bool_
    assert not noise.masked[noise.length :].any()


def test_switches_change_only_what_they_are_for() -> None:
    """Random lengths cut masks and change nothing else; other levels leave lengths alone."""
    for index in range(100):
        noise = SOURCE.draw(index)
        whole = dataclasses.replace(SOURCE, random_length=0.0).draw(index)
        assert whole.length == 32
        assert whole.level == noise.level
        assert np.array_equal(whole.masked[: noise.length], noise.masked[: noise.length])
        flat = dataclasses.replace(SOURCE, stratified=False).draw(index)
        assert flat.length == noise.length
        assert abs(flat.level - noise.level * 8 % 1) < 1e-12  # the same jitter


def test_more_noise_masks_more() -> None:
    """At equal draws a larger epsilon can only add masks."""
    for index, (low, high) in itertools.product(range(30), [(0.001, 0.1), (0.1, 0.9)]):
        few = dataclasses.replace(SOURCE, epsilon=low).draw(index).masked
        many = dataclasses.replace(SOURCE, epsilon=high).draw(index).masked
        assert not (few & ~many).any()
