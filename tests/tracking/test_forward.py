"""What MLflow has afterwards, asked of MLflow: each point once, whatever happened on the way."""

import json
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.tracking.describe import entity_key, flatten, run_name
from pretrain.tracking.mlflow import ForwardReport, forward
from pretrain.tracking.spool import Spool
from pretrain.tracking.uri import artifact_folder, check_reachable, redact, unreachable
from runtime.errors import UserError, one_line

# MLflow's own store uses a loader strategy that SQLAlchemy 2.1 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

_FACTS = {"optim/lr": 1e-4, "tokens": 4096, "data/batch_digest": "8c1f", "run/layout": "tp2"}


def _write(run: Path, steps: range, resume_step: int, **more: float) -> None:
    with Spool(run / "metrics.jsonl", resume_step) as spool:
        for step in steps:
            spool.write(step, _FACTS | {"train/loss": 10.0 / step} | more)


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _history(uri: str, run_id: str, key: str = "train/loss") -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in _client(uri).get_metric_history(run_id, key))


def _expected(steps: range) -> list[tuple[int, float]]:
    return [(step, 10.0 / step) for step in steps]


@pytest.fixture(params=["server", "database"])
def uri(request: pytest.FixtureRequest, store: Any) -> str:
    return str(getattr(store, request.param))


def test_all_points_arrive_once_in_one_run_over_two_restarts(uri: str, run_directory: Path) -> None:
    _write(run_directory, range(1, 31), -1)
    first = forward(run_directory, uri)
    assert first == ForwardReport(90, 30, first.run_id)
    assert forward(run_directory, uri) == ForwardReport(0, 0, first.run_id)
    _write(run_directory, range(21, 41), 20)  # a resume writes steps 21 to 30 anew
    assert forward(run_directory, uri) == ForwardReport(30, 10, first.run_id)
    _write(run_directory, range(36, 51), 35)
    assert forward(run_directory, uri) == ForwardReport(30, 10, first.run_id)
    assert _history(uri, first.run_id) == _expected(range(1, 51))
    assert len(_history(uri, first.run_id, "tokens")) == 50
    assert set(_client(uri).get_run(first.run_id).data.metrics) == {"train/loss", "optim/lr", "tokens"}
    assert os.listdir() == []  # no folder `mlruns`


def test_a_kill_after_sending_and_before_the_note_sends_nothing_twice(uri: str, run_directory: Path) -> None:
    state = run_directory / "tracking.json"
    _write(run_directory, range(1, 11), -1)
    run_id = forward(run_directory, uri).run_id
    before_kill = state.read_text()
    _write(run_directory, range(11, 21), 10)
    assert forward(run_directory, uri).points == 30
    state.write_text(before_kill)
    _write(run_directory, range(16, 31), 15)  # and after it a resume gives steps 16 to 20 new times
    assert forward(run_directory, uri) == ForwardReport(30, 10, run_id)
    assert _history(uri, run_id) == _expected(range(1, 31))


def test_steps_with_other_values_than_mlflow_has_are_named(store: Any, run_directory: Path) -> None:
    """MLflow keeps what it was sent; equal values written anew, whose times differ, are none of them."""

    def shown(finished: str | None = None) -> str | None:
        run_id = forward(run_directory, store.server, finished=finished).run_id
        tag: str | None = _client(store.server).get_run(run_id).data.tags.get("lacuna.replaced_steps")
        return tag

    _write(run_directory, range(1, 31), -1)
    assert shown() is None
    _write(run_directory, range(21, 41), 20)
    assert shown() is None
    other = {"optim/lr": 2e-4}
    _write(run_directory, range(31, 36), 30, **other)
    assert shown() is None  # not yet at the last step that was shown
    _write(run_directory, range(31, 46), 30, **other)
    assert shown() == "31-40"
    _write(run_directory, range(43, 51), 42)
    assert shown() == "31-40, 43-45"
    state = run_directory / "tracking.json"
    before_kill = state.read_text()
    _write(run_directory, range(51, 61), 50)
    shown()
    state.write_text(before_kill)
    _write(run_directory, range(56, 62), 55, **other)
    assert shown() == "31-40, 43-45, 56-60"
    _write(run_directory, range(0), 58)  # goes back and ends there
    assert shown("KILLED") == "31-40, 43-45, 56-61"
    assert len(_history(store.server, forward(run_directory, store.server).run_id)) == 61


