"""Saves while the training waits."""

from __future__ import annotations

import time
from pathlib import Path

from parallel.checkpoint.catalogue import Retention, remove_checkpoints, verify_share
from parallel.checkpoint.store import (
    Progress,
    SaveError,
    SaveResult,
    not_verified,
    on_all_ranks,
    save_checkpoint,
)
from parallel.engines.base import Engine
from runtime.lease import Fence


def save_and_retire(
    root: Path, engine: Engine, progress: Progress, retention: Retention, fence: Fence | None = None
) -> SaveResult:
    """Publish a checkpoint, read it again, and only then remove surplus ones; every rank calls this.

    Raises LeaseLost on all ranks if the run is no longer this attempt's.
    """
    mesh, step, start = engine.mesh, progress.step, time.perf_counter()
    fence = fence or Fence()
    try:
        final = save_checkpoint(root, engine, progress, fence=fence)
    except SaveError as error:
        return SaveResult(step, False, str(error))
    seconds = time.perf_counter() - start

    def retire() -> None:
        fence.check()
        remove_checkpoints(retention.surplus(root))

    verified = False
    try:
        manifest = on_all_ranks(mesh, f"verify {final}", lambda: verify_share(final, mesh.rank, mesh.world))[mesh.rank]
        verified = True
        on_all_ranks(mesh, "remove old checkpoints", retire if mesh.rank == 0 else None)
    except SaveError as error:
        return SaveResult(step, True, not_verified(step, str(error)), verified=verified)
    size = sum(file.bytes for file in manifest.files.values())
    return SaveResult(step, True, "", size, size / seconds, time.perf_counter() - start, verified=True)
