"""Fits recover laws that were planted, and their intervals hold what they promise."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from pretrain.scaling.compare import compare_isoflop, compare_parametric
from pretrain.scaling.isoflop import fit_isoflop
from pretrain.scaling.parametric import _STARTS, ParametricLaw, _Problem, fit_parametric, six_n
from pretrain.scaling.points import Measured
from pretrain.scaling.power_law import Interval, fit_power_law, interval
from runtime.errors import UserError
from tests.support.planted import BUDGETS, CHINCHILLA, SYMMETRIC, behind_by, planted_points

laws = st.builds(
    ParametricLaw,
    E=st.floats(0.5, 2.5),
    A=st.floats(50, 1000),
    B=st.floats(50, 1000),
    alpha=st.floats(0.2, 0.5),
    beta=st.floats(0.2, 0.5),
)


@settings(max_examples=4, deadline=None)  # some ten seconds each
@given(laws)
def test_parametric_fit_recovers_any_law_without_noise(law: ParametricLaw) -> None:
    found = fit_parametric(planted_points(law), draws=0).law
    assert found.alpha == pytest.approx(law.alpha, abs=1e-3)
    assert found.beta == pytest.approx(law.beta, abs=1e-3)
    assert float(found.E) == pytest.approx(law.E, rel=1e-2)
    assert found.size_exponent == pytest.approx(law.beta / (law.alpha + law.beta), abs=1e-3)
    assert found.loss_exponent == pytest.approx(-law.alpha * law.beta / (law.alpha + law.beta), abs=1e-3)


@settings(max_examples=12, deadline=None)
@given(laws)
def test_parabolas_recover_the_exponents_of_any_law_without_noise(law: ParametricLaw) -> None:
    """On sizes placed alike about each optimum the bias of a parabola is the same everywhere: exponents are right."""
    found = fit_isoflop(planted_points(law), draws=20)
    assert found.size.exponent == pytest.approx(law.size_exponent, abs=1e-3)
    assert found.data.exponent == pytest.approx(law.data_exponent, abs=1e-3)
    assert found.size.exponent + found.data.exponent == pytest.approx(1, abs=1e-9)


def test_parabola_finds_a_symmetric_optimum_exactly() -> None:
    for curve in fit_isoflop(planted_points(SYMMETRIC), draws=20).curves:
        assert curve.parameters == pytest.approx(SYMMETRIC.best_size(curve.budget), rel=1e-9)
        assert curve.inside


def test_best_size_is_the_least_loss_by_any_convention() -> None:
    def with_head(size: Any) -> Any:
        return 6 * size + 40 * size**0.5

    sizes = np.geomspace(1e6, 1e12, 20001)
    for per_token in (six_n, with_head):
        losses = CHINCHILLA.loss(sizes, 1e21 / per_token(sizes))
        best = CHINCHILLA.best_size(1e21, per_token)
        assert best == pytest.approx(sizes[losses.argmin()], rel=2e-3)
        loss = CHINCHILLA.best_loss(1e21, per_token)
        assert loss <= losses.min() + 1e-12
        assert CHINCHILLA.compute_for(loss, per_token) == pytest.approx(1e21, rel=1e-6)
    assert CHINCHILLA.compute_for(1.69) == np.inf


def test_planted_gap_of_sixteen() -> None:
    """Two families whose frontiers are 16 times the compute apart, over budgets that are not the same."""
    other = behind_by(SYMMETRIC, 16.0)
    baseline = fit_isoflop(planted_points(SYMMETRIC, "autoregressive"), draws=20)
    family = fit_isoflop(planted_points(other, budgets=[16 * b for b in BUDGETS]), draws=20)
    found = compare_isoflop(family, baseline)
    assert found.compute_ratio.value == pytest.approx(16, rel=1e-6)
    assert found.extrapolated == ()
    assert found.compute == pytest.approx((16 * BUDGETS[0] * BUDGETS[-1]) ** 0.5)  # of what both spent
    far = fit_isoflop(planted_points(SYMMETRIC, budgets=[1e22, 4e22]), draws=20)
    assert compare_isoflop(far, baseline).extrapolated == ("loss", "compute")
    assert compare_isoflop(far, baseline).compute == pytest.approx(1e21)
    laws = [fit_parametric(planted_points(law, name), draws=0) for law, name in ((other, "m"), (SYMMETRIC, "a"))]
    exact = compare_parametric(laws[0], laws[1], loss=2.5, compute=1e19)
    assert exact.compute_ratio.value == pytest.approx(16, rel=1e-3)
    assert exact.size_ratio.value == pytest.approx(1, rel=1e-3)  # at equal compute, size and data shrink alike


def test_straight_parallel_lines_sixteen_apart() -> None:
    compute, draws = np.array(BUDGETS), np.full((20, 5), np.nan)
    lines = [fit_power_law(compute, 90 * (compute / gap) ** -0.062, draws) for gap in (16, 1)]
    for loss in (3.0, 4.0, 6.0):
        assert lines[0].inverse(loss) / lines[1].inverse(loss) == pytest.approx(16, rel=1e-9)
    assert lines[0].at(1e19) / lines[1].at(1e19) == pytest.approx(16**0.062, rel=1e-9)


def test_intervals_of_parabolas_cover_the_truth() -> None:
    """Of 100 noisy draws at least 90 of the 95 % intervals hold the planted exponents."""
    hits = np.zeros(3)
    for seed in range(100):
        found = fit_isoflop(planted_points(SYMMETRIC, noise=0.003, seed=seed), draws=200, seed=seed)
        truth = fit_isoflop(planted_points(SYMMETRIC), draws=20)  # of the loss, what parabolas give without noise
        for index, name in enumerate(("size", "data", "loss")):
            held = getattr(found, name).exponent_interval
            hits[index] += held.low <= getattr(truth, name).exponent <= held.high
    assert (hits >= 90).all(), hits
    assert hits.min() < 100, "intervals that always hold say nothing"


@pytest.mark.slow
def test_intervals_of_the_parametric_law_cover_the_truth() -> None:
    """A few draws here; 100 in `python -m tests.prove.scaling`."""
    hits = 0
    for seed in range(4):
        fit = fit_parametric(planted_points(CHINCHILLA, noise=0.003, seed=seed), draws=30, seed=seed)
        held = fit.interval(lambda law: law.size_exponent)
        assert 0.005 < held.high - held.low < 0.2
        hits += held.low <= CHINCHILLA.size_exponent <= held.high
    assert hits >= 3


def test_gradient_of_the_objective() -> None:
    points = planted_points(CHINCHILLA, noise=0.01)
    problem = _Problem(np.array([p.parameters for p in points]), np.array([p.tokens for p in points]))
    logs = np.log([p.loss for p in points])
    theta = np.array([-0.4, -0.6, 0.4, 0.3, 0.25])
    size = np.abs(problem._objective(theta, logs)[1]).max()
    error = check_grad(lambda x: problem._objective(x, logs)[0], lambda x: problem._objective(x, logs)[1], theta)
    assert error < 1e-5 * size


def test_a_law_is_the_same_from_every_start_and_ignores_an_outlier() -> None:
    points = planted_points(CHINCHILLA)
    first = points[0]
    broken = [Measured(first.family, first.parameters, first.tokens, first.flops, first.loss * 1.3), *points[1:]]
    found = fit_parametric(broken, draws=0).law
    assert found.alpha == pytest.approx(CHINCHILLA.alpha, abs=5e-3)  # Huber, not squares
    assert len(_STARTS) > 50


def test_what_lies_outside_is_left_out_and_said() -> None:
    points = planted_points(CHINCHILLA, factors=(0.01, 0.02, 0.04, 0.08)) + planted_points(CHINCHILLA, budgets=[1e21])
    with pytest.raises(UserError, match=r"law needs optima at two budgets.*add larger ones"):
        fit_isoflop(points)
    mixed = planted_points(CHINCHILLA) + planted_points(CHINCHILLA, budgets=[1e21], factors=(10.0, 20.0, 40.0))
    found = fit_isoflop(mixed, draws=20)
    assert found.left_out == ["budget 1e+21: its optimum is not between the sizes tried: add smaller ones"]
    assert found.size.exponent == pytest.approx(CHINCHILLA.size_exponent, abs=1e-3)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(UserError, match=r"masked: L = E .* needs six points"):
        fit_parametric(planted_points(CHINCHILLA, budgets=[1e19]), draws=0)
    with pytest.raises(UserError, match="fewer than 3 sizes"):
        fit_isoflop(planted_points(CHINCHILLA, factors=(0.5, 2.0)))


def test_three_sizes_leave_the_noise_to_standard_errors() -> None:
    points = planted_points(CHINCHILLA, factors=(0.4, 1.0, 2.5))
    unknown = fit_isoflop(points, draws=50).size.exponent_interval
    assert np.isnan([unknown.low, unknown.high]).all()
    assert str(unknown) == f"{unknown.value:.3g}"
    with_errors = [Measured(**{**vars(point), "loss_se": 0.003 * point.loss}) for point in points]
    known = fit_isoflop(with_errors, draws=200).size.exponent_interval
    assert known.low < known.value < known.high


def test_intervals() -> None:
    draws = np.linspace(0, 1, 1001)
    assert interval(0.5, draws) == pytest.approx(Interval(0.5, 0.025, 0.975))
    assert np.isnan(interval(0.5, draws[:10]).low)
    holes = np.concatenate([draws, np.full(500, np.nan)])
    assert interval(0.5, holes) == pytest.approx(Interval(0.5, 0.025, 0.975))
