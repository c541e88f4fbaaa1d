"""One run of the reversal study in a process of its own: trains as `lacuna train` does, asks at every point.

`python -m launch.studies.reversal_run RUN_DIRECTORY PID_OF_THE_POOL`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launch.pool import run_as_job
from parallel.checkpoint.catalogue import newest_checkpoint
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.files import read_json, write_json


def train_and_ask(root: Path) -> None:
    """Train the run described in `root/order.json` from point to point; what is right is added to `root/scores.json`.

    Raises LacunaError as a run does.
    """
    order: dict[str, Any] = read_json(root / "order.json")
    config = RunConfig.parse(order["config"], str(root / "order.json"))
    directory, file = RunDirectory(root), root / "scores.json"
    scores = read_json(file) if file.exists() else []
    for step in order["asked_after"][len(scores) :]:
        newest = newest_checkpoint(directory.checkpoints)
        if newest is None or int(newest.name.removeprefix("step-")) < step:
            from launch.train import run_local

            run_local(config, root, processes=1, until=step)
        scores.append({"step": step, "right": _ask(directory.checkpoints / f"step-{step:08d}", order["questions"])})
        write_json(file, scores)


def _ask(checkpoint: Path, questions: str) -> dict[str, dict[str, tuple[int, int]]]:
    """By couplets and direction: how many were asked, and how many answers were right."""
    from inference.answers import Question, answered_exactly
    from inference.trained_model import load_trained

    trained = load_trained(checkpoint)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for couplets, by_direction in read_json(Path(questions)).items():
        found[couplets] = {}
        for direction, rows in by_direction.items():
            right = answered_exactly(trained, [Question(*row) for row in rows])
            found[couplets][direction] = (len(right), sum(right))
    return found


if __name__ == "__main__":
    sys.exit(run_as_job(train_and_ask))
