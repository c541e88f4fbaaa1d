"""Which document each position of a window is in, for attention that stays inside documents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pretrain.objectives.base import Sample, SampleObjective

PADDING = -1


def document_numbers(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """Documents before each position: int32 [S]. A document ends with its EOS, the only one it has."""
    ended = np.cumsum(tokens == eos_id, dtype=np.int32)
    return np.concatenate([np.zeros(1, dtype=np.int32), ended[:-1]]) if len(tokens) else ended


@dataclass(frozen=True)
class DocumentSamples:
    """Samples of `objective` that know their documents; padding, and what a random length cuts off, is `PADDING`.

    `bos_id`, of the baseline: every document's first token is predicted from BOS, as a window's first one is, not
    from the document before.
    """

    objective: SampleObjective
    eos_id: int
    bos_id: int | None = None

    def prepare(self, tokens: np.ndarray, index: int) -> Sample:
        """See `SampleObjective.prepare`."""
        sample = self.objective.prepare(tokens, index)
        documents = np.full(len(sample.inputs), PADDING, dtype=np.int32)
        documents[: sample.length] = document_numbers(tokens, self.eos_id)[: sample.length]
        if self.bos_id is None:
            return replace(sample, documents=documents)
        inputs = sample.inputs.copy()
        inputs[1:][np.diff(documents) > 0] = self.bos_id
        return replace(sample, inputs=inputs, documents=documents)
