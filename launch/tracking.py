"""Shows a run to MLflow from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from pretrain.tracking.evaluations import note_evaluation
from pretrain.tracking.facts import final_status
from pretrain.tracking.mlflow import ForwardReport, forward
from runtime.errors import LacunaError, one_line
from runtime.settings import read_yaml


def tracking_uri(config: RunConfig, directory: RunDirectory) -> str:
    """The configured MLflow URI, else a sqlite file beside the run directory."""
    return config.tracking.uri or f"sqlite:///{directory.root.absolute().parent / 'mlflow.db'}"


def sync_run(directory: RunDirectory, uri: str | None = None) -> ForwardReport:
    """Send MLflow what it lacks of a run, its files, and its status if the last attempt has ended."""
    config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
    uri = uri or tracking_uri(config, directory)
    return forward(directory.root, uri, config.tracking.experiment, finished=final_status(directory))


def record_evaluation(checkpoint: Path, step: int, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Keep what an evaluation of a run's checkpoint gave, and show it to MLflow if the run is shown there.

    A directory that cannot be written and a server that fails are said, and stop nothing.
    """
    directory = RunDirectory(checkpoint.absolute().parent.parent)
    try:
        note_evaluation(directory, step, settings, results)
        if (directory.root / "tracking.json").exists():
            sync_run(directory)
    except (LacunaError, OSError) as error:
        print(f"lacuna: not kept or shown: {one_line(error)}", file=sys.stderr)
