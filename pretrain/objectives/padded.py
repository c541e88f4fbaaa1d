"""Short samples filled up to the shape that every layout needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pretrain.objectives.base import Sample, SampleObjective


@dataclass(frozen=True)
class PaddedSamples:
    """Samples of `objective`, each with padding after its last token up to `sequence_length` positions.

    Padding has no row that counts, is no part of the denominator and is not attended to (`Sample.length` says where
    it begins): loss and gradient are those of the short sequence.
    """

    objective: SampleObjective
    sequence_length: int
    pad_id: int

    def prepare(self, tokens: np.ndarray, index: int) -> Sample:
        """See `SampleObjective.prepare`; always `sequence_length` positions."""
        sample = self.objective.prepare(tokens, index)
        inputs = np.full(self.sequence_length, self.pad_id, dtype=sample.inputs.dtype)
        inputs[: len(sample.inputs)] = sample.inputs
        return replace(sample, inputs=inputs)
