"""What a rank is doing, in one word: entered by the loop, read by the watchdog's thread."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A phase of a step. `count`: phases entered so far; ranks enter the same ones, so less is further behind."""

    phase: str
    step: int
    count: int
    since: float


class Phases:
    """The phase that a rank is in, and seconds spent in each so far.

    `start` until the loop begins, then for every step `data`, `collective`, `save`, `step`, `metrics`, `save`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.place = Place("start", 0, 0, clock())
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.started = False

    def enter(self, phase: str, step: int) -> None:
        """The phase before has ended. `step` is counted from 1."""
        now, before = self._clock(), self.place
        self.seconds[before.phase] += now - before.since
        self.started = self.started or phase == "metrics"
        self.place = Place(phase, step, before.count + 1, now)  # one assignment: readers see all of it or none
