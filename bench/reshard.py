"""Rewriting a checkpoint in other files against `cp` of the same bytes, with and without making them durable."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.timing import Spread, interleave, ratio, seconds
from bench.workload import Workload
from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reshard import even_division, reshard, total_bytes, write_checkpoint
from parallel.checkpoint.shard_file import CHUNK_BYTES
from parallel.logical import Rectangle
from pretrain.config import RunConfig
from pretrain.interop.names import model_tensors
from runtime.files import fsync_directory, fsync_file, remove_tree

_ROUNDS = 7
_FILES = (4, 6)  # before and after
RESHARD, COPY, DURABLE_COPY = "reshard", "cp", "cp and fsync"


@dataclass(frozen=True)
class ReshardResult:
    """`bytes` of weights and moments; bytes/s by operation; reshard over each copy, in seconds."""

    workload: str
    bytes: int
    files: tuple[int, int]
    rates: dict[str, Spread]
    to_copy: Spread
    to_durable_copy: Spread


def measure_reshard(workload: Workload, data: Path, scratch: Path) -> ReshardResult:
    """Rewrite a whole training state in turn with copies of it, in directory `scratch`; reads come from the cache."""
    source, copy = scratch / "reshard" / "step-00000001", scratch / "reshard" / "copy"
    manifest = _publish(source, workload.config(data))
    division = even_division(manifest.shapes, _FILES[1])
    size = total_bytes(division)

    def rewrite(number: int) -> float:
        final = scratch / "reshard" / str(number) / source.name
        taken = seconds(lambda: reshard(source, manifest, division, final, lambda _: None))
        remove_tree(final)
        return taken

    def plain(_: int) -> float:
        taken = seconds(lambda: _copy(source, copy))
        remove_tree(copy)
        return taken

    def durable(_: int) -> float:
        taken = seconds(lambda: _copy_durably(source, copy))
        remove_tree(copy)
        return taken

    times = interleave({RESHARD: rewrite, COPY: plain, DURABLE_COPY: durable}, _ROUNDS)
    return ReshardResult(
        workload=workload.name,
        bytes=size,
        files=_FILES,
        rates={operation: Spread.of([size / t for t in taken]) for operation, taken in times.items()},
        to_copy=ratio(times[RESHARD], times[COPY]),
        to_durable_copy=ratio(times[RESHARD], times[DURABLE_COPY]),
    )


def _publish(final: Path, config: RunConfig) -> CheckpointManifest:
    """A checkpoint of the workload's model with random values."""
    shapes = model_tensors(config.model)
    described = CheckpointManifest(
        chunk_bytes=CHUNK_BYTES,
        step=1,
        updates=1,
        samples=1,
        tokens=1,
        identity={},
        provenance={},
        loop={},
        shapes=shapes,
        blocks={},
        files={},
    )

    def read_into(_kind: str, _name: str, _box: Rectangle, view: torch.Tensor) -> None:
        view.normal_()

    write_checkpoint(final, described, even_division(shapes, _FILES[0]), read_into, lambda _: None)
    return CheckpointManifest.read(final)


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)


def _copy_durably(source: Path, target: Path) -> None:
    _copy(source, target)
    for path in target.iterdir():
        fsync_file(path)
    fsync_directory(target)
