"""Noise as a pure function of (seed, sample index): no state, no ranks, no order of evaluation.

Sample i stands at position j = i mod G of global batch i div G. Its noise level comes from one stratum of
[0, 1), its masks from a counter-based generator keyed by (seed, i). Whoever asks, and under whatever layout,
gets the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.order import Permutation

_LEVEL, _LENGTH, _MASK = 1, 2, 3


@dataclass(frozen=True)
class Noise:
    """Noise of one sample: level t in [0, 1), mask probability p, logical length, masked positions [S] (bool)."""

    level: float
    probability: float
    length: int
    masked: np.ndarray


@dataclass(frozen=True)
class NoiseSource:
    """Draws noise for windows of `sequence_length` tokens in global batches of `global_batch` samples.

    p = (1 - epsilon)·t + epsilon (LLaDA's reference code). With `stratified`, a step's levels are
    t = (stratum + u) / G with a keyed permutation of the strata over the step's samples (MDLM's low-discrepancy
    sampler over the whole global batch); each t keeps its uniform marginal.
    """

    seed: int
    sequence_length: int
    global_batch: int
    epsilon: float
    random_length: float
    stratified: bool

    def draw(self, index: int) -> Noise:
        """The noise of global sample `index`."""
        level = self._level(index)
        probability = (1.0 - self.epsilon) * level + self.epsilon
        length = self._length(index)
        masked = self._generator(_MASK, index).random(self.sequence_length) < probability
        masked[length:] = False
        return Noise(level, probability, length, masked)

    def _level(self, index: int) -> float:
        jitter = float(self._generator(_LEVEL, index).random())
        if not self.stratified:
            return jitter
        step, position = divmod(index, self.global_batch)
        stratum = Permutation(self.global_batch, key=_mix(self.seed, step))(position)
        return (stratum + jitter) / self.global_batch

    def _length(self, index: int) -> int:
        if self.random_length == 0.0:
            return self.sequence_length
        generator = self._generator(_LENGTH, index)
        if generator.random() >= self.random_length:
            return self.sequence_length
        return int(generator.integers(1, self.sequence_length + 1))

    def _generator(self, purpose: int, index: int) -> np.random.Generator:
        key = np.array([self.seed, purpose], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, index, 0], dtype=np.uint64)))


def _mix(seed: int, step: int) -> int:
    """A 64-bit key from (seed, step): splitmix64's finaliser."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + step + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
