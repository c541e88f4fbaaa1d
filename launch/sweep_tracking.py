"""A sweep in MLflow: one parent run, every finished point a child of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.run_directory import RunDirectory
from runtime.errors import LacunaError
from runtime.files import digest_bytes, read_json, write_json

_EXPERIMENT = "lacuna-scaling"
_PARENT_TAG = "mlflow.parentRunId"  # MLflow's own name: its pages show such runs below their parent
_SWEEP_TAG = "lacuna.sweep"
_RESULTS = ("loss", "loss_se", "bits_per_byte", "bits_per_byte_se")


class SweepTracking:
    """Shows points to MLflow at `uri`, by default `mlflow.db` in the sweep's directory.

    A failure is said once and never stops the sweep.
    """

    def __init__(self, out: Path, name: str, uri: str | None = None) -> None:
        self._out, self._name = out, name
        self._uri = uri or f"sqlite:///{out.absolute() / 'mlflow.db'}"
        self._parent: str | None = None
        self._broken = False

    def show(self, directory: RunDirectory, result: Mapping[str, Any]) -> None:
        """Send a finished point, its validation and its parent; once."""
        mark = directory.root / "shown.json"
        if self._broken or mark.exists():
            return
        try:
            run = self._send(directory, result)
            write_json(mark, {"run_id": run, "parent": self._parent})
        except LacunaError as error:
            self._broken = True
            print(f"MLflow does not have all points: {error}; the same command sends them later", file=sys.stderr)

    def finish(self, complete: bool) -> None:
        """Give the parent run its status."""
        from pretrain.tracking.server import TrackingServer

        if self._broken or self._parent is None:
            return
        try:
            TrackingServer(self._uri).finish(self._parent, "FINISHED" if complete else "KILLED")
        except LacunaError as error:
            print(f"MLflow shows the sweep as running: {error}", file=sys.stderr)

    def _send(self, directory: RunDirectory, result: Mapping[str, Any]) -> str:
        from pretrain.tracking.mlflow import forward
        from pretrain.tracking.server import Point, TrackingServer

        run = forward(directory.root, self._uri, _EXPERIMENT, finished="FINISHED").run_id
        server = TrackingServer(self._uri)
        if self._parent is None:
            self._parent = self._parent_run(server)
        server.describe(run, {}, {_PARENT_TAG: self._parent, _SWEEP_TAG: self._name})
        now = int(time.time() * 1000)
        server.send(run, [Point(f"scaling/{key}", float(result[key]), 0, now) for key in _RESULTS])
        return run

    def _parent_run(self, server: Any) -> str:
        path = self._out / "tracking.json"
        if path.exists():
            known = str(read_json(path)["run_id"])
            server.reopen(known)
            return known
        from pretrain.tracking.uri import artifact_folder

        experiment = server.experiment(_EXPERIMENT, artifact_folder(self._uri, self._out))
        key = digest_bytes(str(self._out.absolute()).encode())
        run = server.find_run(experiment, _SWEEP_TAG + ".key", key)
        run = run or server.create_run(experiment, self._name, {_SWEEP_TAG + ".key": key, _SWEEP_TAG: self._name})
        write_json(path, {"run_id": run})
        return str(run)
