"""Checkpoints of a running attempt: when a save may fail, what the metrics say of it, and what must wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parallel.checkpoint.background import BackgroundSaver, SaveResult
from parallel.checkpoint.catalogue import Retention, move_aside
from parallel.checkpoint.foreground import save_and_retire
from parallel.checkpoint.store import Progress, SaveError, on_all_ranks, step_directory
from parallel.engines.base import Engine
from pretrain.config import CheckpointConfig
from pretrain.guards import Guard
from runtime.lease import Fence
from runtime.logs import log


class Saves:
    """Saves one attempt's checkpoints on one rank; every rank makes the same calls, at the same steps.

    `describe` says how far the run is after a step. A save that fails is told and counted; `max_failures` in a row
    end the run. `saved` is the newest step whose checkpoint was published and verified, at first the one that the
    attempt began from.
    `stalled_seconds`: how long saves have kept this rank from training. `note_save` hears how many seconds a last save
    may take, steps between left out. All calls raise LeaseLost if the run is no longer this attempt's.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        root: Path,
        engine: Engine,
        describe: Callable[[int, Guard], Progress],
        saved: int,
        fence: Fence | None = None,
        note_save: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._config, self._root, self._engine, self._describe = config, root, engine, describe
        self._fence, self._note_save = fence or Fence(), note_save
        self._retention = Retention(config.keep, config.permanent_every)
        self._background = BackgroundSaver(root, engine, self._retention, self._fence) if config.in_background else None
        self._failures = self._failures_in_a_row = 0
        self._failures_allowed = config.max_failures - 1  # in a row
        self._news: dict[str, float] = {}
        self.stalled_seconds = 0.0
        self.saved = saved
        self._doubtful: int | None = None  # a step whose checkpoint was published and could not be verified

    def make_way(self, step: int) -> None:
        """Before `step` is taken: wait for a save under way, if a kill could cost more than an interval without it.

        Raises SaveError.
        """
        if step - self.saved > self._config.every:
            self._wait()

    def begin(self, step: int, guard: Guard) -> None:
        """Save the state after `step`; in the background after the one that is under way. Raises SaveError."""
        with self._stall():
            self._wait()
            start = time.perf_counter()
            if self._background is None:
                progress = self._describe(step, guard)
                self._note(save_and_retire(self._root, self._engine, progress, self._retention, self._fence))
            else:
                self._background.begin(self._describe(step, guard))
            self._news["checkpoint/blocked_seconds"] = time.perf_counter() - start

    def votes(self) -> tuple[int, int]:
        """What this rank adds to the ranks' agreement; see `BackgroundSaver.votes`."""
        return self._background.votes() if self._background is not None else (0, 0)

    def advance(self, votes: tuple[int, int]) -> None:
        """Go on with a save as the sums of all ranks' votes say. Raises SaveError after too many failures."""
        if self._background is not None:
            with self._stall():
                self._note(self._background.advance(*votes))

    def finish(self) -> None:
        """Wait for a save that is under way. Raises SaveError after too many failures."""
        if self._background is not None:
            with self._stall():
                self._note(self._background.finish())

    def _wait(self) -> None:
        if self._background is not None and self._background.busy:
            start = time.perf_counter()
            self.finish()
            waited = time.perf_counter() - start
            self._news["checkpoint/wait_seconds"] = self._news.get("checkpoint/wait_seconds", 0.0) + waited

    def conclude(self, step: int, guard: Guard) -> None:
        """See to it that the state after `step`, the run's last, is saved and verified. Raises SaveError if not.

        A checkpoint of this step that could not be verified is set aside, and the state is saved again.
        """
        with self._stall():
            self.finish()
            self._failures_allowed = 0
            if step > self.saved:
                if step == self._doubtful:
                    self._set_aside(step)
                self.begin(step, guard)
                self.finish()

    def _set_aside(self, step: int) -> None:
        path, mesh = step_directory(self._root, step), self._engine.mesh

        def move() -> None:
            self._fence.check()
            shelf = move_aside(self._root, [path])
            log.warning("checkpoint of step %d could not be verified: moved to %s, saving again", step, shelf)

        on_all_ranks(mesh, f"set {path} aside", move if mesh.rank == 0 else None)

    def metrics(self) -> dict[str, float]:
        """What is new since the last call, for a line of metrics."""
        news, self._news = self._news, {}
        return news

    def close(self) -> None:
        """End the writer, if there is one; a save that is under way is given up."""
        if self._background is not None:
            self._background.close()

    @contextmanager
    def _stall(self) -> Iterator[None]:
        """Count the time of one call; a call within it counts no second time."""
        start, before = time.perf_counter(), self.stalled_seconds
        try:
            yield
        finally:
            self.stalled_seconds = before + time.perf_counter() - start

    def _note(self, result: SaveResult | None) -> None:
        if result is None:
            return
        if result.verified:
            self.saved = result.step
        elif result.published:
            self._doubtful = result.step
        if not result.failure:
            self._failures_in_a_row = 0
            # before a background save, the one that is under way must end
            self._note_save(result.seconds * (1 if self._background is None else 2))
            log.debug("saved step %d", result.step)
            self._news |= {"checkpoint/bytes": result.bytes, "checkpoint/write_bytes_per_second": result.rate}
            return
        self._failures += 1
        self._failures_in_a_row += 1
        self._news["checkpoint/failures"] = self._failures
        if self._failures_in_a_row <= self._failures_allowed:
            log.warning("%s", result.failure)
            return
        if self._background is not None:
            self._background.finish()  # it removes what the save has left
        raise SaveError(result.failure)
