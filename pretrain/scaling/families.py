"""Model shapes from a size: depth, width and features between the published shapes of a family, and below them.

The size is N, the weights of the layers' matrices (the N of 6·N·D). Between two published shapes, depth, the ratio
of features to width and the queries per key head follow straight lines in log N; below the smallest, depth goes
with N^(1/4). Width follows from those, in whole heads; the features make up the rest, so that N is met closely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pretrain.shape import ModelShape
from runtime.errors import UserError, suggestion

Family = Literal["llada", "ar"]

_VOCABULARY = 126_464
_DEPTH_EXPONENT = 0.25
_NEAR = 0.01  # a size this near a published one means that shape
_HEAD_WIDTHS = ((96, 16), (384, 32), (3584, 64), (math.inf, 128))
_FEATURES = 64  # above the smallest published shape, features come in so many, for tensor ranks to divide
_SMALLEST = 1000


def _published(layers: int, width: int, kv_heads: int, ffn: int) -> ModelShape:
    return ModelShape(layers=layers, width=width, heads=32, kv_heads=kv_heads, ffn=ffn, vocabulary=_VOCABULARY)


# arXiv 2502.09992, table 5
PUBLISHED: dict[str, dict[str, ModelShape]] = {
    "llada": {"1B": _published(22, 2048, 4, 5634), "8B": _published(32, 4096, 32, 12288)},
    "ar": {"1B": _published(22, 2048, 4, 5634), "7B": _published(28, 4096, 8, 13440)},
}


@dataclass(frozen=True)
class _Proportions:
    """What decides a shape besides its size."""

    layers: int
    features: float  # of SwiGLU, times the width
    group: int  # query heads per key head


def shape_of_size(family: str, size: str | float, vocabulary: int = _VOCABULARY) -> ModelShape:
    """The shape of `family` (`llada` or `ar`) with `size` weights in its layers, or the published `1B`, `7B`, `8B`.

    A size within 1 % of a published one gives that very shape; others are met within the grain of a feature.
    `vocabulary` is taken as it is. Raises UserError for an unknown family or name, or a size below 1000.
    """
    if family not in PUBLISHED:
        raise UserError(f"family {family!r} is none of {', '.join(PUBLISHED)}{suggestion(family, PUBLISHED)}")
    known = PUBLISHED[family]
    number = _number(family, size)
    for shape in known.values():
        if abs(number / _size(shape) - 1) <= _NEAR:
            return shape.model_copy(update={"vocabulary": vocabulary})
    proportions = _proportions(list(known.values()), number)
    width, head_width = _width(number, proportions)
    heads = width // head_width
    group = math.gcd(proportions.group, heads)
    attention = 2 * width * width * (1 + 1 / group)
    grain = _FEATURES if number > _size(next(iter(known.values()))) else 2
    ffn = grain * round((number / proportions.layers - attention) / (3 * width) / grain)
    return ModelShape(
        layers=proportions.layers,
        width=width,
        heads=heads,
        kv_heads=heads // group,
        ffn=max(2, ffn),
        vocabulary=vocabulary,
    )


def _number(family: str, size: str | float) -> float:
    if isinstance(size, str):
        named = PUBLISHED[family].get(size.upper())
        if named is not None:
            return _size(named)
    try:
        number = float(size)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= _SMALLEST):
        names = ", ".join(PUBLISHED[family])
        raise UserError(f"size {size!r} is neither one of {names} nor a number of weights from {_SMALLEST} up")
    return number


def _size(shape: ModelShape) -> int:
    return shape.parameters().non_embedding_matrices


def _proportions(known: list[ModelShape], size: float) -> _Proportions:
    """Straight lines in log N through the published shapes, continued above the last; below the first, see module."""
    logs = np.log([_size(shape) for shape in known])
    smallest = known[0]
    if size < _size(smallest):
        layers = smallest.layers * (size / _size(smallest)) ** _DEPTH_EXPONENT
        group = smallest.heads // smallest.kv_heads if size > _size(smallest) / 2 else 1
        return _Proportions(max(1, round(layers)), smallest.ffn / smallest.width, group)
    share = float((math.log(size) - logs[0]) / (logs[1] - logs[0]))
    first, last = known[0], known[1]
    layers = first.layers * (last.layers / first.layers) ** share
    features = first.ffn / first.width * (last.ffn * first.width / (last.width * first.ffn)) ** share
    nearest = first if share < 0.5 else last
    return _Proportions(round(layers), features, nearest.heads // nearest.kv_heads)


def _width(size: float, proportions: _Proportions) -> tuple[int, int]:
    """Width in whole heads, many heads by fours and eights so that tensor ranks divide them; the width of a head."""
    per_square = proportions.layers * (2 + 2 / proportions.group + 3 * proportions.features)
    ideal = math.sqrt(size / per_square)
    head_width = next(width for below, width in _HEAD_WIDTHS if ideal < below)
    heads = ideal / head_width
    whole = next(step for step, from_heads in ((8, 20), (4, 10), (2, 5), (1, 0)) if heads >= from_heads)
    return max(1, round(heads / whole)) * whole * head_width, head_width
