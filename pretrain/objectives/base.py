"""What every objective gives the loop: per sample, the rows that count and how much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash

from parallel.engines.base import LEVEL_BINS


@dataclass(frozen=True)
class Sample:
    """One prepared sequence of S positions.

    `inputs` int64 [S]; `positions`, `targets`, `weights` of the rows that count [R]; `level` the noise level in
    [0, 1); `length` its logical length, which is also its share of the loss's denominator. `documents` int32 [S], if
    attention stays inside documents: the document of each position.
    """

    inputs: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    level: float
    length: int
    documents: np.ndarray | None = None

    @property
    def level_bin(self) -> int:
        """Bin of the noise level, 0..LEVEL_BINS-1."""
        return min(int(self.level * LEVEL_BINS), LEVEL_BINS - 1)

    def digest(self, position: int) -> tuple[int, int]:
        """Two 64-bit words over tokens, mask and level, bound to the sample's `position` in the global batch.

        The words of a global batch are added modulo 2^64, so that ranks can digest it without gathering it.
        """
        state = xxhash.xxh3_128(seed=position)
        for array in (self.inputs, self.positions, self.targets, self.weights):
            state.update(array.tobytes())
        if self.documents is not None:
            state.update(self.documents.tobytes())
        state.update(np.array([self.level, self.length], dtype=np.float64).tobytes())
        value = state.intdigest()
        return value & (1 << 64) - 1, value >> 64


class SampleObjective(Protocol):
    """Turns the tokens of global sample `index` into a training sample."""

    def prepare(self, tokens: np.ndarray, index: int) -> Sample:
        """`tokens` int64 [S], or fewer, → the sample of as many positions.

        Pure function of its arguments and the objective's settings.
        """
        ...
