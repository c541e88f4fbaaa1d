"""Weights come out exactly, every rank of a source once, in a mixed order."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.mixture import BLOCK, LONGEST_BLOCK, Mixture
from runtime.errors import UserError

weights = st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=12)


@given(weights=weights, block=st.integers(0, 2**40))
@settings(max_examples=200, deadline=None)
def test_counts_are_within_one_of_the_weights_after_any_block(weights: list[float], block: int) -> None:
    mixture = Mixture(weights, 0)
    counts = mixture.counts(block)
    assert sum(counts) == block * mixture.size
    for count, after, weight in zip(counts, mixture.counts(block + 1), mixture.weights, strict=True):
        assert abs(count - weight * block * mixture.size) < 1
        assert after >= count


@given(weights=weights, seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_every_rank_of_a_source_is_used_once(weights: list[float], seed: int) -> None:
    mixture = Mixture(weights, seed)
    blocks = [mixture.block(number) for number in range(3)]
    sources, ranks = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    for source, count in enumerate(mixture.counts(3)):
        assert np.array_equal(np.sort(ranks[sources == source]), np.arange(count))


def test_realised_sources_equal_the_counts() -> None:
    mixture = Mixture([0.61, 0.11, 0.28], 7)
    seen: Counter[int] = Counter()
    for number in range(20):
        seen.update(mixture.block(number)[0].tolist())
        assert [seen[s] for s in range(3)] == mixture.counts(number + 1)


def test_scalar_equals_block() -> None:
    mixture = Mixture([3, 1], 5)
    sources, ranks = mixture.block(2)
    for i in (0, 1, 511, BLOCK - 1):
        assert mixture.source_and_rank(2 * BLOCK + i) == (sources[i], ranks[i])


def test_sources_are_mixed_inside_a_block() -> None:
    sources, _ = Mixture([1, 1], 0).block(0)
    changes = np.count_nonzero(np.diff(sources))
    assert abs(changes - BLOCK / 2) < 5 * math.sqrt(BLOCK / 4)
    other, _ = Mixture([1, 1], 0).block(1)
    assert not np.array_equal(sources, other)
    assert not np.array_equal(sources, Mixture([1, 1], 1).block(0)[0])


def test_a_rare_source_is_carried_over_blocks() -> None:
    mixture = Mixture([1, 1e-4], 0)  # about one sample in ten blocks
    assert [mixture.counts(b)[1] for b in (1, 9, 10, 98, 100)] == [1, 1, 2, 11, 11]


@given(block=st.integers(0, 2**30), rare=st.floats(1e-6, 1e-3))
@settings(max_examples=100, deadline=None)
def test_a_rare_source_between_others_takes_no_sample_back(block: int, rare: float) -> None:
    """Blocks of 1024 are too short for it: at the borders of two neighbours' shares its count may fall."""
    mixture = Mixture([0.3337, rare, 0.6663], 0)
    assert mixture.size & (mixture.size - 1) == 0
    assert mixture.size * mixture.weights[1] >= 1
    assert mixture.size == BLOCK or mixture.size / 2 * mixture.weights[1] < 1
    counts = [mixture.counts(block + b)[1] for b in range(50)]
    assert counts == sorted(counts)


def test_a_part_of_a_long_block_is_what_the_whole_has_there() -> None:
    mixture = Mixture([0.3337, 1e-4, 0.6663], 3)
    assert mixture.size == 1 << 14
    whole, part = mixture.block(5), mixture.block(5, 1000, 1300)
    assert all(np.array_equal(a[1000:1300], b) for a, b in zip(whole, part, strict=True))


def test_a_weight_too_small_for_any_block() -> None:
    with pytest.raises(UserError, match=rf"less than a sample in {LONGEST_BLOCK}: raise it or leave that source out"):
        Mixture([1, 1e-7, 1], 0)
    assert Mixture([1, 1e-7], 0).size == BLOCK  # the first and the last source cannot take samples back


@pytest.mark.parametrize("bad", [[], [0.0], [1, -1], [math.nan], [1, math.inf]])
def test_bad_weights(bad: list[float]) -> None:
    with pytest.raises(UserError, match=r"data\.mixture"):
        Mixture(bad, 0)
