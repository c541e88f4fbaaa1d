"""Checkpoints against the file system, and how long a save in the background keeps the training waiting."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.timing import Spread, interleave, ratio, seconds
from bench.workload import Workload, build_feed
from parallel.checkpoint.background import BackgroundSaver
from parallel.checkpoint.catalogue import Retention
from parallel.checkpoint.host_copy import HostCopy
from parallel.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from parallel.engines.base import KINDS, Engine
from parallel.mesh import Mesh, close_process_group
from pretrain.config import RunConfig
from runtime.environment import RankInfo
from runtime.files import remove_tree

_ROUNDS = 7
_STEPS_BETWEEN_SAVES = 6
_LARGE, _LARGE_RANKS = "llada-8b", 64
SAVE, WRITE, LOAD, READ = "save", "plain write and fsync", "load", "plain read"


@dataclass(frozen=True)
class CheckpointResult:
    """`bytes` of weights and moments; bytes/s by operation; save over write and load over read, in seconds.

    `copy`: bytes/s of the copy to host memory that a save in the background begins with.
    """

    workload: str
    bytes: int
    rates: dict[str, Spread]
    save_to_write: Spread
    load_to_read: Spread
    copy: Spread


@dataclass(frozen=True)
class BlockedResult:
    """What a save in the background costs the training at `workload`, in seconds.

    `blocked`: until the step after the save may begin. `step`: of a step with no save under way, `beside`: with one.
    """

    workload: str
    bytes: int
    blocked: Spread
    step: Spread
    beside: Spread
    blocked_to_step: Spread


@dataclass(frozen=True)
class ComputedBlocked:
    """Bytes that a rank of a large run copies, and the seconds at the copy rate of this machine: computed.

    `step_seconds`: of a step as `lacuna plan` tells it for `device` at an assumed `mfu`.
    """

    recipe: str
    ranks: int
    bytes: int
    seconds: float
    device: str
    mfu: float
    step_seconds: float

    @property
    def share(self) -> float:
        """Of a step."""
        return self.seconds / self.step_seconds


@contextmanager
def _engine(config: RunConfig) -> Iterator[Engine]:
    from pretrain.build import build_engine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield build_engine(config, Mesh.create(config.parallel, RankInfo()))
        finally:
            close_process_group()


def measure_checkpoints(workload: Workload, data: Path, scratch: Path) -> CheckpointResult:
    """Save and load a whole training state in turn with plain file operations, in directory `scratch`.

    Reads come from the page cache, for both sides. Builds the engine in this process, so it should run last.
    """
    with _engine(workload.config(data)) as engine:
        return _measure(workload.name, engine, scratch / "checkpoints")


def _measure(name: str, engine: Engine, root: Path) -> CheckpointResult:
    saved = _save(engine, root, 0)
    shard = max(saved.iterdir(), key=lambda path: path.stat().st_size)
    content = shard.read_bytes()
    buffer = bytearray(len(content))
    copy = root / "plain"

    def save(number: int) -> float:
        taken = seconds(lambda: _save(engine, root, number + 1))
        remove_tree(root / f"step-{number + 1:08d}")
        return taken

    def write(_: int) -> float:
        taken = seconds(lambda: _write(copy, content))
        copy.unlink()
        return taken

    def load(_: int) -> float:
        return seconds(lambda: load_checkpoint(saved, engine, {}))

    def read(_: int) -> float:
        return seconds(lambda: _read(shard, buffer))

    times = interleave({SAVE: save, WRITE: write, LOAD: load, READ: read}, _ROUNDS)
    host = HostCopy(engine)
    return CheckpointResult(
        workload=name,
        bytes=len(content),
        rates={operation: Spread.of([len(content) / t for t in taken]) for operation, taken in times.items()},
        save_to_write=ratio(times[SAVE], times[WRITE]),
        load_to_read=ratio(times[LOAD], times[READ]),
        copy=Spread.of([len(content) / seconds(host.take) for _ in range(_ROUNDS)]),
    )


def measure_blocked(workload: Workload, data: Path, scratch: Path) -> BlockedResult:
    """Train with a save in the background every few steps, as the training loop does it, agreement included."""
    config, root = workload.config(data), scratch / "background"
    blocked: list[float] = []
    alone: list[float] = []
    beside: list[float] = []
    with _engine(config) as engine:
        feed, saver = build_feed(config), BackgroundSaver(root, engine, Retention(1))
        try:
            for step in range((_ROUNDS + 1) * _STEPS_BETWEEN_SAVES):
                batch, busy, start = feed.step(step), saver.busy, time.perf_counter()
                engine.train_step(batch.micro_batches, float(batch.tokens), 1e-4, lambda _loss, _norm: True)
                saver.advance(*engine.mesh.sum_all(torch.tensor(saver.votes())).tolist())
                if step >= _STEPS_BETWEEN_SAVES:
                    (beside if busy else alone).append(time.perf_counter() - start)
                if step % _STEPS_BETWEEN_SAVES == _STEPS_BETWEEN_SAVES - 1:
                    saver.finish()
                    blocked.append(seconds(lambda: saver.begin(_progress(step))))  # noqa: B023 - called at once
            saver.finish()
        finally:
            saver.close()
        size = len(KINDS) * torch.float32.itemsize * config.model.parameters().total
    step_time = Spread.of(alone)
    return BlockedResult(
        workload=workload.name,
        bytes=size,
        blocked=Spread.of(blocked),
        step=step_time,
        beside=Spread.of(beside),
        blocked_to_step=Spread.of([b / step_time.median for b in blocked]),
    )


def compute_blocked(copy_rate: float, data: Path) -> ComputedBlocked:
    """Blocking time of LLaDA 8B with its optimizer cut over 64 ranks, if each copies at `copy_rate` bytes/s."""
    from launch.recipe import load_recipe
    from pretrain.planning.plan import plan

    config = load_recipe(_LARGE, [f"data.path={data}"])
    planned = plan(config, _LARGE_RANKS)
    size = len(KINDS) * torch.float32.itemsize * config.model.parameters().total // _LARGE_RANKS
    return ComputedBlocked(
        recipe=_LARGE,
        ranks=_LARGE_RANKS,
        bytes=size,
        seconds=size / copy_rate,
        device=planned["device"],
        mfu=planned["time"]["mfu"],
        step_seconds=planned["time"]["step_seconds"],
    )


def _progress(step: int) -> Progress:
    return Progress(step, updates=step, samples=step, tokens=step, identity={}, provenance={}, loop={})


def _save(engine: Engine, root: Path, step: int) -> Path:
    return save_checkpoint(root, engine, _progress(step))


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _read(path: Path, buffer: bytearray) -> None:
    with open(path, "rb", buffering=0) as source:
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            count = source.readinto(view[filled:])
            assert count, "the file has become shorter"
            filled += count
