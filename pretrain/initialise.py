"""Initial weights as a pure function of (seed, logical name): the same under every layout.

Matrices are normal with standard deviation `init_std`, the two projections back into the residual stream
(attention output, feed-forward down) smaller by sqrt(2·layers) (GPT-2; LLaDA does not report its own), norms one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import xxhash

from parallel.logical import Block, logical_parameters
from pretrain.shape import ModelShape

_ROWS_PER_DRAW = 256


@torch.no_grad()
def initialise(model: torch.nn.Module, shape: ModelShape, seed: int) -> None:
    """Fill every parameter of `model` in place; padding rows of the vocabulary become zero."""
    for parameter, blocks in logical_parameters(model):
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        parameter.zero_()
        for block in blocks:
            parameter[block.box.slices] = _normal(block, seed, _deviation(block.name, shape)).to(parameter)


def _deviation(name: str, shape: ModelShape) -> float:
    residual = name.endswith(("attention.output", "feed_forward.down"))
    return shape.init_std / math.sqrt(2 * shape.layers) if residual else shape.init_std


def _normal(block: Block, seed: int, deviation: float) -> torch.Tensor:
    """Rows of a logical matrix in draws of fixed size, so that a shard draws only what it overlaps."""
    (first, column), (rows, columns) = block.offset, block.box.size
    key = xxhash.xxh3_64_intdigest(block.name.encode(), seed=seed)
    values = np.empty((rows, columns), dtype=np.float32)
    for draw in range(first // _ROWS_PER_DRAW, -(-(first + rows) // _ROWS_PER_DRAW)):
        generator = np.random.Generator(np.random.Philox(key=np.array([key, draw], dtype=np.uint64)))
        top = draw * _ROWS_PER_DRAW
        count = min(_ROWS_PER_DRAW, block.shape[0] - top)
        drawn = generator.standard_normal((count, block.shape[1]), dtype=np.float32)
        low, high = max(first, top), min(first + rows, top + count)
        values[low - first : high - first] = drawn[low - top : high - top, column : column + columns]
    return torch.from_numpy(values) * deviation
