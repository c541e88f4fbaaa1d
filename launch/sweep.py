"""Runs the points of a sweep on this machine: a pool of processes, each point a run of its own, all resumable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.pool import Job, run_jobs, why_failed
from launch.recipe import load_recipe
from launch.sweep_table import known_points
from launch.sweep_tracking import SweepTracking
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from pretrain.scaling.identity import config_digest
from pretrain.scaling.points import Measured, write_points
from pretrain.scaling.sweep import Evaluation, Point, Sweep, parse_sweep, sweep_points
from runtime.errors import LacunaError, Requeue, UserError
from runtime.files import mend_of, read_json, write_json
from runtime.progress import ProgressBar
from runtime.settings import read_yaml
from runtime.signals import StopRequest

SWEEP_FILE = "sweep.json"
"""What a sweep's directory says of itself: its file's keys, all resolved."""
_MODULE = "launch.sweep_point"
_RESULTS = ("loss", "loss_se", "bits_per_byte", "bits_per_byte_se")
_UNIT = 1e9


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep with its points; `data_tokens` of the training split and the digest of its streams, or None if the data
    is not there yet.

    `table`: where its table is kept beside that in its directory; `known`: the points that were in it, by name.
    """

    sweep: Sweep
    points: list[Point]
    data_tokens: int | None
    data_digest: str | None
    table: Path | None = None
    known: Mapping[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepDirectory:
    """Where a sweep keeps its points, each in a run directory, and their table."""

    root: Path

    @property
    def table(self) -> Path:
        """`points.csv`: what `lacuna scaling fit` reads."""
        return self.root / "points.csv"

    def run(self, point: Point) -> RunDirectory:
        """The run directory of a point."""
        return RunDirectory(self.root / "points" / point.name)

    def result(self, point: Point) -> Path:
        """What the point came to; it is there when the point is done."""
        return self.run(point).root / "result.json"

    def waiting(self, loaded: LoadedSweep) -> list[Point]:
        """The points that are done neither here nor in the sweep's table."""
        return [point for point in loaded.points if not self.result(point).exists() and point.name not in loaded.known]


def load_sweep(path: Path, need_data: bool, table: Path | None = None) -> LoadedSweep:
    """Read a sweep's file, and its `table` if there is one yet, and work out its points.

    Raises UserError naming the key, or the table's point, and the mend.
    """
    sweep = parse_sweep(read_yaml(path), str(path))
    base = load_recipe(sweep.recipe, sweep.overrides)
    data = _data(sweep) if need_data or Path(sweep.data).exists() else None
    tokens, digest = data or (None, None)
    points = sweep_points(sweep, base, tokens or 1 << 62)
    known = {} if table is None else known_points(table, sweep, points, digest)
    return LoadedSweep(sweep, points, tokens, digest, table, known)


def _data(sweep: Sweep) -> tuple[int, str]:
    from data_pipeline.dataset import TokenDataset

    dataset = TokenDataset(sweep.data)
    return dataset.tokens, dataset.manifest.stream_digest


def open_sweep(loaded: LoadedSweep, out: Path) -> tuple[SweepDirectory, list[Point]]:
    """Write what each point's process reads, and what the sweep's table knows; return the points that are not done.

    Raises UserError if `out` holds points of another sweep.
    """
    directory = SweepDirectory(out)
    _take_known(directory, loaded)
    waiting = directory.waiting(loaded)
    for point in waiting:
        write_json(directory.run(point).root / "point.json", _order(loaded, point))
    return directory, waiting


def _order(loaded: LoadedSweep, point: Point) -> dict[str, Any]:
    evaluation = loaded.sweep.evaluation.model_dump()
    return {"config": point.config.model_dump(mode="json"), "evaluation": evaluation, "data": loaded.data_digest}


def _take_known(directory: SweepDirectory, loaded: LoadedSweep) -> None:
    """Points of the sweep's table are done here too; what is done here already stays."""
    _check_finished(directory, loaded)
    write_json(directory.root / SWEEP_FILE, loaded.sweep.model_dump(mode="json"))
    for point in loaded.points:
        row = loaded.known.get(point.name)
        if row is not None and not directory.result(point).exists():
            result = {key: getattr(row, key) for key in _RESULTS}
            write_json(directory.result(point), {**result, "from": str(loaded.table), "order": _order(loaded, point)})


def collect_sweep(loaded: LoadedSweep, out: Path, tracked: bool = True, tracking_uri: str | None = None) -> int:
    """Write the table of the points that are done so far, and show them to MLflow. Returns how many they are.

    Raises UserError if `out` holds points of another sweep.
    """
    directory = SweepDirectory(out)
    _take_known(directory, loaded)
    finished = [point for point in loaded.points if directory.result(point).exists()]
    _write_table(directory, loaded)
    tracking = SweepTracking(out, loaded.sweep.name, tracking_uri) if tracked else None
    _show(tracking, directory, finished)
    if tracking is not None and len(finished) == len(loaded.points):
        tracking.finish(complete=True)
    return len(finished)


def run_sweep(
    loaded: LoadedSweep, out: Path, processes: int, tracked: bool = True, tracking_uri: str | None = None
) -> Path:
    """Train and validate every point that is not done, `processes` at a time. Returns the table's path.

    Killed at any moment, it continues where it was. Raises UserError if `out` holds points of another sweep, Requeue
    if it was stopped on request, LacunaError naming the points that failed.
    """
    directory, waiting = open_sweep(loaded, out)
    _write_table(directory, loaded)
    tracking = SweepTracking(out, loaded.sweep.name, tracking_uri) if tracked else None
    failures: dict[str, str] = {}
    total = sum(_work(point) for point in loaded.points)
    with StopRequest() as stop, ProgressBar(loaded.sweep.name, total) as bar:
        finished = [point for point in loaded.points if point not in waiting]
        bar.advance(sum(map(_work, finished)), f"{len(finished)} of {len(loaded.points)} points done")
        _show(tracking, directory, finished)
        by_name = {point.name: point for point in waiting}
        for job, code in run_jobs([_job(directory, point) for point in waiting], processes, stop):
            point = by_name[job.name]
            if code == 0 and directory.result(point).exists():
                finished.append(point)
                _write_table(directory, loaded)
                _show(tracking, directory, [point])
            else:
                failures[point.name] = why_failed(job, code)
            note = f"{len(finished)} of {len(loaded.points)} points done"
            bar.advance(_work(point), note + (f", {len(failures)} failed" if failures else ""))
    _write_table(directory, loaded)  # with a point that ended after the stop
    if tracking is not None:
        tracking.finish(complete=len(finished) == len(loaded.points))
    if stop:
        raise Requeue(f"stopped with {len(finished)} of {len(loaded.points)} points done; the same command continues")
    if failures:
        name, reason = next(iter(failures.items()))
        raise LacunaError(f"{len(failures)} points failed, the first was {name}: {reason}")
    return directory.table


def _job(directory: SweepDirectory, point: Point) -> Job:
    root = directory.run(point).root
    return Job(point.name, _MODULE, root, root / "point.log")


def measured_points(directory: SweepDirectory, loaded: LoadedSweep) -> list[Measured]:
    """The finished points as lines of the table, in the sweep's order."""
    found = []
    for point in loaded.points:
        path = directory.result(point)
        if path.exists():
            result = read_json(path)
            loss, loss_se, bits, bits_se = (result[key] for key in _RESULTS)
            found.append(point.measured(loss, loss_se, bits, bits_se, loaded.data_digest or ""))
    return found


def _write_table(directory: SweepDirectory, loaded: LoadedSweep) -> None:
    points = measured_points(directory, loaded)
    for path in (directory.table, loaded.table):
        try:
            if path is not None:
                write_points(path, points)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): {mend_of(error)}") from None


