"""What the loop says of itself while it goes, for the watchdog, the search for stragglers, and traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pretrain.health.phases import Phases
from pretrain.health.stragglers import Stragglers
from pretrain.health.traces import Traces
from runtime.logs import log

_NAMED = 8


class Health:
    """One rank's. By itself it only keeps `phases`; the worker gives it more.

    `waited`: seconds that this thread has waited for peers so far. `stragglers`: on the rank that tells of them.
    `worked`: this rank's own seconds in the last step, waits for peers left out.
    """

    def __init__(
        self,
        waited: Callable[[], float] = lambda: 0.0,
        stragglers: Stragglers | None = None,
        traces: Traces | None = None,
        name_of: Callable[[int], str] = "rank {}".format,
    ) -> None:
        self.phases = Phases()
        self.worked = 0.0
        self._waited, self._stragglers, self._traces, self._name_of = waited, stragglers, traces, name_of
        self._news = True

    def enter(self, phase: str, step: int) -> None:
        """See `Phases.enter`."""
        self.phases.enter(phase, step)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the engine's work on step `number`, counted from 1."""
        if self._traces is not None:
            self._traces.before(number)
        self.phases.enter("step", number)
        waited, spent = self._waited(), self.phases.seconds["step"]
        yield
        self.phases.enter("metrics", number)
        self.worked = self.phases.seconds["step"] - spent - (self._waited() - waited)
        if self._traces is not None:
            self._traces.after(number)

    def note(self, worked: Sequence[float]) -> None:
        """Take in `worked` of every rank, as the ranks have told each other."""
        if self._stragglers is None:
            return
        before = set(self._stragglers.slow)
        if not self._stragglers.note(worked):
            return
        slow = self._stragglers.slow
        self._news = self._news or bool(before and not slow)
        for rank in sorted(set(slow) - before):
            log.warning("%s is slow: its steps take %.2f times as long as its peers'", self._name_of(rank), slow[rank])
        for rank in sorted(before - set(slow)):
            log.info("%s is as fast as its peers again", self._name_of(rank))

    def metrics(self) -> dict[str, float | str]:
        """For a line of metrics: who is slow; that nobody is, at first and after somebody was; else nothing."""
        slow = self._stragglers.slow if self._stragglers is not None else {}
        if not slow:
            said = self._stragglers is not None and self._news
            self._news = False
            return {"health/slow_ranks": 0} if said else {}
        by_ratio = sorted(slow, key=lambda rank: -slow[rank])
        return {
            "health/slow_ranks": len(slow),
            "health/slowest_rank": by_ratio[0],
            "health/slowest_ratio": slow[by_ratio[0]],
            "health/slow": ", ".join(f"{self._name_of(rank)} ({slow[rank]:.2f} times)" for rank in by_ratio[:_NAMED]),
        }
