"""Evaluations of a run: files `RUN/evaluations/*.json`, each shown to MLflow as one child of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.run_directory import RunDirectory
from pretrain.tracking.describe import flatten, value_text
from pretrain.tracking.server import Point, TrackingServer
from runtime.errors import UserError
from runtime.files import digest_bytes, read_json, write_json

_PARENT_TAG = "mlflow.parentRunId"  # MLflow's own name: its pages show such runs below their parent
_KEY_TAG = "lacuna.evaluation"


def note_evaluation(
    directory: RunDirectory, step: int, settings: Mapping[str, Any], results: Mapping[str, Any]
) -> Path:
    """Write what an evaluation of the checkpoint of `step` gave; the same one again replaces it. Raises OSError."""
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in results.items()}
    values = {"step": step, "settings": dict(settings), "results": finite, "time": round(time.time(), 3)}
    key = digest_bytes(repr(sorted(settings.items())).encode())[:8]
    path = directory.evaluations / f"step-{step:08d}-{key}.json"
    write_json(path, values)
    return path


def unsent_evaluations(directory: RunDirectory, sent: Mapping[str, float]) -> list[Path]:
    """Files that are not in `sent` (name → time of the evaluation) or are newer."""
    found = []
    for path in sorted(directory.evaluations.glob("*.json")):
        if sent.get(path.name) != _read(path)["time"]:
            found.append(path)
    return found


def send_evaluation(path: Path, server: TrackingServer, experiment: str, parent: str, key: str) -> float:
    """Show one to MLflow as a child of run `parent`, whose key is `key`; sent again, it stays one. Returns its time."""
    values = _read(path)
    moment = float(values["time"])
    tag = digest_bytes(f"{key}/{path.name}/{moment}".encode())
    run = server.find_run(experiment, _KEY_TAG, tag) or server.create_run(
        experiment, f"evaluate {path.stem}", {_KEY_TAG: tag, _PARENT_TAG: parent}
    )
    numbers = {k: float(v) for k, v in values["results"].items() if isinstance(v, int | float)}
    words = {k: v for k, v in values["results"].items() if isinstance(v, str)}
    facts = server.facts(run)
    parameters = flatten({"step": values["step"], **values["settings"]})
    server.describe(
        run,
        {name: text for name, text in parameters.items() if name not in facts.parameters},
        {f"lacuna.{name}": value_text(text) for name, text in words.items()},
    )
    server.send(run, [Point(f"evaluation/{k}", v, int(values["step"]), int(moment * 1000)) for k, v in numbers.items()])
    server.finish(run, "FINISHED")
    return moment


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path)
    try:
        if isinstance(values["results"], dict) and isinstance(values["settings"], dict):
            return {**values, "step": int(values["step"]), "time": float(values["time"])}
    except (TypeError, KeyError, ValueError):
        pass
    raise UserError(f"{path} is not as it was written: remove it and evaluate again")