def _work(point: Point) -> int:
    return round((point.computed_flops + point.evaluation_flops) / _UNIT)


def _check_finished(directory: SweepDirectory, loaded: LoadedSweep) -> None:
    for point in loaded.points:
        path = directory.result(point)
        if path.exists() and not _is_of(read_json(path).get("order"), path, loaded, point):
            what = "another sweep file, data or code"
            raise UserError(f"{path.parent} was run with {what}: use another --out, or remove it")


def _is_of(order: Any, path: Path, loaded: LoadedSweep, point: Point) -> bool:
    """Whether a result was made by what the point says now; keys that are new since have their defaults."""
    try:
        config = RunConfig.parse(order["config"], str(path))
        evaluation = Evaluation.parse(order["evaluation"], str(path))
        return (config_digest(config, evaluation), order["data"]) == (point.config_digest, loaded.data_digest)
    except (UserError, KeyError, TypeError):
        return False


def _show(tracking: SweepTracking | None, directory: SweepDirectory, points: list[Point]) -> None:
    for point in points if tracking else ():
        assert tracking is not None
        result = read_json(directory.result(point))
        if "from" not in result:  # else its run is elsewhere, where it was shown
            tracking.show(directory.run(point), result)


def sweep_summary(loaded: LoadedSweep) -> dict[str, Any]:
    """What a sweep will do and cost, as JSON-ready values."""
    points = loaded.points
    training = sum(point.computed_flops for point in points)
    validation = sum(point.evaluation_flops for point in points)
    rate = loaded.sweep.expected_rate
    return {
        "name": loaded.sweep.name,
        "convention": loaded.sweep.convention,
        "data_tokens": loaded.data_tokens,
        "training_flops": training,
        "evaluation_flops": validation,
        "process_hours": None if rate is None else (training + validation) / rate / 3600,
        "points": [_row(point) for point in points],
    }


def _row(point: Point) -> dict[str, Any]:
    train, model = point.config.train, point.config.model
    return {
        "name": point.name,
        "family": point.config.objective.kind,
        "budget": point.budget,
        "parameters": point.parameters,
        "layers": model.layers,
        "width": model.width,
        "tokens": point.tokens,
        "steps": train.steps,
        "global_batch": train.global_batch,
        "lr": point.config.optimizer.lr,
        "flops": point.flops,
        "computed_flops": point.computed_flops,
        "evaluation_flops": point.evaluation_flops,
        "epochs": point.epochs,
        "warnings": point.warnings,
    }
