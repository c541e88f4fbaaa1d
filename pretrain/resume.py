"""What a run continues from, and what it may do about checkpoints that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoint.catalogue import (
    move_aside,
    newest_checkpoint,
    previous_valid,
    published_checkpoints,
    set_aside,
    verify_checkpoint,
)
from parallel.checkpoint.manifest import CheckpointManifest, OtherFormat
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.logs import log


@dataclass(frozen=True)
class ResumeChoice:
    """What the user allows. Whatever is passed over is set aside, never removed.

    `step`: go back to the checkpoint `step-N`. `fallback`: pass over damaged ones to the newest valid one.
    `allow_fresh`: start from step 0 if there are checkpoints and none is valid.
    """

    step: str | None = None
    fallback: bool = False
    allow_fresh: bool = False

    @property
    def changes(self) -> bool:
        """Whether checkpoints may have to be set aside before the run can continue."""
        return self.step is not None or self.fallback or self.allow_fresh


def check_continues(
    config: RunConfig, directory: RunDirectory, identity_at: Callable[[int], dict[str, Any]]
) -> Path | None:
    """The newest checkpoint, if there is one, once its manifest says that this run may continue from it.

    `identity_at(step)` is what the run is, as far as its first `step` steps tell: later data may be changed.
    Its files are not read yet. Raises UserError if the manifest is damaged, or of another run, or past the end.
    """
    newest = newest_checkpoint(directory.checkpoints)
    if newest is None:
        return None
    try:
        manifest = CheckpointManifest.read(newest)
    except OtherFormat:
        raise
    except UserError as error:
        raise UserError(f"{error}{way_out(newest)}") from None
    identity = identity_at(manifest.step)
    manifest.require_identity(newest, {key: value for key, value in identity.items() if key != "data"})
    if manifest.identity.get("data") != identity["data"]:
        raise UserError(
            f"{newest} is a checkpoint of another run (data and weights of its samples differ): use its own data keys; "
            f"others may come in data.segments with from_step={manifest.step} or later"
        )
    if manifest.step > config.train.steps:
        raise UserError(f"{newest} is past train.steps={config.train.steps}: raise train.steps")
    return newest


def way_out(damaged: Path) -> str:
    """What to do about a damaged newest checkpoint, for the end of an error; reads all older ones up to a valid one."""
    older = previous_valid(damaged.parent, damaged)
    if older:
        return f"; the newest valid one is {older}: --fallback continues from it"
    return "; there is no other valid one: restore one, or --allow-fresh sets all aside and starts from step 0"


def apply_choice(directory: RunDirectory, choice: ResumeChoice, dry_run: bool = False) -> list[Path]:
    """Set checkpoints aside as the user allowed. Returns which; with `dry_run` they stay.

    For the holder of the run. Reads every byte of the newest checkpoint, and of older ones up to a valid one.
    Raises UserError if what stands there is not what was allowed for.
    """
    root = directory.checkpoints
    if choice.step is not None:
        digits = choice.step.removeprefix("step-")
        if not (digits.isascii() and digits.isdecimal()):
            raise UserError(
                f"--resume-from {choice.step!r} is not step-N: see `lacuna checkpoint list {directory.root}`"
            )
        return set_aside(root, int(digits), dry_run)
    if not choice.changes:
        return []
    damaged = _damaged_newest(root)
    if not damaged:
        return []
    newest, fault = damaged[0]
    if len(damaged) < len(published_checkpoints(root)):
        if not choice.fallback:
            raise UserError(f"{fault}{way_out(newest)}; --allow-fresh is for runs without a valid one")
    elif not choice.allow_fresh:
        raise UserError(f"{fault}{way_out(newest)}")
    paths = [path for path, _ in damaged]
    if not dry_run:
        shelf = move_aside(root, paths)
        log.warning("%d damaged checkpoints were moved to %s", len(paths), shelf)
    return paths


def _damaged_newest(root: Path) -> list[tuple[Path, str]]:
    """Checkpoints newer than the newest valid one, newest first, each with its fault."""
    damaged: list[tuple[Path, str]] = []
    for _, path in reversed(published_checkpoints(root)):
        try:
            verify_checkpoint(path)
            break
        except OtherFormat:
            raise
        except UserError as error:
            damaged.append((path, str(error)))
    return damaged
