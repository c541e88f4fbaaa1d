"""Checkpoints against the file system: save against a durable write, load against a read, of the same bytes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from bench.timing import Spread, interleave, ratio, seconds
from bench.workload import Workload
from parallel.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from parallel.engines.base import Engine
from parallel.mesh import Mesh, close_process_group
from runtime.environment import RankInfo
from runtime.files import remove_tree

_ROUNDS = 7
SAVE, WRITE, LOAD, READ = "save", "plain write and fsync", "load", "plain read"


@dataclass(frozen=True)
class CheckpointResult:
    """`bytes` of weights and moments; bytes/s by operation; save over write and load over read, in seconds."""

    workload: str
    bytes: int
    rates: dict[str, Spread]
    save_to_write: Spread
    load_to_read: Spread


def measure_checkpoints(workload: Workload, data: Path, scratch: Path) -> CheckpointResult:
    """Save and load a whole training state in turn with plain file operations, in directory `scratch`.

    Reads come from the page cache, for both sides. Builds the engine in this process, so it should run last.
    """
    from pretrain.build import build_engine

    config = workload.config(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = build_engine(config, Mesh.create(config.parallel, RankInfo()))
        try:
            return _measure(workload.name, engine, scratch / "checkpoints")
        finally:
            close_process_group()


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
    return CheckpointResult(
        workload=name,
        bytes=len(content),
        rates={operation: Spread.of([len(content) / t for t in taken]) for operation, taken in times.items()},
        save_to_write=ratio(times[SAVE], times[WRITE]),
        load_to_read=ratio(times[LOAD], times[READ]),
    )


def _save(engine: Engine, root: Path, step: int) -> Path:
    progress = Progress(step, updates=step, samples=step, tokens=step, identity={}, provenance={}, loop={})
    return save_checkpoint(root, engine, progress)


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
