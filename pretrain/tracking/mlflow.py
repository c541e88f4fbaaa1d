"""Show a run's metrics file to MLflow: one MLflow run over all restarts, every point exactly once.

`RUN/tracking.json` remembers how far the sending has come. A kill between the server's yes and that note is
harmless, because each call first asks the server for the last step it has of every metric.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.run_directory import RunDirectory
from pretrain.tracking.describe import entity_key, run_name, value_text
from pretrain.tracking.evaluations import send_evaluation, unsent_evaluations
from pretrain.tracking.facts import (
    CHANGED_TAG,
    run_parameters,
    run_tags,
    send_checkpoints,
    send_config,
    send_slow_ranks,
)
from pretrain.tracking.plots import plot_losses
from pretrain.tracking.replaced import REPLACED_TAG, fingerprint, may_differ, replaced_steps, shown_value
from pretrain.tracking.server import POINTS_PER_BATCH, Point, TrackingServer
from pretrain.tracking.spool import iterate_metrics
from pretrain.tracking.state import ForwardState, only_forwarder, read_state, write_state
from pretrain.tracking.time_plot import plot_time
from pretrain.tracking.uri import artifact_folder, redact
from runtime.errors import UserError
from runtime.files import read_json

_KEY_TAG = "lacuna.run"
_STATUSES = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class ForwardReport:
    """What one call of `forward` sent: `points` values out of `steps` steps, to MLflow run `run_id`; and whether it
    gave the run another final status.
    """

    points: int
    steps: int
    run_id: str
    status_changed: bool = False


def forward(
    run_directory: Path,
    uri: str,
    experiment: str = "lacuna",
    finished: str | None = None,
    seconds: int = 10,
    plots: bool = False,
) -> ForwardReport:
    """Send what MLflow at `uri` lacks of the run; with `plots` its plots too, with `finished` also its final status.

    Steps up to the last one sent are never sent again, even if a resumed run has written them anew; where its values
    are others, the tag `lacuna.replaced_steps` says so. Infinite values arrive as NaN (MLflow would turn them into
    1.8e308). Strings are not metrics and stay in the spool.
    A copy of a run directory that goes its own way must lose its `tracking.json` first.

    Raises UserError in one line, within about `seconds` (seconds a request may take), if the server is dead,
    refuses, or another process is forwarding the run. Nothing is lost: the next call continues.
    """
    if finished is not None and finished not in _STATUSES:
        raise UserError(f"status {finished!r} is none of {', '.join(_STATUSES)}")
    if not run_directory.is_dir():
        raise UserError(f"{run_directory} is not a run directory: check the path")
    artifacts = artifact_folder(uri, run_directory)
    with only_forwarder(run_directory):
        server = TrackingServer(uri, seconds)
        state = read_state(run_directory, redact(uri), experiment)
        if state.run_id is None:
            state = _open_run(run_directory, server, state, artifacts)
        report = _send(run_directory, server, state, ended=finished is not None)
        if finished is not None and server.facts(report.run_id).status != finished:  # else it would have ended now
            server.finish(report.run_id, finished)
            report = replace(report, status_changed=True)
        if finished is not None or plots:
            _send_plots(run_directory, server, report.run_id)
        _send_evaluations(run_directory, server, read_state(run_directory, redact(uri), experiment), artifacts)
        return report


def _open_run(run_directory: Path, server: TrackingServer, state: ForwardState, artifacts: Path | None) -> ForwardState:
    """`state` with its MLflow run, which is found or made."""
    write_state(run_directory, state)  # the key must be known before a run carries it
    experiment_id = server.experiment(state.experiment, artifacts)
    run_id = server.find_run(experiment_id, _KEY_TAG, state.key)
    if run_id is None:
        path = run_directory / "run.json"
        facts = read_json(path) if path.exists() else {}
        name = run_name(facts.get("name") if isinstance(facts, dict) else None, run_directory.name)
        run_id = server.create_run(experiment_id, name, {_KEY_TAG: state.key})
    state = replace(state, run_id=run_id)
    write_state(run_directory, state)
    return state


def _send(run_directory: Path, server: TrackingServer, state: ForwardState, ended: bool) -> ForwardReport:
    """Send all lines after the state's last step, and note each batch that the server has taken."""
    run_id = state.run_id
    assert run_id is not None
    facts = server.facts(run_id)
    directory = RunDirectory(run_directory)
    parameters = {k: text for k, text in run_parameters(directory).items() if k not in facts.parameters}
    tags = run_tags(directory, facts.parameters, facts.tags)
    server.describe(run_id, parameters, {k: text for k, text in tags.items() if facts.tags.get(k) != text})
    if CHANGED_TAG in facts.tags and CHANGED_TAG not in tags:
        server.remove_tags(run_id, [CHANGED_TAG])
    metrics = run_directory / "metrics.jsonl"
    if may_differ(metrics, state, facts.last_steps, ended):
        replaced = replaced_steps(metrics, server, run_id, ended)
        server.describe(run_id, {}, {REPLACED_TAG: value_text(replaced)} if replaced else {})
    sent = steps = 0
    slow: str | None = None
    for batch in _batches(metrics, state, facts.last_steps):
        if batch.points and sent == 0 and facts.status != "RUNNING":
            server.reopen(run_id)
        for start in range(0, len(batch.points), POINTS_PER_BATCH):
            server.send(run_id, batch.points[start : start + POINTS_PER_BATCH])
        state = replace(state, last_step=batch.last_step, offset=batch.offset, fingerprint=batch.fingerprint)
        write_state(run_directory, state)
        sent, steps = sent + len(batch.points), steps + batch.steps
        slow = slow if batch.slow is None else batch.slow
    send_slow_ranks(server, run_id, slow, facts.tags)
    send_checkpoints(directory, server, run_id, facts.tags)
    send_config(directory, server, run_id, facts.tags)  # last: a store of files that fails holds up no numbers
    return ForwardReport(sent, steps, run_id)


