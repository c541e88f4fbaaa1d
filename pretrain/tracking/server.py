"""The few things a run asks of an MLflow server, each one quick to fail and with a one-line error."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.tracking.uri import check_reachable, redact, unreachable
from runtime.errors import UserError, one_line

POINTS_PER_BATCH = 1000  # MLflow's own limit for one `log_batch`
_TEXTS_PER_BATCH = 12  # a request may hold 1 MB; a text of 6,000 characters escaped as JSON up to 72 kB
_REASON_LENGTH = 200


class Point(NamedTuple):
    """One value of a metric; `time` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True)
class RunFacts:
    """What the server has of a run: its status, texts, and for each metric the last step."""

    status: str
    parameters: Mapping[str, str]
    tags: Mapping[str, str]
    last_steps: Mapping[str, int]


class TrackingError(UserError):
    """The server refused or did not answer. `code` is MLflow's error code if it gave one."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class TrackingServer:
    """MLflow at `uri`. Every method raises TrackingError within about `seconds` if the server does not do it.

    MLflow's client would retry a dead server for minutes; here the caller decides when to try again.
    `mlflow` is imported here and not above: it takes many seconds, and only after the host has answered.
    """

    def __init__(self, uri: str, seconds: int = 10) -> None:
        check_reachable(uri, seconds)
        self._uri, self._seconds = uri, seconds
        with self._short_errors("connect"), self._quick_and_quiet():
            from mlflow.tracking import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            self._client = MlflowClient(tracking_uri=uri)

    def experiment(self, name: str, artifacts: Path | None) -> str:
        """The id of experiment `name`, made if it is not there, with its files in `artifacts`."""
        found = self._call("get_experiment_by_name", name)
        if found is None:
            location = None if artifacts is None else artifacts.as_uri()
            try:
                return str(self._call("create_experiment", name, artifact_location=location))
            except TrackingError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":  # another run was quicker
                    raise
                found = self._call("get_experiment_by_name", name)
        return str(found.experiment_id)

    def find_run(self, experiment_id: str, tag: str, value: str) -> str | None:
        """The id of the run that carries `tag` = `value`, or None. `value` must not hold quotes."""
        found = self._call("search_runs", [experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Make a run and return its id."""
        return str(self._call("create_run", experiment_id, run_name=name, tags=dict(tags)).info.run_id)

    def facts(self, run_id: str) -> RunFacts:
        """What the server has of the run; one request, however long the run is."""
        run = self._call("get_run", run_id)
        if run.info.lifecycle_stage == "deleted":
            place = redact(self._uri)
            raise TrackingError(f"run {run_id} is deleted at {place}: restore it, or remove tracking.json")
        last_steps = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        return RunFacts(run.info.status, run.data.params, run.data.tags, last_steps)

    def send(self, run_id: str, points: Sequence[Point]) -> None:
        """Add at most 1,000 points in one request; the same point twice is one point."""
        from mlflow.entities import Metric

        assert len(points) <= POINTS_PER_BATCH
        metrics = [Metric(point.key, point.value, point.time, point.step) for point in points]
        self._call("log_batch", run_id, metrics=metrics)

    def history(self, run_id: str, key: str) -> dict[int, float]:
        """All points of a metric, by step."""
        return {int(point.step): float(point.value) for point in self._call("get_metric_history", run_id, key)}

    def describe(self, run_id: str, parameters: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Set parameters (which MLflow never changes again) and tags."""
        from mlflow.entities import Param, RunTag

        for some in _pieces([Param(*item) for item in parameters.items()], _TEXTS_PER_BATCH):
            self._call("log_batch", run_id, params=some)
        for some in _pieces([RunTag(*item) for item in tags.items()], _TEXTS_PER_BATCH):
            self._call("log_batch", run_id, tags=some)

    def remove_tags(self, run_id: str, tags: Sequence[str]) -> None:
        """Remove tags."""
        for tag in tags:
            self._call("delete_tag", run_id, tag)

    def reopen(self, run_id: str) -> None:
        """Show the run as running."""
        self._call("update_run", run_id, status="RUNNING")

    def finish(self, run_id: str, status: str) -> None:
        """Show the run as ended now, with `status` FINISHED, FAILED or KILLED."""
        self._call("set_terminated", run_id, status=status)

    def upload(self, run_id: str, file: Path, folder: str | None = None) -> None:
        """Store `file` among the run's artifacts, below `folder`."""
        self._call("log_artifact", run_id, str(file), folder)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        with self._short_errors(method), self._quick_and_quiet():
            return getattr(self._client, method)(*arguments, **named)

    @contextmanager
    def _short_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # MLflow lets errors of requests, SQLAlchemy and boto3 through
            code = str(getattr(error, "error_code", ""))
            reason = redact(one_line(error).replace(self._uri, redact(self._uri)))
            message = unreachable(self._uri, f"{doing}: {reason:.{_REASON_LENGTH}}")
            raise TrackingError(message, code) from None

    @contextmanager
    def _quick_and_quiet(self) -> Iterator[None]:
        """MLflow takes its limits from environment variables alone; set them for the time of a call."""
        wanted = {
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(self._seconds),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _pieces(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece
