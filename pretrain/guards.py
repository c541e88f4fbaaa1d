"""Refuses optimizer steps that would harm: a loss or gradient norm that is not finite, or a spike.

The verdict is a function of numbers that all ranks share, so all ranks come to the same one. A refused step leaves
weights and moments as they are to the bit; the data goes on.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from runtime.settings import Settings

_NORMAL_CONSISTENT = 1.4826  # median absolute deviation × this = standard deviation of a normal distribution


class GuardConfig(Settings):
    """What counts as harm.

    `spike`: robust z-score, against the last `window` accepted steps, above which a step is refused (None: only
    values that are not finite are refused). Nothing is a spike before `minimum` steps were seen. `patience` refused
    steps in a row stop the run.
    """

    spike: float | None = Field(None, gt=0)
    window: int = Field(128, gt=0)
    minimum: int = Field(32, gt=1)
    patience: int = Field(5, gt=0)


class Guard:
    """Judges steps; `state` is what a checkpoint must keep so that a continued run judges alike."""

    def __init__(self, config: GuardConfig, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self._config = config
        self.refused = int(state.get("refused", 0))
        self.refused_in_a_row = int(state.get("refused_in_a_row", 0))
        self._losses: deque[float] = deque(state.get("losses", ()), maxlen=config.window)
        self._norms: deque[float] = deque(state.get("norms", ()), maxlen=config.window)

    def accepts(self, loss: float, grad_norm: float) -> bool:
        """Judge a step by its mean loss (nats per token) and gradient norm before clipping."""
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        return finite and not (self._spikes(loss, self._losses) or self._spikes(grad_norm, self._norms))

    def note(self, loss: float, grad_norm: float, accepted: bool) -> None:
        """Remember how the step was judged."""
        if accepted:
            self.refused_in_a_row = 0
            self._losses.append(loss)
            self._norms.append(grad_norm)
        else:
            self.refused += 1
            self.refused_in_a_row += 1

    @property
    def exhausted(self) -> bool:
        """Whether so many steps in a row were refused that the run must stop."""
        return self.refused_in_a_row >= self._config.patience

    def state(self) -> dict[str, Any]:
        """JSON-ready; floats keep every bit."""
        return {
            "refused": self.refused,
            "refused_in_a_row": self.refused_in_a_row,
            "losses": list(self._losses),
            "norms": list(self._norms),
        }

    def _spikes(self, value: float, recent: Sequence[float]) -> bool:
        if self._config.spike is None or len(recent) < self._config.minimum:
            return False
        middle = statistics.median(recent)
        spread = _NORMAL_CONSISTENT * statistics.median(abs(x - middle) for x in recent)
        return value - middle > self._config.spike * max(spread, 1e-12)
