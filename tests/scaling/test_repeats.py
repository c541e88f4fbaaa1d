"""The data-constrained law: its limits, its first order, and constants that were planted."""

import numpy as np
import pytest

from pretrain.scaling.points import Measured
from pretrain.scaling.repeats import RepeatLaw, effective, fit_repeats
from runtime.errors import UserError
from tests.support.planted import CHINCHILLA


def test_limits_of_effective_tokens() -> None:
    unique, worth = 1e8, 15.0
    assert effective(unique, 0.0, worth) == unique  # one epoch
    assert effective(unique, 1e9, worth) == pytest.approx((1 + worth) * unique)
    epochs = np.linspace(0, 200, 1000)
    grown = effective(unique, epochs, worth)
    assert (np.diff(grown) > 0).all()
    assert (grown <= unique * (1 + epochs) + 1).all()
    assert effective(unique, 1.0, 1e9) == pytest.approx(2 * unique)  # repeats that are worth as much as fresh data


def test_each_repeat_is_worth_a_share_of_the_one_before() -> None:
    """Σ U·(1 − δ)^k with δ = 1/(1 + R*): the exponential is its limit for small δ (arXiv 2305.16264, appendix A)."""
    repeats, missing = 20, []
    for worth in (50.0, 500.0, 5000.0):
        delta = 1 / (1 + worth)
        geometric = sum((1 - delta) ** k for k in range(repeats + 1))
        assert geometric == pytest.approx(1 + worth * (1 - (1 - delta) ** repeats))  # R* is (1 − δ)/δ
        missing.append(float(effective(1.0, float(repeats), worth)) / geometric - 1)
        assert abs(missing[-1]) < delta
    assert missing[1] / missing[2] == pytest.approx(10, rel=0.1)


def points_of(law: RepeatLaw, noise: float = 0.0, seed: int = 0) -> list[Measured]:
    generator = np.random.default_rng(seed)
    points = []
    for size in (1e7, 1e8, 1e9):
        for unique in (1e8, 1e9):
            for epochs in (1, 2, 4, 8, 16, 32, 64):
                loss = float(law.loss(np.array(size), np.array(unique), np.array(float(epochs))))
                loss *= 1 + noise * float(generator.standard_normal())
                tokens = unique * epochs
                points.append(Measured("masked", size, tokens, 6 * size * tokens, loss, unique_tokens=unique))
    return points


@pytest.mark.parametrize(("data", "size"), [(15.0, 5.0), (494.0, 1266.0), (31.0, 55.0)])
def test_planted_worth_of_repeats_is_recovered(data: float, size: float) -> None:
    law = RepeatLaw(CHINCHILLA, data, size)
    found = fit_repeats(points_of(law), CHINCHILLA, draws=0)
    assert found.law.data_worth == pytest.approx(data, rel=1e-3)
    assert found.law.size_worth == pytest.approx(size, rel=1e-2)
    assert found.r_squared == pytest.approx(1)
    assert found.points == 36  # one epoch says nothing of repeats


def test_noise_gives_intervals() -> None:
    found = fit_repeats(points_of(RepeatLaw(CHINCHILLA, 15.0, 5.0), noise=0.002), CHINCHILLA, draws=40)
    assert found.data_worth.low < 15 < found.data_worth.high
    assert found.data_worth.high / found.data_worth.low < 2
    assert 0.97 < found.r_squared < 1


def test_one_epoch_is_the_law_of_fresh_data() -> None:
    law = RepeatLaw(CHINCHILLA, 15.0, 5.0)
    size, unique = np.array(1e7), np.array(1e9)
    assert size < law.enough_parameters(unique)
    assert law.loss(size, unique, np.array(1.0)) == pytest.approx(CHINCHILLA.loss(size, unique))
    large = np.array(1e12)  # more than the tokens are good for: less than a law of fresh data would promise
    assert law.loss(large, unique, np.array(1.0)) > CHINCHILLA.loss(large, unique)


def test_repeats_are_needed() -> None:
    fresh = [Measured("masked", 1e7, 1e9, 6e16, 3.0, unique_tokens=1e9)] * 5
    with pytest.raises(UserError, match=r"masked: the worth of repeats needs three points or more"):
        fit_repeats(fresh, CHINCHILLA)
