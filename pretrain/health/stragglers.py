"""Which ranks are slow, from the seconds that each has worked in every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_WINDOW = 16  # steps
_TRIMMED = _WINDOW // 4  # at either end
_EVERY = 4  # steps
_PASSED_OVER = 2  # first steps of an attempt: compilation, first connections
_SLOW = math.log(1.15)
_ERRORS = 4.0
_NORMAL_CONSISTENT = 1.4826  # median absolute deviation × this = standard deviation of a normal distribution
_TRIMMED_ERROR = 1.1  # standard error of a mean without the outer quarters = this × standard deviation / √n
_LEAST_TIME = 1e-6
_FEW = 8


@dataclass(frozen=True)
class Straggler:
    """A rank that takes `ratio` times as long as the median of its peers."""

    rank: int
    ratio: float


class Stragglers:
    """Compares ranks of the same role (pipeline stages differ by nature) over the last 16 steps, every 4 steps.

    A rank is slow if the mean of log(its seconds / median of its peers' seconds), without the outer quarters, is above
    log 1.15 and above 4 standard errors, so that noise alone names nobody.
    """

    def __init__(self, roles: Sequence[Hashable]) -> None:
        groups: dict[Hashable, list[int]] = {}
        for rank, role in enumerate(roles):
            groups.setdefault(role, []).append(rank)
        self._groups = [ranks for ranks in groups.values() if len(ranks) > 1]
        self._rows: deque[npt.NDArray[np.float64]] = deque(maxlen=_WINDOW)
        self._steps = 0
        self.slow: dict[int, float] = {}

    def note(self, seconds: Sequence[float]) -> bool:
        """Take in the seconds of every rank in a step. True if `slow` (ratio by rank) has been judged anew."""
        self._steps += 1
        if self._steps > _PASSED_OVER and self._groups:
            self._rows.append(np.log(np.maximum(seconds, _LEAST_TIME)))
        if len(self._rows) < _WINDOW or self._steps % _EVERY:
            return False
        table = np.array(self._rows)
        found = [straggler for ranks in self._groups for straggler in _slow(ranks, table[:, ranks])]
        self.slow = {straggler.rank: straggler.ratio for straggler in found}
        return True


def _slow(ranks: Sequence[int], table: npt.NDArray[np.float64]) -> list[Straggler]:
    """`table`: log seconds, [steps, ranks of one role]."""
    against = table - _median_of_others(table)
    middle = np.sort(against, axis=0)[_TRIMMED:-_TRIMMED].mean(axis=0)
    spread = _NORMAL_CONSISTENT * np.median(np.abs(against - np.median(against, axis=0)), axis=0)
    least = np.maximum(_SLOW, _ERRORS * _TRIMMED_ERROR * spread / math.sqrt(len(table)))
    return [Straggler(ranks[k], math.exp(middle[k])) for k in np.flatnonzero(middle > least).tolist()]


def _median_of_others(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if table.shape[1] > _FEW:  # one rank hardly moves the median of many
        return np.median(table, axis=1, keepdims=True)
    return np.stack([np.median(np.delete(table, k, axis=1), axis=1) for k in range(table.shape[1])], axis=1)
