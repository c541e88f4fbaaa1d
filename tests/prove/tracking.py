"""Runs shown to a tracking server that is refused, black-holed, answers 500, loses its answers or dies on the way.

`python -m tests.prove.tracking` trains the shipped recipe with the smallest steps (`demo`) against each (a real
`mlflow server` behind a listener that fails as servers do), right after a run without tracking, measures inside the
training process what logging a step takes (less than a hundredth of the step) and which connections it opens, then
lets `lacuna track sync` mend things, and asks MLflow for every point. Rewrites its part of docs/reliability.md; names
of ways as arguments run those only.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from pretrain.tracking.spool import read_metrics
from runtime.files import read_json
from tests.prove.page import renew_rows
from tests.support.command_line import lacuna, succeeded
from tests.support.hooked import hooked
from tests.support.mlflow_server import serving
from tests.support.small_run import build_dataset, write_corpus
from tests.support.unreliable_server import Mode, UnreliableServer

NAME = "tracking"
STEPS = 100
_MOST = 0.01  # of a step, for logging it
_KEYS = ("train/loss", "tokens", "goodput/share")
_WAYS: dict[str, tuple[Mode, Mode]] = {
    "works": ("works", "works"),
    "refused": ("refused", "refused"),
    "black hole": ("black hole", "black hole"),
    "answers 500": ("500", "500"),
    "answers get lost": ("cut", "cut"),
    "dies amid the run": ("works", "refused"),
}
_HEAD = (
    f"`python -m tests.prove.tracking`: {STEPS} steps of the recipe `demo` each, {len(_KEYS)} metrics looked for. "
    "Medians; each run comes right after one without tracking, from which it differs by what the machine did "
    "otherwise, too.",
    "",
    "| server | a step | without tracking | of the step, logging it | share | CPU time of processes beside it, without "
    "| connections of the training process while it trained | points there at its end | after `track sync` |",
    "|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Cost:
    """Of a run: milliseconds of a step and of logging it (medians), CPU seconds of its children (the process that
    talks to MLflow, and what every run starts), and connections opened while it trained.
    """

    step: float
    logging: float
    beside: float
    connections: int


@dataclass(frozen=True)
class Row:
    """A run with tracking, one without, and points in MLflow `before` and `after` the sync."""

    way: str
    cost: Cost
    without: Cost
    before: int
    after: int


def run_way(way: str, work: Path, data: Path, target: str) -> Row:
    """Train without tracking, then against one kind of server. Raises AssertionError if a point is missing or twice."""
    run, audit, plain = work / f"run {way}", work / f"{way}.json", work / f"run without, {way}"
    variables = hooked(LACUNA_AUDIT=str(audit))
    changes = [f"data.path={data}", f"train.steps={STEPS}", "checkpoint.every=1000"]
    arguments = ["train", "demo", "--run", run, *changes]
    succeeded(lacuna("train", "demo", "--run", plain, *changes, "tracking.enabled=false", **variables))
    without = _cost(plain, audit)
    first, second = _WAYS[way]
    with UnreliableServer(target) as server:
        server.become(first)
        changing = threading.Thread(target=_change, args=(server, run, first, second, target))
        changing.start()
        tracking = ["tracking.enabled=true", f"tracking.uri={server.uri}", f"tracking.experiment={way}"]
        result = lacuna(*arguments, *tracking, **variables)
        assert "Traceback" not in succeeded(result) + result.stderr, result.stderr
        changing.join()
        before = _points(target, run)
        assert first == second or 0 < before < len(_KEYS) * STEPS, f"it did not die amid the run: {before} points"
        server.become("works")
        succeeded(lacuna("track", "sync", run))
        assert json.loads(succeeded(lacuna("track", "sync", run, "--json")))["points"] == 0
    return Row(way, _cost(run, audit), without, before, _points(target, run))


def _change(server: UnreliableServer, run: Path, first: Mode, second: Mode, target: str) -> None:
    """Let the server fail otherwise once half of the steps are done and it has some of the points."""
    if first == second:
        return
    metrics, end = run / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < STEPS // 2 or not _points(target, run):
        if time.monotonic() > end:
            return
        time.sleep(0.05)
    server.become(second)


def _points(uri: str, run: Path) -> int:
    """Points of the three metrics that MLflow has, none of them twice."""
    from mlflow.tracking import MlflowClient

    run_id = read_json(run / "tracking.json")["run_id"] if (run / "tracking.json").exists() else None
    if run_id is None:
        return 0
    count = 0
    for key in _KEYS:
        steps = [point.step for point in MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)]
        assert sorted(set(steps)) == sorted(steps), f"{key} has a step twice"
        count += len(steps)
    return count


def _cost(run: Path, audit: Path) -> Cost:
    lines, found = read_metrics(run / "metrics.jsonl"), read_json(audit)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    step = statistics.median(line["perf/step_seconds"] for line in lines)
    logging = statistics.median(found["seconds"])
    audit.unlink()
    return Cost(1000 * step, 1000 * logging, found["children_cpu_seconds"], found["connections"])


def line(row: Row) -> str:
    """The row of the table."""
    cost, without = row.cost, row.without
    cells = [row.way, f"{cost.step:.1f} ms", f"{without.step:.1f} ms", f"{cost.logging:.2f} ms"]
    cells += [f"{cost.logging / cost.step:.2%}", f"{cost.beside:.1f} s, {without.beside:.1f} s", str(cost.connections)]
    return f"| {' | '.join([*cells, str(row.before), f'{row.after} of {len(_KEYS) * STEPS}'])} |"


def main() -> None:
    """Parse arguments, run, and rewrite the report between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="*", choices=[[], *_WAYS])
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started goes too
    with tempfile.TemporaryDirectory(prefix="lacuna-tracking-") as folder:
        work = Path(folder)
        (work / "corpus").mkdir()
        data = build_dataset(write_corpus(work / "corpus"), work / "data")
        with serving(work / "mlflow.db") as target:
            for way in options.ways or _WAYS:
                row = run_way(way, work, data, target)
                print(row, file=sys.stderr, flush=True)
                opened = row.cost.connections
                assert opened == 0, f"{way}: training opened {opened} connections"
                assert row.after == len(_KEYS) * STEPS, f"{way}: {row.after} points"
                assert row.cost.logging < _MOST * row.cost.step, f"{way}: logging is {_MOST:.0%} of a step or more"
                renew_rows(options.page, NAME, _HEAD, {way: line(row)}, list(_WAYS))


if __name__ == "__main__":
    main()
