"""Initial weights as a pure function of (seed, logical name): the same under every layout.

Matrices are normal with standard deviation `init_std`, the two projections back into the residual stream
(attention output, feed-forward down) smaller by sqrt(2·layers) (GPT-2; LLaDA does not report its own), norms one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import xxhash

from parallel.engines.base import Engine
from parallel.logical import Extent, Rectangle, logical_parameters
from pretrain.shape import ModelShape

_ROWS_PER_DRAW = 256


@torch.no_grad()
def initialise(model: torch.nn.Module, shape: ModelShape, seed: int) -> None:
    """Fill every parameter of a model that no engine holds, in place; padding rows of the vocabulary become zero."""
    for parameter, blocks in logical_parameters(model):
        parameter.zero_()
        for block in blocks:
            where = Rectangle(block.offset, block.box.size)
            parameter[block.box.slices] = initial_values(block.name, block.shape, where, shape, seed).to(parameter)


@torch.no_grad()
def initialise_engine(engine: Engine, shape: ModelShape, seed: int) -> None:
    """Fill the weights that an engine holds, each rank only the pieces it owns; Adam's moments become zero."""
    for fragment in engine.fragments():
        fragment.values.zero_()
        if fragment.kind == "weight":
            for name, logical_shape, where, view in fragment.pieces():
                view.copy_(initial_values(name, logical_shape, where, shape, seed))
    engine.finish_load(0)


def initial_values(name: str, logical_shape: Extent, where: Rectangle, shape: ModelShape, seed: int) -> torch.Tensor:
    """Initial float32 values of box `where` of logical tensor `name`."""
    if len(logical_shape) == 1:
        return torch.ones(where.size)
    return _normal(name, logical_shape, where, seed) * _deviation(name, shape)


def _deviation(name: str, shape: ModelShape) -> float:
    residual = name.endswith(("attention.output", "feed_forward.down"))
    return shape.init_std / math.sqrt(2 * shape.layers) if residual else shape.init_std


def _normal(name: str, logical_shape: Extent, where: Rectangle, seed: int) -> torch.Tensor:
    """Rows of a logical matrix in draws of fixed size, so that a shard draws only what it overlaps."""
    (first, column), (rows, columns) = where.start, where.size
    key = xxhash.xxh3_64_intdigest(name.encode(), seed=seed)
    values = np.empty((rows, columns), dtype=np.float32)
    for draw in range(first // _ROWS_PER_DRAW, -(-(first + rows) // _ROWS_PER_DRAW)):
        generator = np.random.Generator(np.random.Philox(key=np.array([key, draw], dtype=np.uint64)))
        top = draw * _ROWS_PER_DRAW
        count = min(_ROWS_PER_DRAW, logical_shape[0] - top)
        drawn = generator.standard_normal((count, logical_shape[1]), dtype=np.float32)
        low, high = max(first, top), min(first + rows, top + count)
        values[low - first : high - first] = drawn[low - top : high - top, column : column + columns]
    return torch.from_numpy(values)