def test_a_kill_amid_one_step_sends_only_the_keys_that_lack(store: Any, run_directory: Path) -> None:
    _write(run_directory, range(1, 4), -1)
    run_id = forward(run_directory, store.server).run_id
    _client(store.server).log_metric(run_id, "train/loss", 2.5, timestamp=5, step=4)
    _write(run_directory, range(4, 5), 3)
    assert forward(run_directory, store.server) == ForwardReport(2, 1, run_id)
    assert _history(store.server, run_id) == _expected(range(1, 5))


def test_a_kill_between_making_the_run_and_the_note_finds_it(store: Any, run_directory: Path) -> None:
    state = run_directory / "tracking.json"
    _write(run_directory, range(1, 4), -1)
    run_id = forward(run_directory, store.server).run_id
    note = json.loads(state.read_text())
    state.write_text(json.dumps(note | {"run_id": None, "last_step": -1, "offset": 0}))
    assert forward(run_directory, store.server) == ForwardReport(0, 0, run_id)


def test_the_same_point_twice_is_one_point(store: Any, run_directory: Path) -> None:
    """A request that timed out here may yet be carried out there; sending it again must not matter."""
    from pretrain.tracking.server import Point, TrackingServer

    _write(run_directory, range(1, 2), -1)
    run_id = forward(run_directory, store.server).run_id
    server = TrackingServer(store.server)
    points = [Point("x", float(step), step, 1000 * step) for step in range(1, 401)]
    server.send(run_id, points)
    server.send(run_id, points[:300])
    assert len(_history(store.server, run_id, "x")) == 400


def test_metrics_go_in_whole_steps_and_a_huge_step_in_parts(store: Any, run_directory: Path) -> None:
    path = run_directory / "metrics.jsonl"
    with Spool(path) as spool:
        for step in range(1, 4):
            spool.write(step, {f"level/{key}": float(key) for key in range(1300 if step == 2 else 400)})
    report = forward(run_directory, store.server)
    assert (report.points, report.steps) == (2100, 3)
    assert [len(_history(store.server, report.run_id, key)) for key in ("level/0", "level/1299")] == [3, 1]
    state = json.loads((run_directory / "tracking.json").read_text())
    assert state["last_step"] == 3
    assert path.read_bytes()[state["offset"] :].startswith(b'{"step": 3')


def test_nan_and_infinite_values_arrive_as_nan(store: Any, run_directory: Path) -> None:
    with Spool(run_directory / "metrics.jsonl") as spool:
        for step, value in enumerate((1.0, math.nan, math.inf, -math.inf, 2.0), 1):
            spool.write(step, {"train/loss": value, "a//b/../é": value})
    report = forward(run_directory, store.server)
    values = [point.value for point in _client(store.server).get_metric_history(report.run_id, "train/loss")]
    assert [values[0], values[-1]] == [1.0, 2.0]
    assert all(math.isnan(value) for value in values[1:4])
    assert len(_history(store.server, report.run_id, entity_key("a//b/../é"))) == 5
    assert forward(run_directory, store.server).points == 0


