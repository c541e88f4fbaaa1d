"""The order is a bijection, the same everywhere, and looks random where an LCG does not."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline.order import Permutation, derive_key


def test_bijective_for_every_small_n() -> None:
    indices = np.arange(10_000)
    met = np.zeros(10_000, dtype=np.int64)
    for n in range(1, 10_001):
        met[Permutation(n, n * 7919).map(indices[:n])] = n
        assert np.count_nonzero(met[:n] == n) == n, n


@given(n=st.integers(1, 2**62), key=st.integers(0, 2**64 - 1), data=st.data())
@settings(max_examples=200, deadline=None)
def test_large_n_stays_in_range_without_collisions(n: int, key: int, data: st.DataObject) -> None:
    order = Permutation(n, key)
    start = data.draw(st.integers(0, n - 1))
    indices = np.arange(start, min(n, start + 50))
    values = order.map(indices)
    assert values.min() >= 0
    assert values.max() < n
    assert len(set(values.tolist())) == len(indices)
    assert [order(int(i)) for i in indices] == values.tolist()


@given(n=st.integers(2000, 300_000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=15, deadline=None)
def test_bijective_for_random_larger_n(n: int, key: int) -> None:
    assert np.array_equal(np.sort(Permutation(n, key).map(np.arange(n))), np.arange(n))


def test_golden_values() -> None:
    """A change here reorders the data of every run: bump the manifest's version instead of these numbers."""
    assert derive_key(0) == 7203611451376014624
    assert derive_key(17, "order", 3) == 16338036415362456752
    assert Permutation(10, 1).map(np.arange(10)).tolist() == [7, 4, 8, 1, 2, 6, 5, 0, 9, 3]
    assert [Permutation(1000, 42)(i) for i in range(5)] == [137, 841, 856, 166, 136]
    assert [Permutation(2**62, 2**64 - 1)(i) for i in (0, 1, 2**61)] == [
        1822685120096887087,
        2283013520127280124,
        810804282654748804,
    ]


def test_keys_tell_numbers_from_text_and_borders() -> None:
    keys = [
        derive_key(1, 2),
        derive_key(1, "2"),
        derive_key(12),
        derive_key(1, "a", "b"),
        derive_key(1, "ab"),
        derive_key(-1, 2),
    ]
    assert len(set(keys)) == len(keys)


def test_shape_and_empty_map() -> None:
    order = Permutation(100, 3)
    assert order.map(np.arange(6).reshape(2, 3)).shape == (2, 3)
    assert order.map([]).size == 0


@pytest.mark.parametrize("bad", [-1, 100])
def test_outside_the_range(bad: int) -> None:
    with pytest.raises(AssertionError):
        Permutation(100, 0)(bad)
    with pytest.raises(AssertionError):
        Permutation(100, 0).map([bad])


@pytest.mark.parametrize("n", [4, 5])
def test_all_orders_of_a_small_range_are_equally_likely(n: int) -> None:
    draws = 200 * math.factorial(n)
    seen: dict[tuple[int, ...], int] = {}
    for key in range(draws):
        order = tuple(Permutation(n, derive_key(key)).map(np.arange(n)).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == math.factorial(n)
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def _lcg(n: int, factor: int = 1664525, x: int = 12345) -> np.ndarray:
    """A full-period linear congruential order of range(n), n a power of two."""
    values = np.empty(n, dtype=np.int64)
    for i in range(n):
        values[i] = x = (x * factor + 1013904223) % n
    return values


def _alternation(order: np.ndarray) -> float:
    """z-score of how often neighbours differ in parity; a fair shuffle is a coin toss."""
    differs = np.count_nonzero(np.diff(order) % 2)
    return float((differs - (len(order) - 1) / 2) / math.sqrt((len(order) - 1) / 4))


def _serial(order: np.ndarray) -> float:
    return float(np.corrcoef(order[:-1], order[1:])[0, 1] * math.sqrt(len(order)))


def _triples(order: np.ndarray) -> float:
    """p-value of a chi-square test over which eighth of the range successive values fall in."""
    cell = order * 8 // len(order)
    triples = (cell[:-2] * 64 + cell[1:-1] * 8 + cell[2:])[::3]
    return float(stats.chisquare(np.bincount(triples, minlength=512)).pvalue)


def _places(order: np.ndarray) -> float:
    """p-value of a chi-square test of values modulo 16 against positions modulo 16."""
    cells = np.bincount(np.arange(len(order)) % 16 * 16 + order % 16, minlength=256)
    return float(stats.chisquare(cells * (len(order) / cells.sum())).pvalue)


@pytest.mark.parametrize("n", [1 << 15, 40_009])
@pytest.mark.parametrize("key", [0, 1, 2**63])
def test_looks_random(n: int, key: int) -> None:
    order = Permutation(n, key).map(np.arange(n))
    assert abs(_alternation(order)) < 5
    assert abs(_serial(order)) < 5
    assert _triples(order) > 1e-5
    assert _places(order) > 1e-5
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) * math.sqrt(n) < 5


@pytest.mark.parametrize("factor", [5, 1664525])
def test_the_same_tests_reject_linear_congruential_orders(factor: int) -> None:
    order = _lcg(1 << 15, factor)
    assert np.array_equal(np.sort(order), np.arange(1 << 15))
    assert abs(_alternation(order)) > 100
    assert _places(order) < 1e-100
    if factor == 5:
        assert abs(_serial(order)) > 5
        assert _triples(order) < 1e-100


def test_the_next_epoch_of_a_linear_congruential_order_is_the_first_again() -> None:
    first, second = _lcg(1 << 12), _lcg(1 << 12, x=int(_lcg(1 << 12)[-1]))
    assert len(set(((np.argsort(second) - np.argsort(first)) % (1 << 12)).tolist())) == 1


@pytest.mark.parametrize("n", [300, 1 << 12, 5001])
def test_epochs_are_independent_orders(n: int) -> None:
    first, second = (Permutation(n, derive_key(5, epoch)).map(np.arange(n)) for epoch in (0, 1))
    assert np.count_nonzero(first == second) < 10  # Poisson(1) fixed points
    assert abs(np.corrcoef(first, second)[0, 1]) * math.sqrt(n) < 5
    shifts = np.bincount((second - first) % n, minlength=n)
    assert shifts.max() < 12  # a rotated epoch would put all n into one cell
