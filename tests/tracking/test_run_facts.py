"""What MLflow is told of a run beside its numbers: tags, every version of its configuration, checkpoints, children."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.tracking import record_evaluation
from pretrain.goodput import Accounts
from pretrain.run_directory import RunDirectory
from pretrain.tracking.evaluations import note_evaluation
from pretrain.tracking.mlflow import forward
from pretrain.tracking.spool import Spool
from pretrain.tracking.system import SystemMonitor
from runtime.errors import UserError
from runtime.files import write_json

# MLflow's own store uses a loader strategy that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

SECRET = "pa55-w0rd"


@pytest.fixture
def run(run_directory: Path, tmp_path: Path) -> RunDirectory:
    """A run under Slurm in its second attempt, with two checkpoints, and a password in its tracking URI."""
    directory = RunDirectory(run_directory)
    write_json(tmp_path / "data" / "manifest.json", {"digest": "d1"})
    _configure(directory, tmp_path, steps=100)
    code = {"commit": "c0ffee", "changed": False}
    write_json(directory.environment, {"host": "n1", "packages": {"torch": "2.13"}, "code": code})
    attempt = {"layout": "megatron tp2", "processes": 4, "job": "17", "nodes": ["n1", "n2"]}
    write_json(directory.metadata, {"name": "a", "attempts": [{"outcome": "failed"}, attempt]})
    for step in (10, 20):
        _save(directory, step)
    with Spool(directory.metrics) as spool:
        for step in range(1, 4):
            line = {"tokens": step, "train/loss": 1.0 / step, "optim/lr": 0.1, "optim/grad_norm": 1.0}
            spool.write(step, {**line, **Accounts(productive=step, restart=2.0).metrics()})
    return directory


def _configure(directory: RunDirectory, tmp_path: Path, steps: int) -> None:
    tracking = {"uri": f"http://me:{SECRET}@host/?token={SECRET}"}
    values = {"train": {"steps": steps}, "data": {"path": str(tmp_path / "data")}, "tracking": tracking}
    directory.config.write_text(yaml.safe_dump(values))


def _save(directory: RunDirectory, step: int) -> None:
    write_json(directory.checkpoints / f"step-{step:08d}" / "MANIFEST.json", {"digest": f"m{step}"})


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_tags_configurations_and_checkpoints(store: Any, run: RunDirectory, tmp_path: Path) -> None:
    run_id = forward(run.root, store.server, "facts").run_id
    client = _client(store.server)
    shown = client.get_run(run_id).data
    tags = {key.removeprefix("lacuna."): text for key, text in shown.tags.items() if key.startswith("lacuna.")}
    expected = {"attempt": "1", "layout": "megatron tp2", "processes": "4", "job": "17", "nodes": "n1,n2"}
    expected |= {"outcome": "running", "data_digest": "d1"}
    assert {key: tags[key] for key in expected} == expected
    assert shown.tags["mlflow.source.git.commit"] == "c0ffee"
    assert shown.tags["environment.packages.torch"] == "2.13"
    uri = (run.checkpoints / "step-00000020").as_uri()
    assert tags["checkpoint.step-00000020"] == f"{uri} xxh3-128:m20"
    assert "changed" not in tags

    _configure(run, tmp_path, steps=200)
    _save(run, 30)
    (run.checkpoints / "step-00000010").rename(run.checkpoints / ".step-00000010.removed")
    forward(run.root, store.server, "facts")
    again = client.get_run(run_id).data
    assert again.params["train.steps"] == "100"
    assert json.loads(again.tags["lacuna.changed"]) == {"train.steps": "200"}
    told = {key.removeprefix("lacuna.checkpoint.") for key in again.tags if key.startswith("lacuna.checkpoint.")}
    assert told == {"step-00000020", "step-00000030"}
    assert len(client.list_artifacts(run_id, "configs")) == 2
    config = yaml.safe_load(Path(client.download_artifacts(run_id, "config.yaml", str(tmp_path))).read_text())
    assert config["train"]["steps"] == 200
    assert SECRET not in json.dumps([config, again.params, again.tags])

    _configure(run, tmp_path, steps=100)
    forward(run.root, store.server, "facts")
    assert "lacuna.changed" not in client.get_run(run_id).data.tags


def test_a_tag_names_the_ranks_that_are_slow(store: Any, run: RunDirectory) -> None:
    def tag() -> str | None:
        run_id = forward(run.root, store.server, "facts").run_id
        found: str | None = _client(store.server).get_run(run_id).data.tags.get("lacuna.slow_ranks")
        return found

    slow = {"health/slow_ranks": 1, "health/slowest_rank": 3, "health/slow": "rank 3 on n2 (1.31 times)"}
    assert tag() is None
    with Spool(run.metrics, 3) as spool:
        spool.write(4, slow)
        spool.write(5, slow)
        spool.write(6, {"train/loss": 1.0})
    assert tag() == "rank 3 on n2 (1.31 times), step 5"
    with Spool(run.metrics, 6) as spool:
        spool.write(7, {"train/loss": 1.0})
    assert tag() == "rank 3 on n2 (1.31 times), step 5"
    with Spool(run.metrics, 7) as spool:
        spool.write(8, {"health/slow_ranks": 0})
    assert tag() is None


def test_no_secret_stands_in_any_artifact(store: Any, run: RunDirectory, tmp_path: Path) -> None:
    run_id = forward(run.root, store.server, "facts", finished="FAILED").run_id
    (tmp_path / "downloads").mkdir()
    folder = Path(_client(store.server).download_artifacts(run_id, "", str(tmp_path / "downloads")))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.yaml", "loss.png", "goodput.png"}
    for path in files:
        assert SECRET.encode() not in path.read_bytes()


def test_a_status_is_set_once(store: Any, run: RunDirectory) -> None:
    first = forward(run.root, store.server, "facts", finished="FAILED")
    ended = _client(store.server).get_run(first.run_id).info.end_time
    again = forward(run.root, store.server, "facts", finished="FAILED")
    assert (first.status_changed, again.status_changed) == (True, False)
    assert _client(store.server).get_run(first.run_id).info.end_time == ended


def test_evaluations_are_children_and_each_is_there_once(store: Any, run: RunDirectory) -> None:
    settings = {"windows": 4, "draws": 2, "seed": 0}
    results = {"kind": "upper bound", "bits_per_byte": 2.5, "windows": 4, "nats_standard_error": float("nan")}
    path = note_evaluation(run, 20, settings, results)
    state = run.root / "tracking.json"
    run_id = forward(run.root, store.server, "children").run_id
    before = json.loads(state.read_text())
    state.write_text(json.dumps(before | {"evaluations": {}}))  # as after a kill between sending and the note
    forward(run.root, store.server, "children")
    note_evaluation(run, 20, settings | {"seed": 1}, results)
    forward(run.root, store.server, "children")
    client = _client(store.server)
    experiment = client.get_experiment_by_name("children").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert sorted(child.data.params["seed"] for child in children) == ["0", "1"]
    for child in children:
        assert (child.info.status, child.data.metrics["evaluation/bits_per_byte"]) == ("FINISHED", 2.5)
        assert child.data.tags["lacuna.kind"] == "upper bound"
        assert client.get_metric_history(child.info.run_id, "evaluation/bits_per_byte")[0].step == 20
    path.write_text("{}")
    with pytest.raises(UserError, match="is not as it was written"):
        forward(run.root, store.server, "children")


def test_an_evaluation_in_a_directory_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluations").write_text("in the way")
    record_evaluation(tmp_path / "checkpoints" / "step-00000001", 1, {}, {})
    assert capsys.readouterr().err.startswith("lacuna: not kept or shown: ")


def test_the_machine_is_sampled_now_and_then(tmp_path: Path) -> None:
    moments = iter([0.0, 0.0, 0.0, 5.0, 10.0, 10.0])
    monitor = SystemMonitor(tmp_path, seconds=10.0, clock=lambda: next(moments))
    first, second, third = monitor.sample(), monitor.sample(), monitor.sample()
    assert second == {}
    assert set(first) == set(third)
    assert 0 < first["system/system_memory_usage_percentage"] <= 100
    assert first["system/disk_available_megabytes"] > 0
    assert first["system/network_receive_megabytes"] >= 0