@dataclass
class _Batch:
    """Whole lines whose points fit one request (a single line may need more than one). `slow`: the last that they say
    of slow ranks, empty if none is.
    """

    points: list[Point]
    steps: int = 0
    last_step: int = -1
    offset: int = 0
    fingerprint: str = ""
    slow: str | None = None


def _batches(path: Path, state: ForwardState, last_steps: Mapping[str, int]) -> Iterator[_Batch]:
    batch = _Batch([])
    for offset, entry in _lines_after(path, state):
        points = [point for point in _points(entry) if point.step > last_steps.get(point.key, -1)]
        if batch.steps and len(batch.points) + len(points) > POINTS_PER_BATCH:
            yield batch
            batch = _Batch([])
        batch.points += points
        batch.steps, batch.last_step, batch.offset = batch.steps + bool(points), entry["step"], offset
        batch.fingerprint = fingerprint(entry)
        if "health/slow_ranks" in entry:
            batch.slow = f"{entry['health/slow']}, step {entry['step']}" if "health/slow" in entry else ""
    if batch.last_step >= 0:
        yield batch


def _lines_after(path: Path, state: ForwardState) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines after the state's last step; read from its place on, if the file still has that step there."""
    if not path.exists():
        return
    offset = 0
    if 0 < state.offset < path.stat().st_size:
        first = next(_tail(path, state.offset), None)
        offset = state.offset if first is not None and first["step"] == state.last_step else 0
    for place, entry in iterate_metrics(path, offset):
        if entry["step"] > state.last_step:
            yield place, entry


def _tail(path: Path, offset: int) -> Iterator[dict[str, Any]]:
    """Lines from `offset` on; none if the file was written anew and `offset` is now amid a line."""
    try:
        for _, entry in iterate_metrics(path, offset):
            yield entry
    except UserError:
        return


def _points(entry: Mapping[str, Any]) -> Iterator[Point]:
    moment = entry.get("time", 0)
    milliseconds = int(moment * 1000) if isinstance(moment, int | float) and 0 <= moment < 1e12 else 0
    for key, value in entry.items():
        if key not in ("step", "time") and isinstance(value, int | float):
            yield Point(entity_key(key), shown_value(value), entry["step"], milliseconds)


def _draw(run_directory: Path) -> None:
    """Draw what the plots of the run do not show yet."""
    metrics, plots = run_directory / "metrics.jsonl", run_directory / "plots"
    if not metrics.exists():
        return
    drawings: dict[str, Callable[[Path], None]] = {
        "loss.png": lambda out: plot_losses([(run_directory.name, metrics)], out),
        "goodput.png": lambda out: plot_time(metrics, out),
    }
    for name, draw in drawings.items():
        out = plots / name
        if not out.exists() or out.stat().st_mtime < metrics.stat().st_mtime:
            with suppress(UserError, OSError):  # nothing to draw yet, or no room: the numbers are in the metrics
                draw(out)


def _send_plots(run_directory: Path, server: TrackingServer, run_id: str) -> None:
    _draw(run_directory)
    for plot in sorted((run_directory / "plots").glob("*.png")):
        server.upload(run_id, plot, "plots")


def _send_evaluations(run_directory: Path, server: TrackingServer, state: ForwardState, artifacts: Path | None) -> None:
    """Show evaluations that the server has not, as children of the run, and note each."""
    assert state.run_id is not None
    for path in unsent_evaluations(RunDirectory(run_directory), state.evaluations):
        experiment = server.experiment(state.experiment, artifacts)
        moment = send_evaluation(path, server, experiment, state.run_id, state.key)
        state = replace(state, evaluations={**state.evaluations, path.name: moment})
        write_state(run_directory, state)
