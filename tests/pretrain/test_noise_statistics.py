"""Distributions of the noise against their closed forms, with fixed seeds: a verdict never changes by chance."""

import numpy as np
import pytest
from scipy import stats

from pretrain.objectives.noise import NoiseSource

UNLIKELY = 1e-4


def source(**changes: object) -> NoiseSource:
    shape = {"seed": 20, "sequence_length": 12, "global_batch": 4}
    values = {**shape, "epsilon": 1e-12, "random_length": 0.0, "stratified": True, **changes}
    return NoiseSource(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("stratified", [True, False])
def test_each_position_of_the_batch_has_a_uniform_level(stratified: bool) -> None:
    noise = source(stratified=stratified)
    for position in range(4):
        levels = [noise.draw(step * 4 + position).level for step in range(2000)]
        assert stats.kstest(levels, "uniform").pvalue > UNLIKELY
        assert abs(np.corrcoef(levels[:-1], levels[1:])[0, 1]) < 4 / np.sqrt(2000)  # steps are independent


def test_strata_lower_the_variance_of_a_batchs_mean_level() -> None:
    """G strata: Var(mean) = 1 / (12 G^3) instead of 1 / (12 G)."""
    for stratified, expected in ((True, 1 / (12 * 4**3)), (False, 1 / (12 * 4))):
        noise = source(stratified=stratified)
        means = [np.mean([noise.draw(step * 4 + j).level for j in range(4)]) for step in range(2000)]
        assert np.mean(means) == pytest.approx(0.5, abs=4 * np.sqrt(expected / 2000))
        assert np.var(means) == pytest.approx(expected, rel=0.15)


def test_number_of_masks_is_uniform_over_levels() -> None:
    """∫ C(S,k) t^k (1-t)^(S-k) dt = 1/(S+1) for every k."""
    noise = source()
    counts = np.bincount([noise.draw(index).masked.sum() for index in range(6500)], minlength=13)
    assert stats.chisquare(counts).pvalue > UNLIKELY


def test_number_of_masks_is_binomial_given_the_level() -> None:
    """The randomised probability integral transform of a binomial count is uniform."""
    noise = source(epsilon=0.05)
    generator = np.random.default_rng(5)
    ranks = []
    for index in range(4000):
        drawn = noise.draw(index)
        low, high = stats.binom.cdf([drawn.masked.sum() - 1, drawn.masked.sum()], 12, drawn.probability)
        ranks.append(low + generator.random() * (high - low))
    assert stats.kstest(ranks, "uniform").pvalue > UNLIKELY


def test_positions_are_masked_alike_and_independently() -> None:
    noise = source(epsilon=0.05)
    draws = [noise.draw(index) for index in range(6000)]
    residuals = np.array([d.masked - d.probability for d in draws])
    variance = np.array([d.probability * (1 - d.probability) for d in draws])
    scores = residuals.sum(0) / np.sqrt(variance.sum())
    assert stats.chi2.sf((scores**2).sum(), 12) > UNLIKELY
    products = residuals.T @ residuals / np.sqrt((variance**2).sum())
    pairs = products[np.triu_indices(12, 1)]
    assert stats.chi2.sf((pairs**2).sum(), len(pairs)) > UNLIKELY


def test_masks_do_not_depend_on_the_level_beyond_its_probability() -> None:
    """The level's jitter and the masks come from different streams."""
    noise = source(epsilon=0.05)
    draws = [noise.draw(index) for index in range(4000)]
    scores = [(d.masked.sum() - 12 * d.probability) / np.sqrt(12 * d.probability * (1 - d.probability)) for d in draws]
    jitters = [d.level * 4 % 1 for d in draws]
    assert abs(np.corrcoef(scores, jitters)[0, 1]) < 4 / np.sqrt(4000)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 1.0])
def test_share_of_random_lengths(share: float) -> None:
    noise = source(random_length=share)
    short = sum(noise.draw(index).length < 12 for index in range(8000))
    expected = share * 11 / 12  # a random length may be the whole
    assert stats.binomtest(short, 8000, expected).pvalue > UNLIKELY
    assert (short == 0) == (share == 0.0)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_random_lengths_are_uniform_from_one(share: float) -> None:
    noise = source(random_length=share)
    lengths = np.array([noise.draw(index).length for index in range(8000)])
    counts = np.bincount(lengths, minlength=13)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:12]).pvalue > UNLIKELY
    if share == 1.0:
        assert stats.chisquare(counts[1:]).pvalue > UNLIKELY


def test_lengths_and_levels_are_independent() -> None:
    noise = source(random_length=1.0)
    draws = [noise.draw(index) for index in range(4000)]
    assert abs(np.corrcoef([d.level for d in draws], [d.length for d in draws])[0, 1]) < 4 / np.sqrt(4000)
