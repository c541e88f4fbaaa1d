"""Saves an engine's logical state and loads it into any other engine and layout.

Every rank writes the boxes it owns into one safetensors file of its own and reads only the boxes it needs.
A checkpoint is staged, hashed as it is written, made durable, agreed on by all ranks, and published by one rename.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import torch

from parallel.checkpoint.catalogue import LATEST
from parallel.checkpoint.manifest import CheckpointManifest, StoredBlock, StoredFile
from parallel.checkpoint.reader import BlockReader
from parallel.checkpoint.shard_file import CHUNK_BYTES, Entry, ShardWriter
from parallel.engines.base import KINDS, Engine, Fragment
from parallel.logical import Extent, Rectangle
from parallel.mesh import Mesh
from runtime.errors import UserError, one_line
from runtime.files import (
    mend_of,
    publish_directory,
    remove_temporaries,
    remove_tree,
    write_atomic,
)
from runtime.lease import Fence, LeaseLost
from runtime.logs import log

T = TypeVar("T")
_READERS = 4


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


@dataclass(frozen=True)
class SaveResult:
    """How a save ended: `bytes` were published at `rate` bytes per second, or why it failed; it took `seconds`.

    A save may have been published and yet have failed: what was published could not be verified, or it was `verified`
    and older ones could not be removed.
    """

    step: int
    published: bool
    failure: str = ""
    bytes: int = 0
    rate: float = 0.0
    seconds: float = 0.0
    verified: bool = False


@dataclass(frozen=True)
class Piece:
    """A box of a logical tensor with its values, which this rank writes."""

    kind: str
    name: str
    box: Rectangle
    values: torch.Tensor

    @property
    def key(self) -> str:
        """Its key in a safetensors file."""
        return f"{self.kind}/{self.name}@{','.join(map(str, self.box.start))}"


@dataclass(frozen=True)
class Shard:
    """A written file and, for the manifest, its blocks as (kind, logical name, block) and the tensors' shapes."""

    name: str
    file: StoredFile
    blocks: list[tuple[str, str, StoredBlock]]
    shapes: dict[str, Extent]


def step_directory(root: Path, step: int) -> Path:
    """`root/step-NNNNNNNN`."""
    return root / f"step-{step:08d}"


def staging_directory(root: Path, step: int, token: int = 0) -> Path:
    """Where the holder of lease `token` writes the checkpoint of `step` before it is published.

    An orphan of an earlier attempt that wakes up in the middle of a save has another one.
    """
    return root / f".{step_directory(root, step).name}.{token}.staging"


def sweep(root: Path) -> None:
    """Remove what saves and removals that did not come to their end have left. For the holder of the run only."""
    for path in root.glob(".step-*"):
        if path.name.endswith((".staging", ".removed")):
            shutil.rmtree(path, ignore_errors=True)
    remove_temporaries(root / LATEST)


def make_staging(staging: Path, fence: Fence) -> None:
    """Make the empty directory `staging`, and the one that it stands in; leftovers there are removed."""
    fence.check()
    staging.parent.mkdir(parents=True, exist_ok=True)
    sweep(staging.parent)
    staging.mkdir()


def written_pieces(engine: Engine) -> list[Piece]:
    """What this rank writes, as live views of the engine's memory."""
    return [
        Piece(fragment.kind, name, box, values)
        for fragment in engine.fragments()
        if fragment.writes
        for name, _, box, values in fragment.pieces()
    ]


def write_shard(
    path: Path,
    pieces: Sequence[Piece],
    shapes: dict[str, Extent],
    chunk_bytes: int = CHUNK_BYTES,
    cancelled: Callable[[], bool] = lambda: False,
) -> Shard:
    """Write `pieces` of tensors of global `shapes` into the new file `path` and make it durable.

    Raises OSError; SaveError once `cancelled` says so.
    """
    with ShardWriter(path, [Entry(piece.key, piece.box.size) for piece in pieces], chunk_bytes) as writer:
        for piece in pieces:
            if cancelled():
                raise SaveError("cancelled")
            writer.append(piece.values)
        written = writer.finish()
    blocks = [(p.kind, p.name, written.block(p.key, p.box.start, p.box.size)) for p in pieces]
    return Shard(path.name, written.stored, blocks, shapes)


def build_manifest(progress: Progress, shards: Sequence[Shard], chunk_bytes: int = CHUNK_BYTES) -> CheckpointManifest:
    """The manifest of a checkpoint of `shards`, which must hold every element of every tensor once."""
    shapes = {name: shape for shard in shards for name, shape in shard.shapes.items()}
    blocks: dict[str, dict[str, list[StoredBlock]]] = defaultdict(lambda: defaultdict(list))
    for shard in shards:
        for kind, name, block in shard.blocks:
            blocks[kind][name].append(block)
    files = {shard.name: shard.file for shard in shards}
    manifest = CheckpointManifest(**vars(progress), chunk_bytes=chunk_bytes, shapes=shapes, blocks=blocks, files=files)
    fault = manifest.inconsistency()
    assert fault is None, f"the ranks did not write a whole checkpoint: {fault}"
    return manifest


def publish_checkpoint(staging: Path, final: Path, manifest: CheckpointManifest, fence: Fence | None = None) -> None:
    """Add the manifest to the durable files in `staging` and rename it to `final`.

    Raises OSError or UserError, and LeaseLost if the run is another attempt's by then.
    """
    manifest.write(staging)
    publish_directory(staging, final, (fence or Fence()).check)
    try:
        write_atomic(final.parent / LATEST, final.name + "\n")
    except OSError as error:  # a hint for people is no reason to call the checkpoint not saved
        log.debug("%s could not be written: %s", LATEST, error)


