"""Logical tensors: the names and global shapes every layout agrees on, and who holds which rectangle of them.

A parameter of the model may hold several logical tensors (a fused query/key/value matrix) or a part of one
(a tensor-parallel shard). `Block` says which rectangle of the local parameter is which rectangle of which
logical tensor; the checkpoint needs nothing else to fit any layout into any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

Extent = tuple[int, ...]


@dataclass(frozen=True)
class Rectangle:
    """A box of a tensor: first index and size along every dim."""

    start: Extent
    size: Extent

    def intersect(self, other: Rectangle) -> Rectangle | None:
        """The common box, or None."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(
            min(a + n, b + m) for a, n, b, m in zip(self.start, self.size, other.start, other.size, strict=True)
        )
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Rectangle(start, tuple(b - a for a, b in zip(start, stop, strict=True)))

    def moved(self, source: Extent, target: Extent) -> Rectangle:
        """The same box seen from another origin: `source` becomes `target`."""
        return Rectangle(tuple(a - s + t for a, s, t in zip(self.start, source, target, strict=True)), self.size)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index expression of this box."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))

    @property
    def numel(self) -> int:
        """Number of elements."""
        product = 1
        for n in self.size:
            product *= n
        return product


@dataclass(frozen=True)
class Block:
    """`box` of the local parameter is the box of the same size at `offset` of logical tensor `name` with `shape`."""

    name: str
    shape: Extent
    offset: Extent
    box: Rectangle


def annotate(parameter: torch.nn.Parameter, blocks: Sequence[Block]) -> None:
    """Say which logical tensors `parameter` holds."""
    parameter.logical_blocks = tuple(blocks)  # type: ignore[attr-defined]


def rows_block(name: str, rows: int, width: int, first: int, count: int, local_first: int) -> Block:
    """Block of `count` rows of a logical [rows, width] matrix, held from local row `local_first`."""
    return Block(name, (rows, width), (first, 0), Rectangle((local_first, 0), (count, width)))


def whole_block(name: str, shape: Extent) -> Block:
    """Block of a parameter that is the whole logical tensor."""
    zero = (0,) * len(shape)
    return Block(name, shape, zero, Rectangle(zero, shape))


def logical_parameters(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Parameter, tuple[Block, ...]]]:
    """Every parameter of `model` with the blocks of logical tensors it holds, in a fixed order."""
    for parameter in model.parameters():
        yield parameter, parameter.logical_blocks  # type: ignore[attr-defined]


def logical_shapes(model: torch.nn.Module) -> dict[str, Extent]:
    """Names and global shapes of the logical tensors that this rank holds a part of."""
    return {block.name: block.shape for _, blocks in logical_parameters(model) for block in blocks}


def boxes_of_range(shape: Extent, start: int, stop: int) -> list[Rectangle]:
    """Cut elements [start, stop) of a row-major tensor into at most three boxes.

    Optimizer shards are flat ranges; a flat range of a matrix is the end of one row, some whole rows and
    the beginning of another.
    """
    if len(shape) == 1:
        return [Rectangle((start,), (stop - start,))] if stop > start else []
    assert len(shape) == 2, "logical tensors are vectors and matrices"
    width = shape[1]
    boxes: list[Rectangle] = []
    while start < stop:
        row, column = divmod(start, width)
        if column or stop - start < width:
            count = min(width - column, stop - start)
            boxes.append(Rectangle((row, column), (1, count)))
        else:
            rows = (stop - start) // width
            count = rows * width
            boxes.append(Rectangle((row, 0), (rows, width)))
        start += count
    return boxes


def row_slices(shape: Extent, elements: int = 1 << 20) -> Iterator[Rectangle]:
    """Cut a tensor into runs of whole rows with at most `elements` elements each (but at least one row)."""
    rest = shape[1:]
    rows = max(1, elements // math.prod(rest))
    for first in range(0, shape[0], rows):
        yield Rectangle((first, *(0 for _ in rest)), (min(rows, shape[0] - first), *rest))
