"""Which checkpoints a run has, which are valid, and which may go."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parallel.checkpoint.manifest import CheckpointManifest
from runtime.errors import UserError
from runtime.files import fsync_directory, remove_tree, write_atomic

LATEST = "LATEST"


@dataclass(frozen=True)
class CatalogueEntry:
    """A published checkpoint; `fault` says in one line why it is not valid, if it is not."""

    step: int
    path: Path
    fault: str = ""

    @property
    def valid(self) -> bool:
        """Whether every file matches the manifest."""
        return not self.fault


def verify_checkpoint(directory: Path, advance: Callable[[int], None] | None = None) -> CheckpointManifest:
    """Read every byte of a checkpoint and compare it with the manifest; `advance` is told the bytes, now and then.

    Raises UserError naming the bad file.
    """
    manifest = CheckpointManifest.read(directory)
    manifest.require_name(directory)
    for name in sorted(manifest.files):
        manifest.verify_file(directory, name, advance)
    return manifest


def published_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """Steps and directories of published checkpoints, oldest first."""
    found = ((path.name.removeprefix("step-"), path) for path in root.glob("step-*") if path.is_dir())
    return sorted((int(digits), path) for digits, path in found if digits.isdecimal())


def checkpoint_bytes(root: Path) -> int:
    """Bytes that the manifests of all checkpoints under `root` speak of; damaged manifests speak of none."""
    total = 0
    for _, path in published_checkpoints(root):
        with suppress(UserError):
            total += sum(file.bytes for file in CheckpointManifest.read(path).files.values())
    return total


def list_checkpoints(
    root: Path, quick: bool = False, advance: Callable[[int], None] | None = None
) -> list[CatalogueEntry]:
    """All published checkpoints under `root`, oldest first, each fully verified; `advance` is told the bytes.

    `quick` trusts manifests and lengths of files, and reads no tensors.
    """
    entries: list[CatalogueEntry] = []
    for step, path in published_checkpoints(root):
        try:
            if quick:
                _verify_sizes(path)
            else:
                verify_checkpoint(path, advance)
            entries.append(CatalogueEntry(step, path))
        except UserError as error:
            entries.append(CatalogueEntry(step, path, str(error)))
    return entries


def _verify_sizes(directory: Path) -> None:
    manifest = CheckpointManifest.read(directory)
    manifest.require_name(directory)
    manifest.verify_sizes(directory)


def newest_checkpoint(root: Path) -> Path | None:
    """The published checkpoint of the highest step, or None if there is none. It is verified when it is loaded."""
    published = published_checkpoints(root)
    return published[-1][1] if published else None


def previous_valid(root: Path, than: Path) -> Path | None:
    """The newest valid checkpoint older than `than`, to name in an error."""
    published = published_checkpoints(root)
    limit = next(step for step, path in published if path == than)
    for step, path in reversed(published):
        with suppress(UserError):
            if step < limit and verify_checkpoint(path):
                return path
    return None


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `keep`, and for ever those of every `permanent_every` steps."""

    keep: int
    permanent_every: int | None = None

    def surplus(self, root: Path) -> list[Path]:
        """The checkpoints that may go, oldest first, once a newer one is verified."""
        return [path for step, path in published_checkpoints(root)[: -self.keep] if not self._permanent(step)]

    def _permanent(self, step: int) -> bool:
        return self.permanent_every is not None and step % self.permanent_every == 0


def prune_checkpoints(
    root: Path,
    keep: int,
    dry_run: bool = False,
    permanent_every: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[Path]:
    """Remove the surplus of `Retention`, once the newest one is verified. Returns what was removed.

    With `dry_run` nothing is removed, only named. `advance` is told the bytes that are verified.
    """
    surplus = Retention(keep, permanent_every).surplus(root)
    if surplus and not dry_run:
        verify_checkpoint(published_checkpoints(root)[-1][1], advance)
        remove_checkpoints(surplus)
    return surplus


def remove_checkpoints(paths: Sequence[Path]) -> None:
    """Remove checkpoints. Whenever it is killed, each is whole or does not look like a checkpoint any more."""
    for path in paths:
        remove_tree(path)


def verify_share(directory: Path, rank: int, world: int) -> CheckpointManifest:
    """Read what this rank shall of a checkpoint and compare it: all ranks together read every byte.

    It reads the files that ranks half a world away wrote, on other machines as far as possible. Raises UserError.
    """
    manifest = CheckpointManifest.read(directory)
    manifest.require_name(directory)
    for name in sorted(manifest.files)[(rank + world // 2) % world :: world]:
        manifest.verify_file(directory, name)
    return manifest


def set_aside(root: Path, newest: int, dry_run: bool = False) -> list[Path]:
    """Move checkpoints of steps after `newest` below `root/set-aside-N`, so that a run can go on from there.

    Nothing is removed, and with `dry_run` nothing is moved. Returns which they are. Raises UserError if there is no
    valid checkpoint of step `newest`.
    """
    wanted = root / f"step-{newest:08d}"
    if not wanted.is_dir():
        raise UserError(f"{wanted} does not exist: see `lacuna checkpoint list {root}`")
    verify_checkpoint(wanted)
    later = [path for step, path in published_checkpoints(root) if step > newest]
    if later and not dry_run:
        move_aside(root, later)
    return later


def move_aside(root: Path, paths: list[Path]) -> Path:
    """Move checkpoints below a new `root/set-aside-N`, which is returned. Raises OSError."""
    numbers = [path.name.removeprefix("set-aside-") for path in root.glob("set-aside-*")]
    shelf = root / f"set-aside-{max((int(n) for n in numbers if n.isdecimal()), default=-1) + 1}"
    shelf.mkdir()
    for path in paths:
        os.rename(path, shelf / path.name)
    fsync_directory(shelf)
    newest = newest_checkpoint(root)
    if newest is None:
        (root / LATEST).unlink(missing_ok=True)
        fsync_directory(root)
    else:
        write_atomic(root / LATEST, newest.name + "\n")
    return shelf
