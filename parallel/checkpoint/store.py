"""Saves an engine's logical state and loads it into any other engine and layout.

Every rank writes the boxes it owns into one safetensors file of its own and reads only the boxes it needs.
A checkpoint is staged, made durable, hashed, agreed on by all ranks, and then published by one rename.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from parallel.checkpoint.manifest import CheckpointManifest, StoredBlock, StoredFile
from parallel.engines.base import KINDS, Engine
from parallel.logical import Extent, Rectangle
from runtime.errors import UserError, one_line
from runtime.files import digest_file, fsync_directory, fsync_file, publish_directory, remove_tree, write_atomic

LATEST = "LATEST"


@dataclass(frozen=True)
class Progress:
    """How far a run has come and what it is; stored in the manifest."""

    step: int
    updates: int
    samples: int
    tokens: int
    identity: dict[str, Any]
    provenance: dict[str, Any]
    loop: dict[str, Any]


def step_directory(root: Path, step: int) -> Path:
    """`root/step-NNNNNNNN`."""
    return root / f"step-{step:08d}"


def save_checkpoint(root: Path, engine: Engine, progress: Progress) -> Path:
    """Write and publish a checkpoint; every rank calls this.

    Returns the published directory. Raises UserError on all ranks if any rank could not write (a full disk,
    say); nothing is then published and earlier checkpoints are untouched.
    """
    mesh, final = engine.mesh, step_directory(root, progress.step)
    staging = root / f".{final.name}.staging"
    if mesh.rank == 0:
        root.mkdir(parents=True, exist_ok=True)
        remove_tree(staging)
        staging.mkdir()
    mesh.barrier()
    failure, report = "", None
    try:
        report = _write_shard(staging, mesh.rank, engine)
    except (OSError, SafetensorError) as error:
        failure = f"rank {mesh.rank} could not write {staging}: {one_line(error)}"
    reports = mesh.gather((failure, report, engine.logical_shapes()))
    failures = [f for f, _, _ in reports if f]
    if not failures:
        failures = [
            f for f in mesh.gather(_try_publish(staging, final, progress, reports) if mesh.rank == 0 else "") if f
        ]
    if failures:
        if mesh.rank == 0:
            remove_tree(staging)
        raise UserError(
            f"checkpoint of step {progress.step} not saved: {failures[0]}; free some room, earlier ones are intact"
        )
    return final


def _try_publish(staging: Path, final: Path, progress: Progress, reports: list[Any]) -> str:
    try:
        _publish(staging, final, progress, reports)
    except (OSError, UserError) as error:
        return f"rank 0 could not publish {final}: {one_line(error)}"
    return ""


def _write_shard(
    staging: Path, rank: int, engine: Engine
) -> tuple[str, StoredFile, dict[str, dict[str, list[StoredBlock]]]]:
    tensors: dict[str, torch.Tensor] = {}
    blocks: dict[str, dict[str, list[StoredBlock]]] = {kind: defaultdict(list) for kind in KINDS}
    name = f"shard-{rank:05d}.safetensors"
    for fragment in engine.fragments():
        if not fragment.writes:
            continue
        for block_name, _, target, values in fragment.pieces():
            key = f"{fragment.kind}/{block_name}@{','.join(map(str, target.start))}"
            tensors[key] = values.contiguous().cpu()
            stored = StoredBlock(file=name, key=key, offset=target.start, size=target.size)
            blocks[fragment.kind][block_name].append(stored)
    path = staging / name
    save_file(tensors, path)
    fsync_file(path)
    return name, StoredFile(bytes=path.stat().st_size, digest=digest_file(path)), blocks


def _publish(staging: Path, final: Path, progress: Progress, reports: list[Any]) -> None:
    shapes: dict[str, Extent] = {}
    blocks: dict[str, dict[str, list[StoredBlock]]] = {kind: defaultdict(list) for kind in KINDS}
    files: dict[str, StoredFile] = {}
    for _, (name, file, shard_blocks), rank_shapes in reports:
        files[name] = file
        shapes.update(rank_shapes)
        for kind, names in shard_blocks.items():
            for tensor, stored in names.items():
                blocks[kind][tensor].extend(stored)
    manifest = CheckpointManifest(
        step=progress.step,
        updates=progress.updates,
        samples=progress.samples,
        tokens=progress.tokens,
        identity=progress.identity,
        provenance=progress.provenance,
        loop=progress.loop,
        shapes=shapes,
        blocks=blocks,
        files=files,
    )
    hole = manifest.missing_elements()
    assert hole is None, f"the ranks did not write {hole}"
    manifest.write(staging)
    publish_directory(staging, final)
    write_atomic(final.parent / LATEST, final.name + "\n")
    fsync_directory(final.parent)


def load_checkpoint(directory: Path, engine: Engine, identity: dict[str, Any]) -> CheckpointManifest:
    """Load a checkpoint into `engine`, whatever layout wrote it; every rank calls this.

    All files are compared with their digests first, the work shared over the ranks. Raises UserError on all
    ranks if the checkpoint is damaged or holds another model.
    """
    mesh = engine.mesh
    manifest = CheckpointManifest.read(directory)
    manifest.require_name(directory)
    _check_model(directory, manifest, engine, identity)
    failure = ""
    try:
        for name in sorted(manifest.files)[mesh.rank :: mesh.world]:
            manifest.verify_file(directory, name)
    except UserError as error:
        failure = str(error)
    failures = [f for f in mesh.gather(failure) if f]
    if failures:
        raise UserError(failures[0])
    reader = BlockReader(directory, manifest)
    for fragment in engine.fragments():
        for name, _, target, view in fragment.pieces():
            reader.read_into(fragment.kind, name, target, view)
    engine.finish_load(manifest.updates)
    return manifest


def _check_model(directory: Path, manifest: CheckpointManifest, engine: Engine, identity: dict[str, Any]) -> None:
    manifest.require_identity(directory, identity)
    for name, shape in engine.logical_shapes().items():
        if manifest.shapes.get(name) != shape:
            raise UserError(
                f"{directory} is a checkpoint of another model ({name} is {manifest.shapes.get(name)}, not {shape})"
            )


class BlockReader:
    """Reads boxes of logical tensors from a checkpoint's files, only the bytes that are asked for."""

    def __init__(self, directory: Path, manifest: CheckpointManifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._open: dict[str, Any] = {}

    def read_into(self, kind: str, name: str, wanted: Rectangle, view: torch.Tensor) -> None:
        """Copy box `wanted` of logical tensor `name` into `view` (same shape)."""
        found = 0
        zero = (0,) * len(wanted.start)
        for block in self._manifest.blocks[kind][name]:
            common = wanted.intersect(Rectangle(block.offset, block.size))
            if common is None:
                continue
            source = self._file(block.file).get_slice(block.key)[common.moved(block.offset, zero).slices]
            view[common.moved(wanted.start, zero).slices].copy_(source)
            found += common.numel
        assert found == wanted.numel, f"{kind} of {name} has holes"

    def read(self, kind: str, name: str) -> torch.Tensor:
        """A whole logical tensor, float32."""
        shape = self._manifest.shapes[name]
        tensor = torch.empty(shape)
        self.read_into(kind, name, Rectangle((0,) * len(shape), shape), tensor)
        return tensor

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self._directory / name, framework="pt")
        return self._open[name]
