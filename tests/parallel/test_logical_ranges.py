"""Boxes, ranges and the pieces of a fragment, by enumeration."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.engines.base import Fragment
from parallel.logical import Block, Extent, Rectangle, boxes_of_range

SHAPES: list[Extent] = [(n,) for n in range(1, 7)] + list(itertools.product(range(1, 7), range(1, 7)))


def ranges(numel: int) -> Iterator[tuple[int, int]]:
    return itertools.combinations_with_replacement(range(numel + 1), 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_of_a_range_are_the_range_in_order(shape: Extent) -> None:
    flat = torch.arange(math.prod(shape))
    tensor = flat.view(shape)
    for start, stop in ranges(flat.numel()):
        boxes = boxes_of_range(shape, start, stop)
        assert len(boxes) <= (3 if len(shape) == 2 else 1)
        taken = [tensor[box.slices].flatten() for box in boxes]
        assert all(len(values) == box.numel > 0 for values, box in zip(taken, boxes, strict=True))
        assert torch.cat([*taken, flat[:0]]).tolist() == list(range(start, stop))


def test_three_boxes_happen_and_whole_matrices_are_one() -> None:
    assert len(boxes_of_range((4, 5), 3, 17)) == 3
    assert boxes_of_range((4, 5), 0, 20) == [Rectangle((0, 0), (4, 5))]
    assert boxes_of_range((4, 5), 7, 7) == []


boxes = st.integers(1, 3).flatmap(
    lambda dims: st.tuples(
        *[
            st.builds(
                Rectangle,
                st.tuples(*[st.integers(0, 6)] * dims),
                st.tuples(*[st.integers(0, 5)] * dims),
            )
        ]
        * 2
    )
)


def cells(box: Rectangle) -> set[Extent]:
    return set(itertools.product(*(range(a, a + n) for a, n in zip(box.start, box.size, strict=True))))


@settings(deadline=None)
@given(boxes)
def test_intersection_is_that_of_the_cells(pair: tuple[Rectangle, Rectangle]) -> None:
    one, other = pair
    common = one.intersect(other)
    assert (cells(common) if common else set()) == cells(one) & cells(other)
    assert common == other.intersect(one)
    if common:
        assert common.numel == len(cells(common)) > 0
        assert common.intersect(one) == common  # idempotent


@settings(deadline=None)
@given(boxes)
def test_moving_keeps_the_size_and_goes_back(pair: tuple[Rectangle, Rectangle]) -> None:
    box, origins = pair
    moved = box.moved(origins.start, origins.size)
    assert moved.size == box.size
    assert moved.moved(origins.size, origins.start) == box
    shift = tuple(b - a for a, b in zip(origins.start, origins.size, strict=True))
    assert moved.start == tuple(a + s for a, s in zip(box.start, shift, strict=True))
    assert box.moved(box.start, (0,) * len(box.start)).start == (0,) * len(box.start)


# A local parameter [5, 3] of two logical tensors: rows 2.. of one [4, 3] and columns 1..3 of a [2, 5], and a row of
# padding that is nobody's.
FUSED = (
    Block("a", (4, 3), (2, 0), Rectangle((0, 0), (2, 3))),
    Block("b", (2, 5), (0, 1), Rectangle((2, 0), (2, 3))),
)


def test_pieces_of_every_fragment_are_its_elements_once_each() -> None:
    shape = (5, 3)
    for start, stop in ranges(15):
        values = torch.arange(start, stop, dtype=torch.float32)
        found: dict[tuple[str, Extent], float] = {}
        for name, logical_shape, where, view in Fragment("weight", shape, FUSED, start, values, True).pieces():
            assert logical_shape == {"a": (4, 3), "b": (2, 5)}[name]
            for cell, value in zip(sorted(cells(where)), view.flatten().tolist(), strict=True):
                assert (name, cell) not in found
                found[name, cell] = value
        expected = {}
        for index in range(start, stop):
            row, column = divmod(index, 3)
            if row < 4:
                name, cell = ("a", (row + 2, column)) if row < 2 else ("b", (row - 2, column + 1))
                expected[name, cell] = float(index)
        assert found == expected


def test_pieces_are_live_views() -> None:
    values = torch.zeros(11)
    for _, _, _, view in Fragment("weight", (5, 3), FUSED, 2, values, True).pieces():
        view.fill_(1.0)
    assert values.tolist() == [1.0] * 10 + [0.0]  # element 12 of the parameter is the padding row's


def test_pieces_of_a_vector() -> None:
    block = Block("norm", (6,), (0,), Rectangle((0,), (6,)))
    (piece,) = Fragment("exp_avg", (6,), (block,), 2, torch.arange(3.0), True).pieces()
    assert piece[:3] == ("norm", (6,), Rectangle((2,), (3,)))
    assert piece[3].tolist() == [0.0, 1.0, 2.0]