def test_names_parameters_tags_files_and_status(uri: str, run_directory: Path) -> None:
    name = "run \"of\" 'many' $(rm -rf /) `x`;\n\x00<b> ünï " + "n" * 400
    config: dict[str, Any] = {"data": {"mixture": [{"path": "a b"}, {"path": None}], "empty": {}}}
    config |= {"we ird'/../$key": "v\n\0" + "é" * 7000, "levels": [1, 2.5], "flag": True}
    config |= {f"k{number}": number / 3 for number in range(60)}
    (run_directory / "run.json").write_text(json.dumps({"name": name}))
    (run_directory / "config.yaml").write_text(yaml.safe_dump(config))
    machine = {"host": "node'7", "packages": {"torch": "2.13"}}
    (run_directory / "environment.json").write_text(json.dumps(machine))
    (run_directory / "plots").mkdir()
    (run_directory / "plots" / "loss.png").write_bytes(b"\x89PNG")
    _write(run_directory, range(1, 3), -1)
    experiment = f"an 'other' one of {uri[:4]}"
    run_id = forward(run_directory, uri, experiment, finished="FAILED").run_id
    run = _client(uri).get_run(run_id)
    assert (run.info.run_name, run.info.status) == (run_name(name, ""), "FAILED")
    assert dict(run.data.params) == flatten(config)
    assert run.data.params["data.mixture.0.path"] == "a b"
    assert run.data.tags["environment.packages.torch"] == "2.13"
    files = {file.path for place in (None, "plots") for file in _client(uri).list_artifacts(run_id, place)}
    assert files == {"config.yaml", "configs", "plots", "plots/loss.png"}

    (run_directory / "config.yaml").write_text(yaml.safe_dump(config | {"k0": "changed", "fresh": 1}))
    _write(run_directory, range(3, 4), 2)
    forward(run_directory, uri, experiment)
    again = _client(uri).get_run(run_id)
    assert (again.info.status, again.data.params["k0"], again.data.params["fresh"]) == ("RUNNING", "0.0", "1")
    assert again.data.tags["lacuna.config_digest"] != run.data.tags["lacuna.config_digest"]
    assert os.listdir() == []


