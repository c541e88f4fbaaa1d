"""The grid's kinds of data make rounding grow alike, so that one bound is as strict for each of them."""

import functools

import pytest
import torch

from tests.support.grid import Case, feed_of
from tests.support.reference_model import Weights, reference_losses, starting_weights

_ROUNDING = 2.0**-24  # half a unit in the last place of float32
_SEEDS = 6


@functools.cache
def _growth(data: str, lr: float | None = None) -> float:
    """Largest relative change of the gradient norm in any step, in units of the rounding from which it came.

    `lr`: the learning rate, if not the grid's own. The plain reference runs in float64, so no layout and no float32
    has a part in it: all starting weights are changed by about a float32 rounding each, at random.
    """
    case = Case(1, {}, data, micro_batch=8)
    config, feed = case.config(), feed_of(case)
    if lr is not None:
        config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": lr})})
    start = starting_weights(config)
    undisturbed = reference_losses(config, feed, case.steps, start)
    largest = 0.0
    for seed in range(_SEEDS):
        disturbed = reference_losses(config, feed, case.steps, _rounded(start, seed))
        pairs = zip(disturbed.grad_norms, undisturbed.grad_norms, strict=True)
        largest = max(largest, *(abs(a - b) / b for a, b in pairs))
    return largest / _ROUNDING


def _rounded(weights: Weights, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: weight * (1 + _ROUNDING * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        for name, weight in weights.items()
    }


def test_edge_data_at_its_learning_rate_makes_rounding_grow_as_ordinary_data_does() -> None:
    edge, masked = _growth("edge"), _growth("masked")
    assert 0.5 * masked < edge < 1.5 * masked, f"edge data {edge:.0f}, masked data {masked:.0f}"


@pytest.mark.slow
def test_other_data_makes_rounding_grow_less_and_edge_data_at_the_others_learning_rate_more() -> None:
    masked = _growth("masked")
    less = {data: _growth(data) for data in ("autoregressive", "documents")}
    assert max(less.values()) < masked, f"{less}, masked data {masked:.0f}"
    edge = _growth("edge", 0.003)
    assert edge > 2 * masked, f"edge data at 0.003: {edge:.0f}, masked data {masked:.0f}"
