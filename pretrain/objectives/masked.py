"""The masked-diffusion objective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.objectives.base import Sample
from pretrain.objectives.noise import NoiseSource


@dataclass(frozen=True)
class MaskedSamples:
    """Loss of a sample: Σ over masked positions of CE / p (LLaDA, 2502.09992 eq. 3 with its reference numerics).

    The batch loss is the sum over all samples divided by the sum of their logical lengths.
    """

    noise: NoiseSource
    mask_id: int
    pad_id: int

    def prepare(self, tokens: np.ndarray, index: int) -> Sample:
        """See `SampleObjective.prepare`."""
        noise = self.noise.draw(index)
        length = min(noise.length, len(tokens))
        masked = noise.masked[: len(tokens)]
        inputs = np.where(masked, self.mask_id, tokens)
        inputs[length:] = self.pad_id
        positions = np.flatnonzero(masked)
        weights = np.full(len(positions), 1.0 / noise.probability, dtype=np.float32)
        return Sample(inputs, positions, tokens[positions], weights, noise.level, length)