def test_artifacts_of_a_database_lie_beside_it(store: Any, run_directory: Path) -> None:
    (run_directory / "config.yaml").write_text("a: 1\n")
    run_id = forward(run_directory, store.database, experiment="files", finished="FINISHED").run_id
    folder = Path(store.database.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert (folder / run_id / "artifacts" / "config.yaml").read_text() == "a: 1\n"


def test_another_server_gets_all_and_the_first_then_what_it_lacks(store: Any, run_directory: Path) -> None:
    _write(run_directory, range(1, 6), -1)
    first = forward(run_directory, store.server)
    other = forward(run_directory, store.database, experiment="elsewhere")
    assert (other.steps, other.run_id != first.run_id) == (5, True)
    _write(run_directory, range(6, 9), 5)
    assert forward(run_directory, store.server) == ForwardReport(9, 3, first.run_id)


def test_a_deleted_run_is_named_and_not_made_anew(store: Any, run_directory: Path) -> None:
    _write(run_directory, range(1, 3), -1)
    run_id = forward(run_directory, store.server).run_id
    _client(store.server).delete_run(run_id)
    with pytest.raises(UserError, match=f"run {run_id} is deleted"):
        forward(run_directory, store.server)


@pytest.fixture
def failing_server() -> Iterator[str]:
    """A server that answers everything with status 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Silence."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        yield f"127.0.0.1:{hole.getsockname()[1]}"


@pytest.fixture
def refused() -> str:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["failing_server", "black_hole", "refused"])
def test_a_dead_server_fails_soon_in_one_line_without_secrets_and_loses_nothing(
    store: Any, run_directory: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(kind)
    _write(run_directory, range(1, 4), -1)
    spool = (run_directory / "metrics.jsonl").read_bytes()
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        forward(run_directory, f"http://me:s3cr3t@{address}", seconds=2)
    assert time.monotonic() - started < 8
    message = str(caught.value)
    assert f"http://***@{address}" in message
    assert "lacuna track sync" in message
    assert "s3cr3t" not in message
    assert "\n" not in message
    assert "s3cr3t" not in "".join(file.read_text() for file in run_directory.iterdir() if file.is_file())
    assert (run_directory / "metrics.jsonl").read_bytes() == spool
    assert forward(run_directory, store.server).steps == 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("", "tracking.uri is empty"),
        ("http://", "names no host"),
        ("http://host:port", "is no URI"),
        ("http://.x", "is no host name"),
        ("sqlite://", "in memory"),
        ("sqlite:////proc/none/x.db", "tracking server sqlite:////proc/none/x.db failed"),
        ("gopher://x", "tracking server gopher://x failed"),
    ],
)
def test_bad_uris_are_named(store: Any, run_directory: Path, bad: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        forward(run_directory, bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"uri": 1}', '{"uri":"","experiment":"","key":"a\'b"}'])
def test_a_broken_state_file_is_named(store: Any, run_directory: Path, text: str) -> None:
    (run_directory / "tracking.json").write_text(text)
    with pytest.raises(UserError, match=r"tracking\.json"):
        forward(run_directory, store.server)


def test_wrong_arguments_are_named(run_directory: Path) -> None:
    with pytest.raises(UserError, match="status 'DONE' is none of FINISHED"):
        forward(run_directory, "http://127.0.0.1:1", finished="DONE")
    with pytest.raises(UserError, match="not a run directory"):
        forward(run_directory / "none", "http://127.0.0.1:1")


def test_two_forwarders_at_once_send_each_point_once(store: Any, run_directory: Path) -> None:
    _write(run_directory, range(1, 201), -1)
    reports: list[ForwardReport] = []

    def send() -> None:
        reports.append(forward(run_directory, store.server))

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.steps for report in reports) == [0, 0, 200]
    assert _history(store.server, reports[0].run_id) == _expected(range(1, 201))


def test_a_run_without_metrics_or_files_is_there_and_may_move(store: Any, run_directory: Path) -> None:
    report = forward(run_directory, store.server)
    assert (report.points, report.steps) == (0, 0)
    assert _client(store.server).get_run(report.run_id).info.run_name == "run"
    moved = run_directory.with_name("moved")
    shutil.move(run_directory, moved)
    assert forward(moved, store.server).run_id == report.run_id


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000/x", "http://host:5000/x"),
        ("https://me:pw@host/x", "https://***@host/x"),
        ("https://token@host", "https://***@host"),
        ("postgresql://u:p/w?@#x@host/db", "postgresql://***@host/db"),
        ("http://h/?api_token=abc&b=1&PASSWORD=x", "http://h/?api_token=***&b=1&PASSWORD=***"),
        ("sqlite:////home/me@corp/x.db", "sqlite:////home/me@corp/x.db"),
        ("http://me:pa ss@h", "http://***@h"),
        ("sqlite+pysqlcipher://:pw@/x.db", "sqlite+pysqlcipher://***@/x.db"),
    ],
)
def test_redacted_uris(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionRefusedError(111, "Connection refused")


@given(before=st.text(), after=st.text(), host=st.sampled_from(["127.0.0.1:1", "h:x", ""]))
@settings(max_examples=300, deadline=None)
def test_no_password_is_ever_shown(before: str, after: str, host: str) -> None:
    """Whatever characters it has, in the URI alone, amid a text, and in what is said of a server that fails."""
    for uri in (f"http://me:{before}s3cr3t{after}@{host}/x", f"https://{before}s3cr3t{after}@{host}"):
        assert "s3cr3t" not in redact(uri)
        assert "s3cr3t" not in redact(one_line(Exception(f"GET {uri} failed (at {host})")))
        assert "s3cr3t" not in unreachable(uri, "refused")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "create_connection", _refuse)
            patch.setattr("urllib.request.getproxies", dict)
            with pytest.raises(UserError) as caught:
                check_reachable(uri, 0.1)
        assert "s3cr3t" not in str(caught.value)


@given(before=st.text(), after=st.text().filter(lambda text: "&" not in text))
@settings(max_examples=200, deadline=None)
def test_no_secret_of_a_query_is_ever_shown(before: str, after: str) -> None:
    before = before.replace("&", "")
    assert "s3cr3t" not in redact(f"http://host/x?a=1&api_token={before}s3cr3t{after}&b=2")


def test_where_artifacts_go() -> None:
    run = Path("/runs/a")
    assert artifact_folder("sqlite:////data/x.db?timeout=3", run) == Path("/data/mlartifacts")
    assert artifact_folder("sqlite:///x.db", run) == Path.cwd() / "mlartifacts"
    assert artifact_folder("postgresql+psycopg://h/db", run) == Path("/runs/mlartifacts")
    assert artifact_folder("https://h", run) is None


@pytest.mark.parametrize("name", ["", "/", "..", "a//b", "/a", "a\nb", "x" * 251, "ü", "a/../b", "\ud800"])
def test_entity_keys_are_taken_by_mlflow_and_stay_apart(store: Any, name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    key = entity_key(name)
    _validate_metric_name(key)
    assert key != name
    assert len(key) <= 250
    assert key != entity_key(name + " ")
    assert entity_key("train/loss_at_level/0") == "train/loss_at_level/0"
