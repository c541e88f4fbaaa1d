"""Notes the end of attempts that nobody could note, because all of their processes were killed; MLflow hears of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.slurm.attempts import LOST, end_attempt, read_metadata
from launch.status import run_statuses
from launch.tracking import sync_run
from launch.train import leased
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.errors import LacunaError, one_line
from runtime.settings import read_yaml

_ENDED = ("gone", "finished", "paused", "stopped", "failed")


def repair_runs(roots: Sequence[Path]) -> Iterator[str]:
    """Repair each run that has ended; yields a line for all that was done or could not be.

    A run that another machine may still be training is left alone. Raises UserError for a directory without a run.
    """
    for root, status in zip(roots, run_statuses(roots), strict=True):
        if status.state not in _ENDED:
            continue
        directory = RunDirectory(root)
        try:
            config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
            if status.state == "gone":
                with leased(directory, config.lease):
                    end_attempt(directory, len(read_metadata(directory)["attempts"]) - 1, "failed", 1, LOST)
                yield f"{root}: its last attempt {LOST}; noted as failed"
            if config.tracking.enabled:
                report = sync_run(directory)
                if report.points or report.status_changed:
                    yield f"{root}: MLflow run {report.run_id} shows how it ended"
        except (LacunaError, OSError) as error:
            yield f"{root} is not repaired: {one_line(error)}"
