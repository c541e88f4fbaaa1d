"""A sweep in MLflow: finished points are children of one parent, sent once; a dead server stops nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.sweep_tracking import SweepTracking
from pretrain.run_directory import RunDirectory
from pretrain.tracking.spool import Spool

# MLflow's own store uses a loader strategy that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

RESULT = {"loss": 3.5, "loss_se": 0.02, "bits_per_byte": 1.9, "bits_per_byte_se": 0.01}


def finished_point(out: Path, name: str) -> RunDirectory:
    run = RunDirectory(out / "points" / name)
    run.root.mkdir(parents=True)
    run.metadata.write_text(json.dumps({"name": name, "attempts": []}))
    with Spool(run.metrics) as spool:
        for step in (1, 2):
            spool.write(step, {"tokens": 10 * step, "train/loss": 5.0 - step})
    return run


def test_points_are_children_of_one_parent(store: Any, run_directory: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.database)
    for name in ("masked-a", "masked-b"):
        # a new process each time, as when a killed sweep continues
        tracking = SweepTracking(run_directory, "small", store.database)
        run = finished_point(run_directory, name)
        tracking.show(run, RESULT)
        tracking.show(run, RESULT)
        tracking.finish(complete=name == "masked-b")
    marks = [json.loads(path.read_text()) for path in sorted(run_directory.glob("points/*/shown.json"))]
    assert len({mark["parent"] for mark in marks}) == 1
    for mark in marks:
        child = client.get_run(mark["run_id"])
        assert child.data.tags["mlflow.parentRunId"] == mark["parent"]
        assert child.data.tags["lacuna.sweep"] == "small"
        assert child.info.status == "FINISHED"
        assert child.data.metrics["scaling/loss"] == 3.5
        assert len(client.get_metric_history(mark["run_id"], "train/loss")) == 2
    parent = client.get_run(marks[0]["parent"])
    assert parent.info.run_name == "small"
    assert parent.info.status == "FINISHED"


def test_a_dead_server_is_said_once(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = SweepTracking(run_directory, "small", "http://127.0.0.1:9")
    for name in ("a", "b"):
        tracking.show(finished_point(run_directory, name), RESULT)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("MLflow does not have all points: ")
    assert not list(run_directory.glob("points/*/shown.json"))
