"""Saves in the background: training waits only while its state is copied to host memory.

Every rank has one thread that works through the phases of a save: rank 0 makes the staging directory, all write, rank
0 publishes, all verify what was published, rank 0 retires old ones. The ranks go from phase to phase together: each
says with every step whether its part is done (`votes`), the sum comes with the loop's own agreement, and all `advance`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

import torch

from parallel.checkpoint.catalogue import Retention, remove_checkpoints, verify_share
from parallel.checkpoint.host_copy import HostCopy
from parallel.checkpoint.store import (
    Piece,
    Progress,
    SaveError,
    SaveResult,
    Shard,
    build_manifest,
    failure_line,
    make_staging,
    not_saved,
    not_verified,
    publish_checkpoint,
    staging_directory,
    step_directory,
    write_shard,
)
from parallel.engines.base import Engine
from runtime.errors import UserError
from runtime.files import remove_tree
from runtime.lease import Fence, LeaseLost
from runtime.logs import log

Job = tuple[str, Callable[[], Any]]
_NOTHING: Job = ("", lambda: None)


class BackgroundSaver:
    """Saves the checkpoints of one run under `root`, one at a time. Every rank makes the same calls."""

    def __init__(self, root: Path, engine: Engine, retention: Retention, fence: Fence | None = None) -> None:
        self._root, self._engine, self._mesh, self._retention = root, engine, engine.mesh, retention
        self._fence = fence or Fence()
        self._copy = HostCopy(engine)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lacuna-checkpoint")
        self._phases: Generator[Job, Any, SaveResult] | None = None
        self._what = ""
        self._job: Future[Any] | None = None
        self._cancelled = Event()
        self._seconds = 0.0  # that the save has taken, steps between left out
        self._step, self._failure, self._cleaning = 0, "", False
        self._published = self._verified = False

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._phases is not None

    def begin(self, progress: Progress) -> None:
        """Copy the state and start to save it. No other save may be under way."""
        assert not self.busy, "the save before must be finished"
        start = time.perf_counter()
        self._cancelled.clear()
        self._step, self._failure, self._cleaning = progress.step, "", False
        self._published = self._verified = False
        self._phases = self._save(self._copy.take(), progress)
        self._seconds = time.perf_counter() - start
        self._submit(next(self._phases))

    def votes(self) -> tuple[int, int]:
        """(1 if this rank has done its part of the phase, 1 if it failed at that); to be summed over all ranks."""
        if self._job is None or not self._job.done():
            return 0, 0
        return 1, int(self._job.exception() is not None)

    def advance(self, done: int, failed: int) -> SaveResult | None:
        """Go on as the sums of all ranks' votes say. Returns how the save ended, once, as soon as it is known.

        Raises LeaseLost on all ranks if the run is no longer this attempt's.
        """
        if not self.busy:
            return None
        news = None
        if failed and not self._failure:
            self._cancelled.set()
            reasons = self._mesh.gather(self._reason())
            if lost := [reason for reason in reasons if isinstance(reason, LeaseLost)]:
                raise lost[0]
            self._failure = next(filter(None, reasons))
            news = SaveResult(self._step, self._published, self._failure, verified=self._verified)
        if done == self._mesh.world:
            ended = self._next_phase()
            news = news or (ended if ended and not ended.failure else None)
        return news

    def finish(self) -> SaveResult | None:
        """Wait until the save under way has ended. Returns how, if it was not told yet."""
        news = None
        while self._job is not None:
            wait([self._job])
            done, failed = self._mesh.sum_all(torch.tensor(self.votes())).tolist()
            news = self.advance(done, failed) or news
        return news

    def close(self) -> None:
        """Give up a save that is under way and end the thread."""
        self._cancelled.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _save(self, pieces: list[Piece], progress: Progress) -> Generator[Job, Any, SaveResult]:
        """The phases; each yields this rank's part and goes on with what that returned, when all ranks are done."""
        mesh, first = self._mesh, self._mesh.rank == 0
        staging = staging_directory(self._root, progress.step, self._fence.token)
        final = step_directory(self._root, progress.step)
        shapes = self._engine.logical_shapes()

        def write() -> tuple[Shard, float]:
            begin, path = time.perf_counter(), staging / f"shard-{mesh.rank:05d}.safetensors"
            shard = write_shard(path, pieces, shapes, cancelled=self._cancelled.is_set)
            return shard, time.perf_counter() - begin

        def publish() -> None:
            publish_checkpoint(staging, final, build_manifest(progress, [shard for shard, _ in reports]), self._fence)

        def retire() -> None:
            self._fence.check()
            remove_checkpoints(self._retention.surplus(self._root))

        try:
            yield (f"make {staging}", lambda: make_staging(staging, self._fence)) if first else _NOTHING
            reports = mesh.gather((yield f"write {staging}", write))
            yield (f"publish {final}", publish) if first else _NOTHING
            self._published = True
            yield f"verify {final}", lambda: verify_share(final, mesh.rank, mesh.world)
            self._verified = True
            yield ("remove old checkpoints", retire) if first else _NOTHING
        except SaveError:
            yield ("", lambda: remove_tree(staging)) if first else _NOTHING
            return SaveResult(progress.step, self._published, self._failure, verified=self._verified)
        size = sum(shard.file.bytes for shard, _ in reports)
        rate = size / max(seconds for _, seconds in reports)
        return SaveResult(progress.step, True, "", size, rate, self._seconds, verified=True)

    def _submit(self, job: Job) -> None:
        self._what, work = job

        def timed() -> Any:
            start = time.perf_counter()
            try:
                return work()
            finally:
                self._seconds += time.perf_counter() - start

        self._job = self._pool.submit(timed)

    def _next_phase(self) -> SaveResult | None:
        """All ranks are done with a phase: start the next one. Returns the end of the save, if this is it."""
        assert self._phases is not None
        assert self._job is not None
        job, self._job = self._job, None
        try:
            if self._failure and not self._cleaning:
                self._cleaning = True
                self._submit(self._phases.throw(SaveError(self._failure)))
            else:
                self._submit(self._phases.send(None if self._cleaning else job.result()))
        except StopIteration as end:
            self._phases = None
            return end.value
        return None

    def _reason(self) -> str | LeaseLost:
        """Why this rank failed, or nothing."""
        error = self._job.exception() if self._job is not None and self._job.done() else None
        if error is None:
            return ""
        if isinstance(error, LeaseLost):
            return error
        if not isinstance(error, OSError | UserError):
            log.error("a save came to an unexpected end", exc_info=error)
        line = failure_line(self._mesh.rank, self._what, error)
        return not_verified(self._step, line) if self._published else not_saved(self._step, line)
