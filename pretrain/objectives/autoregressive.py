"""The autoregressive baseline's objective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.objectives.base import Sample


@dataclass(frozen=True)
class AutoregressiveSamples:
    """Exact negative log-likelihood of a window: input [BOS, x_1 … x_{S-1}], targets x_1 … x_S, weight 1.

    BOS instead of a token of the previous window, so that both families score the same S tokens with no
    context from outside the window.
    """

    bos_id: int

    def prepare(self, tokens: np.ndarray, index: int) -> Sample:
        """See `SampleObjective.prepare`."""
        del index  # no noise
        inputs = np.concatenate(([self.bos_id], tokens[:-1]))
        length = len(tokens)
        return Sample(inputs, np.arange(length), tokens, np.ones(length, dtype=np.float32), 0.0, length)
