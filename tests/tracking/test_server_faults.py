"""A real server that is refused, black-holed, answers 500, dies and comes back: afterwards each point is there once."""

import tracemalloc
from pathlib import Path
from typing import Any, get_args

import pytest

from pretrain.tracking.mlflow import _batches, forward
from pretrain.tracking.server import POINTS_PER_BATCH
from pretrain.tracking.spool import Spool
from pretrain.tracking.state import ForwardState
from runtime.errors import UserError
from tests.support.unreliable_server import Mode, UnreliableServer

_STEPS = 7


def _train(run: Path, steps: range, resume_step: int) -> None:
    with Spool(run / "metrics.jsonl", resume_step) as spool:
        for step in steps:
            spool.write(step, {"tokens": 32 * step, "train/loss": 10.0 / step, "goodput/share": 0.5})


def test_faults_one_after_another(store: Any, run_directory: Path) -> None:
    """Each fault twice: before the run is known at the server, and amid it; after each, training has gone on."""
    faults = [mode for mode in get_args(Mode) if mode != "works"]
    done = 0
    with UnreliableServer(store.server) as server:
        for mode in [*faults, "works", *faults]:
            server.become(mode)
            _train(run_directory, range(done + 1, done + _STEPS + 1), done)
            done += _STEPS
            if mode == "works":
                forward(run_directory, server.uri)
                continue
            with pytest.raises(UserError, match="lacuna track sync") as told:
                forward(run_directory, server.uri, seconds=1)
            assert "\n" not in str(told.value)
        server.become("works")
        report = forward(run_directory, server.uri, finished="FINISHED")
        assert forward(run_directory, server.uri, finished="FINISHED").points == 0
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store.server)
    assert client.get_run(report.run_id).info.status == "FINISHED"
    for key in ("tokens", "train/loss", "goodput/share"):
        assert [point.step for point in client.get_metric_history(report.run_id, key)] == list(range(1, done + 1))
    experiment = client.get_experiment_by_name("lacuna")
    key = client.get_run(report.run_id).data.tags["lacuna.run"]
    assert len(client.search_runs([experiment.experiment_id], f"tags.`lacuna.run` = '{key}'")) == 1


def test_a_long_backlog_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = '{"step": %d, "time": 1.0, "note": "' + "x" * 900 + '", "train/loss": 2.5, "tokens": 7}\n'
    with open(path, "w") as out:
        out.writelines(line % step for step in range(1, 10_001))
    assert path.stat().st_size > 9e6
    tracemalloc.start()
    sizes = [len(batch.points) for batch in _batches(path, ForwardState("", "", "a"), {})]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [POINTS_PER_BATCH] * 20
    assert peak < 1e6
