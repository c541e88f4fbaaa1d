"""Initial weights: the same logical tensor whatever part is asked for, with the deviations that are stated."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.logical import Rectangle
from pretrain.initialise import initial_values, initialise
from pretrain.shape import ModelShape
from tests.support.models import local_model
from tests.support.tiny import tiny_config

SHAPE = tiny_config().model
ROWS, COLUMNS = 700, 5  # nearly three draws of rows


def box(first: int, last: int, left: int = 0, right: int = COLUMNS) -> Rectangle:
    return Rectangle((first, left), (last - first, right - left))


def values(where: Rectangle, name: str = "blocks.0.attention.query", seed: int = 3, **shape: Any) -> torch.Tensor:
    return initial_values(name, (ROWS, COLUMNS), where, SHAPE.model_copy(update=shape), seed)


WHOLE = values(box(0, ROWS))


@settings(deadline=None)
@given(st.integers(0, ROWS - 1), st.data())
def test_any_part_is_that_part_of_the_whole(first: int, data: st.DataObject) -> None:
    last = data.draw(st.integers(first + 1, ROWS))
    left = data.draw(st.integers(0, COLUMNS - 1))
    right = data.draw(st.integers(left + 1, COLUMNS))
    where = box(first, last, left, right)
    assert torch.equal(values(where), WHOLE[where.slices])


@pytest.mark.parametrize("first", [0, 255, 256, 257, 511, 512, 699])
def test_single_rows_at_the_edges_of_draws(first: int) -> None:
    assert torch.equal(values(box(first, first + 1)), WHOLE[first : first + 1])


def large(name: str, std: float = 0.02, layers: int = 8) -> torch.Tensor:
    shape = SHAPE.model_copy(update={"init_std": std, "layers": layers})
    return initial_values(name, (600, 500), Rectangle((0, 0), (600, 500)), shape, 1).double()


@pytest.mark.parametrize("std", [0.02, 0.5])
@pytest.mark.parametrize(
    "name", ["embedding", "head", "blocks.0.attention.query", "blocks.3.feed_forward.gate", "blocks.7.feed_forward.up"]
)
def test_deviation_is_the_stated_one(name: str, std: float) -> None:
    """300,000 values: the estimate's own error is 0.13 %."""
    drawn = large(name, std)
    assert drawn.std().item() == pytest.approx(std, rel=0.01)
    assert abs(drawn.mean().item()) < 4 * std / math.sqrt(drawn.numel())
    assert ((drawn / std) ** 4).mean().item() == pytest.approx(3.0, rel=0.03)  # normal, not uniform or cut


@pytest.mark.parametrize("layers", [1, 8, 32])
@pytest.mark.parametrize("name", ["blocks.0.attention.output", "blocks.0.feed_forward.down"])
def test_projections_into_the_residual_stream_shrink_with_depth(name: str, layers: int) -> None:
    assert large(name, layers=layers).std().item() == pytest.approx(0.02 / math.sqrt(2 * layers), rel=0.01)


def test_names_and_seeds_draw_different_values() -> None:
    drawn = [
        values(box(0, 4), name, seed)
        for name in ("embedding", "head", "blocks.0.attention.query", "blocks.1.attention.query")
        for seed in (0, 1, 2**64 - 1)
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one != other).all()
            assert abs(float(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1])) < 0.9


def test_rows_of_different_draws_differ() -> None:
    assert (WHOLE[:256] != WHOLE[256:512]).all()


def test_vectors_are_one() -> None:
    assert torch.equal(initial_values("norm", (9,), Rectangle((2,), (5,)), SHAPE, 3), torch.ones(5))


def test_values_are_float32_and_leave_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert values(box(3, 5)).dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_is_filled_whatever_was_in_it() -> None:
    config = tiny_config(model__kv_heads=2)
    model = local_model(config)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    initialise(model, config.model, config.train.seed)
    for parameter, before in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter, before)
    initialise(model, config.model, config.train.seed + 1)
    changed = [not torch.equal(p, b) for p, b in zip(model.parameters(), expected, strict=True)]
    assert changed == [p.dim() == 2 for p in model.parameters()]


def test_shape_of_the_model_does_not_move_other_tensors() -> None:
    """A deeper model starts from the same first layers, but for the residual projections' scale."""
    deeper = ModelShape(**SHAPE.model_dump() | {"layers": 9})
    for name in ("embedding", "blocks.1.attention.key"):
        where = Rectangle((0, 0), (20, 30))
        assert torch.equal(
            initial_values(name, (64, 64), where, SHAPE, 3), initial_values(name, (64, 64), where, deeper, 3)
        )
