"""Fair timing on a machine whose speed drifts: contenders take turns, and ratios are taken within a turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LEAST_ROUNDS = 4


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of two values or more."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def show(self, digits: int = 2, scale: float = 1.0, unit: str = "") -> str:
        """`median [low … high]unit`, every number times `scale`."""
        low, median, high = (f"{v * scale:.{digits}f}" for v in (self.low, self.median, self.high))
        return f"{median}{unit} [{low} … {high}]"


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Spread of `over[r] / under[r]` over the rounds r, so that a slow spell of the machine cancels."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def interleave(
    contenders: Mapping[str, Callable[[int], float]], rounds: int, budget: float = math.inf
) -> dict[str, list[float]]:
    """Call every contender with the round's number, in turn; the figures each gave, by round.

    Every other round goes backwards, so that none always follows the same neighbour. No round begins after `budget`
    seconds, once `_LEAST_ROUNDS` were made.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + budget
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        names = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        for name in names:
            figures[name].append(contenders[name](number))
    return figures


def seconds(call: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fastest(call: Callable[[], Any], budget: float) -> float:
    """Seconds of the fastest call after a first one, over about `budget` seconds and three calls or more."""
    call()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < end:
        times.append(seconds(call))
    return min(times)
