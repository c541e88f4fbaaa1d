"""One point of a sweep in a process of its own: trains as `lacuna train` does, then validates. See `launch.sweep`.

`python -m launch.sweep_point POINT_DIRECTORY [PID_OF_THE_POOL]`.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

from launch.pool import run_as_job
from parallel.checkpoint.catalogue import newest_checkpoint
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from pretrain.scaling.sweep import Evaluation
from runtime.errors import LacunaError
from runtime.files import read_json, write_json


def run_point(root: Path) -> None:
    """Train the run described in `root/point.json` to its end, validate it, write `root/result.json`.

    Raises LacunaError as a run does.
    """
    order: dict[str, Any] = read_json(root / "point.json")
    config = RunConfig.parse(order["config"], str(root / "point.json"))
    evaluation = Evaluation.parse(order["evaluation"], str(root / "point.json"))
    directory = RunDirectory(root)
    began = time.monotonic()
    newest = newest_checkpoint(directory.checkpoints)
    if newest is None or int(newest.name.removeprefix("step-")) < config.train.steps:
        from launch.train import run_local

        run_local(config, root, processes=1)
    trained = time.monotonic()
    held_out = _validate(root, evaluation)
    if not math.isfinite(held_out.nats_per_token):
        raise LacunaError("its held-out loss is not finite: lower rule.lr_factor")
    result = {
        "loss": held_out.nats_per_token,
        "loss_se": held_out.nats_standard_error,
        "bits_per_byte": held_out.bits_per_byte,
        "bits_per_byte_se": held_out.standard_error,
        "kind": held_out.kind,
        "windows": held_out.windows,
        "train_seconds": round(trained - began, 2),
        "evaluate_seconds": round(time.monotonic() - trained, 2),
        "order": order,
    }
    write_json(root / "result.json", result)


def _validate(root: Path, evaluation: Evaluation) -> Any:
    from inference.evaluation import evaluate
    from inference.trained_model import load_trained

    return evaluate(load_trained(root), evaluation.windows, evaluation.draws, evaluation.seed, show_progress=False)


if __name__ == "__main__":
    sys.exit(run_as_job(run_point))
