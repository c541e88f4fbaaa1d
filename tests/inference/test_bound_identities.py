"""Identities of the masked-diffusion bound on a table of 3 tokens and 4 positions, by enumeration."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from enumerable import (
    LENGTH,
    TEXTS,
    TablePredictor,
    arbitrary_table,
    conditionals_of,
    every_mask,
    exact_bound,
)
from scipy.integrate import quad
from scipy.special import beta as beta_function
from scipy.special import betainc

TABLE = arbitrary_table(seed=1)
SOME_TEXTS = TEXTS[::7]


def weighted_bound(text: tuple[int, ...], weight_of_size: Callable[[int], float]) -> float:
    return -sum(weight_of_size(size) * value for size, value in every_mask(TABLE, text) if size)


def t_form_weight(size: int) -> float:
    """∫_0^1 (1/t) t^l (1−t)^(L−l) dt = B(l, L−l+1)."""
    return math.factorial(size - 1) * math.factorial(LENGTH - size) / math.factorial(LENGTH)


def order_log_likelihoods(predictor: TablePredictor, text: tuple[int, ...]) -> list[float]:
    """log p of `text` revealed in each of the L! orders."""
    values = []
    for order in itertools.permutations(range(LENGTH)):
        values.append(sum(predictor.log_probabilities(text, order[k:])[order[k]] for k in range(LENGTH)))
    return values


@pytest.mark.parametrize("text", SOME_TEXTS)
def test_level_integral_subset_size_and_any_order_forms_are_one_number(text: tuple[int, ...]) -> None:
    expected = exact_bound(TABLE, text)
    assert weighted_bound(text, t_form_weight) == pytest.approx(expected, abs=1e-12)
    assert -np.mean(order_log_likelihoods(TABLE, text)) == pytest.approx(expected, abs=1e-12)


def test_bound_is_below_the_likelihood_of_the_order_averaged_sampler() -> None:
    gaps = []
    for text in SOME_TEXTS:
        averaged = np.log(np.mean(np.exp(order_log_likelihoods(TABLE, text))))
        gaps.append(averaged + exact_bound(TABLE, text))
    assert min(gaps) > 1e-3  # an arbitrary table depends on the order, so Jensen's inequality is strict


def test_true_conditionals_make_the_bound_exact() -> None:
    weights = np.random.default_rng(3).exponential(size=len(TEXTS))
    joint = dict(zip(TEXTS, weights / weights.sum(), strict=True))
    predictor = conditionals_of(joint)
    for text in SOME_TEXTS:
        assert exact_bound(predictor, text) == pytest.approx(-math.log(joint[text]), abs=1e-12)
        assert np.ptp(order_log_likelihoods(predictor, text)) < 1e-12


def test_weighting_by_the_realised_fraction_shrinks_the_bound() -> None:
    text = TEXTS[17]
    realised = weighted_bound(text, lambda size: LENGTH / size * beta_function(size + 1, LENGTH - size + 1))
    assert realised / exact_bound(TABLE, text) == pytest.approx(LENGTH / (LENGTH + 1), abs=1e-12)


def epsilon_weight(size: int, epsilon: float) -> float:
    """1/(1−ε) ∫_ε^1 p^(l−1) (1−p)^(L−l) dp, the weight a mask of l tokens has in training with ε."""
    a, b = size, LENGTH - size + 1
    return float(beta_function(a, b) * (1 - betainc(a, b, epsilon)) / (1 - epsilon))


@pytest.mark.parametrize("epsilon", [1e-1, 1e-2, 1e-3])
def test_epsilon_perturbs_the_bound_by_its_own_order_and_keeps_the_total_weight(epsilon: float) -> None:
    sizes = range(1, LENGTH + 1)
    total = sum(math.comb(LENGTH, size) * size * epsilon_weight(size, epsilon) for size in sizes)
    assert total == pytest.approx(LENGTH, abs=1e-10)
    by_quadrature = quad(lambda p: p * (1 - p) ** 2, epsilon, 1)[0] / (1 - epsilon)
    assert epsilon_weight(2, epsilon) == pytest.approx(by_quadrature, rel=1e-10)
    for text in SOME_TEXTS:
        ratio = weighted_bound(text, lambda size: epsilon_weight(size, epsilon)) / exact_bound(TABLE, text)
        assert 1e-6 < abs(ratio - 1) < LENGTH * epsilon


SCHEDULES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "linear": (lambda t: t, lambda _t: 1.0),
    "cosine": (lambda t: 1 - math.cos(math.pi * t / 2), lambda t: math.pi / 2 * math.sin(math.pi * t / 2)),
    "cubic": (lambda t: t**3, lambda t: 3 * t**2),
}


def schedule_weight(size: int, schedule: str) -> float:
    """∫ −α'/(1−α) · m^l (1−m)^(L−l) dt with the mask probability m = 1 − α."""
    mask, slope = SCHEDULES[schedule]
    return float(quad(lambda t: slope(t) * mask(t) ** (size - 1) * (1 - mask(t)) ** (LENGTH - size), 0, 1)[0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bound_does_not_depend_on_the_schedule(schedule: str) -> None:
    weights = {size: schedule_weight(size, schedule) for size in range(1, LENGTH + 1)}
    for text in SOME_TEXTS:
        assert weighted_bound(text, weights.__getitem__) == pytest.approx(exact_bound(TABLE, text), abs=1e-9)


def test_without_the_weight_it_is_another_number() -> None:
    text = TEXTS[40]
    maskgit = weighted_bound(text, lambda size: beta_function(size + 1, LENGTH - size + 1))
    assert abs(maskgit - exact_bound(TABLE, text)) > 0.5
