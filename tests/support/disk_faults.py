"""One training run whose disk fails at every call by which a save writes, one after the other.

Odd steps save onto a failing disk, even steps onto a good one. After each save everything that is published is
verified, byte by byte. `python -m tests.support.disk_faults PLAN` is one rank of it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from parallel.checkpoint.catalogue import list_checkpoints
from parallel.checkpoint.store import Progress, step_directory
from parallel.engines.base import Engine
from parallel.mesh import Mesh, close_process_group
from pretrain.build import build_engine
from pretrain.config import RunConfig
from pretrain.guards import Guard
from pretrain.loop import Hooks, train
from pretrain.saves import Saves
from runtime.environment import RankInfo
from runtime.logs import log
from runtime.signals import StopRequest
from tests.support.faults.write_faults import Call, Numbered, installed
from tests.support.feeds import whole_feed
from tests.support.kill_points import kind_of
from tests.support.tiny import tiny_config

T = TypeVar("T")
KEEP, CLEAN = 2, 4
"""Checkpoints kept; steps without faults, after which every save also removes an old checkpoint."""


@dataclass(frozen=True)
class Fault:
    """Call number `call` of a save on `rank` fails with `error`; with `lasting`, so do all that follow in that save."""

    rank: int
    call: int
    error: int
    lasting: bool = False


@dataclass
class Found:
    """What came of a fault: the call that it met, whether the run said so, and whether the checkpoint is there."""

    fault: str
    met: str
    told: bool
    published: bool


class Disk(Protocol):
    """Something that can be made to fail."""

    def faults(self, saves_before: int) -> Iterator[str]:
        """Fail in the next way, which is named, with each `next`; called on every rank, after clean saves."""
        ...

    def mend(self) -> str:
        """Be good again. Returns the call that failed on this rank, if it is known."""
        ...

    def watching(self) -> AbstractContextManager[None]:
        """Within it the run is on this disk."""
        ...


class FailingCalls(Numbered):
    """Every `stride`-th call of a save fails in turn, with each of `errors`, and once as on a disk that is full."""

    def __init__(self, root: Path, mesh: Mesh, stride: int, errors: Sequence[int]) -> None:
        super().__init__(root, "checkpoints")
        self._mesh, self._stride, self._errors = mesh, stride, errors
        self._fault: Fault | None = None
        self._met: list[Call] = []

    def faults(self, saves_before: int) -> Iterator[str]:
        """See `Disk`."""
        del saves_before
        counts = self._mesh.gather(len(self._met))
        for rank, count in enumerate(counts):
            for call in range(0, count, self._stride):
                choices = [Fault(rank, call, error) for error in self._errors] + [Fault(rank, call, errno.ENOSPC, True)]
                for fault in choices:
                    self._fault, self._met = fault, []
                    yield f"{errno.errorcode[fault.error]}{' and on' if fault.lasting else ''}"

    def mend(self) -> str:
        """See `Disk`."""
        fault, self._fault = self._fault, None
        met = ""
        if fault is not None and fault.rank == self._mesh.rank and fault.call < len(self._met):
            call = self._met[fault.call]
            met = f"{call.operation} {kind_of(call.path)}"
        self._met = []
        return met

    def watching(self) -> AbstractContextManager[None]:
        """See `Disk`."""
        return installed(self)

    def numbered(self, number: int, call: Call, action: Callable[[], T], torn: Callable[[], object] | None) -> T:
        """See `Numbered`; counts from the last change on."""
        del number
        fault, here = self._fault, len(self._met)
        self._met.append(call)
        if (
            fault is None
            or fault.rank != self._mesh.rank
            or here < fault.call
            or (here > fault.call and not fault.lasting)
        ):
            return action()
        if torn is not None and fault.error == errno.ENOSPC:
            torn()  # a full disk takes what still fits
        raise OSError(fault.error, os.strerror(fault.error), call.path)


@dataclass
class FullDisk:
    """A real file system that is filled until a share of a checkpoint is free, for each of `shares`."""

    root: Path
    mesh: Mesh
    shares: Sequence[float]

    def faults(self, saves_before: int) -> Iterator[str]:
        """See `Disk`."""
        size = sum(path.stat().st_size for path in step_directory(self.root / "checkpoints", saves_before).iterdir())
        for share in self.shares:
            if self.mesh.rank == 0:
                free = os.statvfs(self.root)
                room = max(0, free.f_bavail * free.f_frsize - int(share * size))
                with open(self.root / "ballast", "wb") as out:
                    os.posix_fallocate(out.fileno(), 0, max(1, room))
            self.mesh.barrier()
            yield f"{share:.0%} of a checkpoint free"

    def mend(self) -> str:
        """See `Disk`."""
        if self.mesh.rank == 0:
            (self.root / "ballast").unlink(missing_ok=True)
        self.mesh.barrier()
        return ""

    def watching(self) -> AbstractContextManager[None]:
        """See `Disk`."""
        return nullcontext()


@dataclass
class Trial:
    """What the loop calls after each step, before its save: judges the save before, and prepares the disk."""

    root: Path
    mesh: Mesh
    saves: Saves
    disk: Disk
    stop: StopRequest
    losses: list[float] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    _ways: Iterator[str] | None = None
    _way: str = ""

    def after_step(self, step: int, line: dict[str, Any]) -> None:
        """Every rank calls this."""
        self.saves.finish()
        self.losses.append(line["train/loss"])
        if self._way:
            self._judge_fault(step - 1)
        elif step > 1:
            self._judge_clean(step - 1)
        if step >= CLEAN and step % 2 == 1:
            if self._ways is None:
                self._ways = self.disk.faults(step - 1)
            self._way = next(self._ways, "")
            if not self._way:
                self.stop.signal = signal.SIGTERM
        elif step == CLEAN:
            self.disk.mend()  # count from here

    def _judge_fault(self, step: int) -> None:
        met = next(filter(None, self.mesh.gather(self.disk.mend())), "")
        published = self._judge(step, step - 1)
        told = any(f"of step {step} " in said for said in self.told)
        if self.mesh.rank == 0:
            assert published or told, f"{self._way} at {met}: step {step} is not there, and nobody was told"
            self.found.append(Found(self._way, met, told, published))
        self._way = ""

    def _judge_clean(self, step: int) -> None:
        assert self._judge(step, step), f"the save of step {step} did not work on a good disk"
        if self.mesh.rank == 0 and step > KEEP:
            left = sorted(os.listdir(self.root / "checkpoints"))
            steps = [name for name in left if name.startswith("step-")]
            assert left == ["LATEST", *steps], f"after step {step}: {left}"
            assert len(steps) == KEEP, f"after step {step}: {left}"

    def _judge(self, step: int, newest: int) -> bool:
        """Whether step `step` is published. All that is published must be valid, and step `newest` must be there."""
        entries = list_checkpoints(self.root / "checkpoints") if self.mesh.rank == 0 else []
        faults = [entry.fault for entry in entries if not entry.valid]
        assert not faults, f"{self._way}: {faults}"
        steps = [entry.step for entry in entries]
        assert self.mesh.rank != 0 or newest in steps, f"{self._way}: step {newest} is gone, there are {steps}"
        self.mesh.barrier()  # nobody saves while rank 0 reads
        return bool(self.mesh.gather(step in steps)[0])


def run_trial(root: Path, rank: RankInfo, background: bool, disk: Callable[[Path, Mesh], Disk]) -> Trial:
    """Train on `disk` until it has failed in all its ways; every rank calls this. Checkpoints are below `root`."""
    config = _config()
    mesh = Mesh.create(config.parallel, rank)
    engine, stop = build_engine(config, mesh), StopRequest()
    saves = _saves(root / "checkpoints", config, engine, background)
    trial = Trial(root, mesh, saves, disk(root, mesh), stop)
    handler = _Listener(trial.told)
    log.addHandler(handler)
    feed = whole_feed(config, data_rank=mesh.data_rank, data_size=mesh.data_size)
    try:
        hooks = Hooks(metrics=trial.after_step, saves=saves)
        with trial.disk.watching():
            train(config, engine, feed, range(config.train.steps), Guard(config.guard), hooks, stop)
    finally:
        saves.close()
        log.removeHandler(handler)
    return trial


def clean_losses(rank: RankInfo, steps: int) -> list[float]:
    """Losses of the same run on a disk that never fails, since nothing is saved."""
    config = _config().model_copy(update={"checkpoint": _config().checkpoint.model_copy(update={"every": steps + 1})})
    mesh = Mesh.create(config.parallel, rank)
    engine, losses = build_engine(config, mesh), list[float]()
    saves = _saves(Path("nowhere"), config, engine, False)
    saves.saved = steps  # so that nothing is saved at the end
    hooks = Hooks(metrics=lambda step, line: losses.append(line["train/loss"]), saves=saves)
    feed = whole_feed(config, data_rank=mesh.data_rank, data_size=mesh.data_size)
    train(config, engine, feed, range(steps), Guard(config.guard), hooks, StopRequest())
    return losses


class _Listener(logging.Handler):
    def __init__(self, told: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(record.getMessage())


def _config() -> RunConfig:
    return tiny_config(model__layers=1, checkpoint__every=1, checkpoint__keep=KEEP, train__steps=100_000)


def _saves(root: Path, config: RunConfig, engine: Engine, background: bool) -> Saves:
    settings = config.checkpoint.model_copy(update={"in_background": background})
    return Saves(settings, root, engine, lambda step, guard: Progress(step, step, 0, 0, {}, {}, {}), 0)


def main() -> None:
    """One rank of the trial that the JSON file in the first argument describes; rank 0 writes `result.json` there."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    warnings.simplefilter("ignore")
    rank, root = RankInfo.from_environment(), Path(plan["root"])

    def disk(root: Path, mesh: Mesh) -> Disk:
        if plan["shares"]:
            return FullDisk(root, mesh, plan["shares"])
        return FailingCalls(root, mesh, plan["stride"], plan["errors"])

    clean = clean_losses(rank, plan["compared"])
    trial = run_trial(root, rank, plan["background"], disk)
    if rank.rank == 0:
        assert trial.losses[: len(clean)] == clean[: len(trial.losses)], "the failures changed the training"
        result = {"steps": len(trial.losses), "found": [asdict(found) for found in trial.found]}
        (Path(sys.argv[1]).parent / "result.json").write_text(json.dumps(result))
    trial.mesh.barrier()
    close_process_group()


if __name__ == "__main__":
    main()
