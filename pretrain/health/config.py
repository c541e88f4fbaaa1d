"""Settings of the watchdog and of the profiler."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from runtime.deadline import duration
from runtime.settings import Settings

Seconds = Annotated[float, BeforeValidator(duration), Field(gt=0)]

_TICKS_A_DEADLINE = 8
_LONGEST_TICK = 10.0
_MARGIN = 300.0
_PATIENCE_TICKS = 4
_PATIENCE_SECONDS = 2.0


class WatchdogConfig(Settings):
    """How long a rank may stay in one phase before it counts as hung, seconds (or a text such as `5m`).

    `data`: waiting for its batch. `collective`: waiting for the others before a step. `step`: forward, backward and
    update. `save`: checkpoints, and lines of metrics. `start`: all until the first step has ended, with what is
    compiled and connected on the way; in that time no other limit is shorter.
    """

    enabled: bool = True
    start: Seconds = 1800.0
    data: Seconds = 300.0
    collective: Seconds = 600.0
    step: Seconds = 600.0
    save: Seconds = 1800.0

    @model_validator(mode="after")
    def _data_comes_first(self) -> Self:
        if self.collective < self.data:
            raise ValueError(
                f"collective={self.collective:g} is less than data={self.data:g}, and ranks wait there for one whose "
                f"data is slow: set collective={self.data:g} or more"
            )
        return self

    def limit(self, phase: str, started: bool) -> float:
        """Seconds that `phase` may last; `started`: whether the first step has ended."""
        own: float = getattr(self, phase, self.save)
        return own if started else max(own, self.start)

    @property
    def tick(self) -> float:
        """Seconds between two looks."""
        shortest = min(self.start, self.data, self.collective, self.step, self.save)
        return min(_LONGEST_TICK, shortest / _TICKS_A_DEADLINE)

    @property
    def patience(self) -> float:
        """Seconds that ranks are given to answer an alarm."""
        return _PATIENCE_TICKS * self.tick + _PATIENCE_SECONDS

    def deadline(self, phase: str, started: bool) -> float:
        """Seconds within which a hang in `phase` is found and the rank named: two looks and the answers later than the
        limit.
        """
        return self.limit(phase, started) + 2 * self.tick + self.patience

    @property
    def longest(self) -> float:
        """The longest limit."""
        return max(self.start, self.data, self.collective, self.step, self.save)

    @property
    def collective_timeout(self) -> float:
        """Seconds after which collectives themselves may give up: later than any limit here."""
        return self.longest + _MARGIN


class ProfileConfig(Settings):
    """Steps `first` to `last` (counted from 1, both included) of `ranks` that are written as traces."""

    first: int = Field(gt=0)
    last: int = Field(gt=0)
    ranks: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last={self.last} is before first={self.first}: set last={self.first} or more")
        return self