class SaveError(UserError):
    """A checkpoint that was not saved; the earlier ones are intact."""


def save_checkpoint(
    root: Path, engine: Engine, progress: Progress, chunk_bytes: int = CHUNK_BYTES, fence: Fence | None = None
) -> Path:
    """Write and publish a checkpoint; every rank calls this.

    Returns the published directory. Raises SaveError on all ranks if any rank could not write (a full disk,
    say), LeaseLost on all ranks if the run is no longer this attempt's; nothing is then published and earlier
    checkpoints are untouched.
    """
    fence = fence or Fence()
    mesh, final = engine.mesh, step_directory(root, progress.step)
    staging = staging_directory(root, progress.step, fence.token)

    def write() -> Shard:
        path = staging / f"shard-{mesh.rank:05d}.safetensors"
        return write_shard(path, written_pieces(engine), engine.logical_shapes(), chunk_bytes)

    def publish() -> None:
        publish_checkpoint(staging, final, build_manifest(progress, shards, chunk_bytes), fence)

    try:
        on_all_ranks(mesh, f"make {staging}", (lambda: make_staging(staging, fence)) if mesh.rank == 0 else None)
        shards = on_all_ranks(mesh, f"write {staging}", write)
        on_all_ranks(mesh, f"publish {final}", publish if mesh.rank == 0 else None)
    except (SaveError, LeaseLost) as error:
        if mesh.rank == 0:
            with suppress(OSError):
                remove_tree(staging)
        if isinstance(error, LeaseLost):
            raise
        raise SaveError(not_saved(progress.step, str(error))) from None
    return final


def on_all_ranks(mesh: Mesh, what: str, action: Callable[[], T] | None) -> list[T]:
    """What `action` returned on each rank. Raises SaveError or LeaseLost on all ranks if it failed on any."""
    failure, result = "", None
    lost: LeaseLost | None = None
    try:
        result = action() if action else None
    except (OSError, UserError) as error:
        failure = failure_line(mesh.rank, what, error)
    except LeaseLost as error:
        lost = error
    outcomes = mesh.gather((lost, failure, result))
    for lost, failure, _ in outcomes:
        if lost is not None:
            raise lost
        if failure:
            raise SaveError(failure)
    return [result for _, _, result in outcomes]


def failure_line(rank: int, what: str, error: BaseException) -> str:
    """Why `rank` could not do `what`, with the mend."""
    mend = f"; {mend_of(error)}" if isinstance(error, OSError) else ""
    return f"rank {rank} could not {what}: {one_line(error)}{mend}"


def not_saved(step: int, failure: str) -> str:
    """The line of a save that failed and published nothing."""
    return f"checkpoint of step {step} not saved: {failure}, earlier ones are intact"


def not_verified(step: int, failure: str) -> str:
    """The line of a save that was published, after which something failed."""
    return f"checkpoint of step {step} is published, but {failure}; no earlier one was removed for it"


def load_checkpoint(directory: Path, engine: Engine, identity: dict[str, Any]) -> CheckpointManifest:
    """Load a checkpoint into `engine`, whatever layout wrote it; every rank calls this.

    Reads once, and only the bytes that this rank needs, each verified; lengths and headers of all files are
    verified too, the work shared over the ranks. Raises UserError on all ranks if the checkpoint is damaged or
    holds another model; after damage the engine's weights are of no use.
    """
    mesh = engine.mesh
    manifest = CheckpointManifest.read(directory)
    manifest.require_name(directory)
    _check_model(directory, manifest, engine, identity)
    failure = ""
    try:
        for name in sorted(manifest.files)[mesh.rank :: mesh.world]:
            manifest.verify_header(directory, name)
        _read_fragments(directory, manifest, list(engine.fragments()))
    except UserError as error:
        failure = str(error)
    failures = [f for f in mesh.gather(failure) if f]
    if failures:
        raise UserError(failures[0])
    engine.finish_load(manifest.updates)
    return manifest


def _read_fragments(directory: Path, manifest: CheckpointManifest, fragments: Sequence[Fragment]) -> None:
    """Fill `fragments`; a few at a time, so that one is read while another is hashed. Raises UserError."""
    waiting = iter(fragments)
    failed = Event()

    def read() -> None:
        try:
            with BlockReader(directory, manifest) as reader:
                while not failed.is_set() and (fragment := next(waiting, None)) is not None:
                    for name, _, box, view in fragment.pieces():
                        reader.read_into(fragment.kind, name, box, view)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(_READERS, thread_name_prefix="lacuna-load") as pool:
        for ended in [pool.submit(read) for _ in range(_READERS)]:
            ended.result()


def _check_model(directory: Path, manifest: CheckpointManifest, engine: Engine, identity: dict[str, Any]) -> None:
    manifest.require_identity(directory, identity)
    if lacking := [kind for kind in KINDS if kind not in manifest.blocks]:
        raise UserError(f"{directory} holds no {lacking[0]}: it can be evaluated but not continued, use another one")
    for name, shape in engine.logical_shapes().items():
        if manifest.shapes.get(name) != shape:
            raise UserError(
                f"{directory} is a checkpoint of another model ({name} is {manifest.shapes.get(name)}, not {shape})"
            )
