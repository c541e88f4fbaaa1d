"""A small run under random faults, with nobody attending: it must end with the bits of the run that was left alone.

`python -m tests.prove.soak` takes about 20 minutes (`--minutes`), with a fault a minute on average, and rewrites its
part of docs/reliability.md. Two ranks train on this machine; each step is held to at least a quarter of a second, so
that the machine's own speed matters little. The disk is a small one in a name space of its own, the tracking server
is a real `mlflow server` behind a listener that fails as servers do.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoint.catalogue import newest_checkpoint, verify_checkpoint
from pretrain.goodput import Accounts, newest_accounts
from pretrain.planning.interruptions import best_interval, expected_goodput
from pretrain.run_directory import RunDirectory
from pretrain.tracking.spool import read_metrics
from runtime.errors import Hang
from runtime.files import read_json
from tests.prove.page import rewrite
from tests.support.command_line import lacuna, succeeded
from tests.support.kill_points import curves, nothing_left, processes_of
from tests.support.mlflow_server import serving
from tests.support.mounting import mounting_command
from tests.support.small_run import build_dataset, write_corpus, write_recipe
from tests.support.soak import FULL_SECONDS, Attempt, Soak, plan_faults
from tests.support.unreliable_server import UnreliableServer

NAME = "soak"
KINDS = {"kill": 2, "hang": 1, "node": 1, "signal": 2, "full disk": 1, "tracker": 1}
_WATCHDOG = {"start": 60, "data": 10, "collective": 15, "step": 15, "save": 30}
_ANSWER_SECONDS = 9.0  # what the others are given to answer (4 ticks and 2 s), a tick, a second for stacks
_MEAN, _PACE, _DISK = 60.0, 0.25, "64m"
_STOPS = (12, 24, 36)
_INSIDE = "LACUNA_SOAK_INSIDE"
_MARGIN = 0.03
_EXPECTED = 0.75  # share of the time that is assumed to be productive when the number of steps is chosen


@dataclass(frozen=True)
class Calm:
    """The run that was left alone: its curve and last checkpoint."""

    lines: dict[int, dict[str, Any]]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Costs:
    """Seconds that things take where nothing is wrong, as a paced run that was stopped a few times has shown."""

    step: float
    save: float
    start: float
    restart: float


@dataclass(frozen=True)
class Outcome:
    """What became of the soak."""

    steps: int
    every: int
    seconds: float
    accounts: Accounts
    predicted: float
    mean_between: float
    costs: Costs
    soak: Soak


def prove(work: Path, disk: Path, minutes: float, seed: int, kinds: dict[str, float]) -> Outcome:
    """Run both. Raises AssertionError if anything is not as promised."""
    steps = max(24, round(minutes * 60 * _EXPECTED / _PACE))
    corpus = work / "corpus"
    corpus.mkdir()
    recipe = write_recipe(work, build_dataset(write_corpus(corpus), work / "data"))
    with serving(work / "mlflow.db") as target, UnreliableServer(target) as server:
        options = ["--processes", "2", f"train.steps={steps}", "checkpoint.keep=2", "tracking.enabled=true"]
        options += [f"tracking.uri={server.uri}", *(f"watchdog.{key}={value}" for key, value in _WATCHDOG.items())]
        calm = leave_alone(work, recipe, options)
        costs = measure(Soak(recipe, disk / "measured", disk, [*options, "checkpoint.every=4"], server, _PACE))
        shutil.rmtree(disk / "measured")
        every = max(2, round(best_interval(costs.save, _MEAN) / costs.step))
        print(f"{costs}; {steps} steps, a checkpoint every {every}", file=sys.stderr, flush=True)
        run, shared = disk / "run", set(os.listdir("/dev/shm"))
        soak = Soak(recipe, run, disk, [*options, f"checkpoint.every={every}"], server, _PACE)
        soak.last(plan_faults(kinds, minutes * 60, _MEAN, seed), limit=60 * (4 * minutes + 10))
        accounts, seconds = _accounted(run, soak.attempts[0].began)
        _wait_for_followers(run)
        nothing_left(run, shared)
        succeeded(lacuna("status", "--repair", run))
        succeeded(lacuna("track", "sync", run))
        _check_same(run, calm)
        _check_mlflow(run, target, steps)
    mean, predicted = predict(soak, costs, every, seconds)
    return Outcome(steps, every, seconds, accounts, predicted, mean, costs, soak)


def predict(soak: Soak, costs: Costs, every: int, seconds: float) -> tuple[float, float]:
    """(mean seconds between interruptions, goodput to expect) of a soak that took `seconds`.

    What interrupts is counted from the attempts; what that costs is not: a restart as measured where nothing is wrong,
    the watchdog's deadline before it where a rank hangs, and the time without room where the disk is full.
    """
    count, extra = 0, 0.0
    ended = soak.attempts[:-1]
    for number, attempt in enumerate(ended):
        if attempt.had_no_room and number and ended[number - 1].had_no_room:
            continue  # tried again too early: the same interruption
        count += 1
        if attempt.had_no_room:
            extra += FULL_SECONDS
        if attempt.code == Hang.exit_code:
            extra += _hang_deadline(soak.run, attempt) + _ANSWER_SECONDS
    mean = seconds / max(1, count)
    restart = costs.restart + extra / max(1, count)
    share = expected_goodput(every * costs.step, costs.save, restart, mean)
    return mean, (1 - costs.start / seconds) * share


def _hang_deadline(run: Path, attempt: Attempt) -> int:
    """The watchdog's limit that found the hang: before an attempt's first step it is a longer one."""
    verdicts = run.glob("logs/*/watch-*/hang.json")
    (found,) = [path for path in verdicts if attempt.began <= path.stat().st_mtime <= attempt.ended]
    waited = re.search(r"waited (\d+) s", read_json(found)["message"])
    before = waited is not None and int(waited[1]) >= _WATCHDOG["start"]
    return max(_WATCHDOG[phase] for phase in (("start",) if before else ("data", "collective", "step")))


def measure(soak: Soak) -> Costs:
    """Run to some steps past the last stop, with the tracking server, on the disk and at the pace of the soak."""
    steps = _STOPS[-1] + _STOPS[0]
    soak.options = [*soak.options, f"train.steps={steps}"]
    soak.stop_after(_STOPS, limit=600)
    _wait_for_followers(soak.run)
    lines = read_metrics(soak.run / "metrics.jsonl")
    spent = {line["run/attempt"]: line["goodput/restart_seconds"] for line in lines}
    saves = [line["checkpoint/blocked_seconds"] for line in lines if "checkpoint/blocked_seconds" in line]
    return Costs(
        step=statistics.median(line["perf/step_seconds"] for line in lines),
        save=statistics.median(saves),
        start=spent[0],
        restart=(spent[len(_STOPS)] - spent[0]) / len(_STOPS),
    )


def leave_alone(work: Path, recipe: Path, options: list[str]) -> Calm:
    """Train without faults and without holding steps up."""
    run = work / "calm"
    succeeded(lacuna("train", recipe, "--run", run, *options, "checkpoint.every=20", timeout=1800))
    return Calm(curves(run), _manifest(run))


def _accounted(run: Path, began: float) -> tuple[Accounts, float]:
    """The run's accounts and its wall time, which must agree within 1 %."""
    directory = RunDirectory(run)
    accounts = newest_accounts(directory, read_metrics(directory.metrics)[-1])
    assert accounts is not None
    seconds = float(read_json(directory.goodput)["time"]) - began
    assert abs(accounts.wall - seconds) <= 0.01 * seconds, f"{accounts} is not the wall time {seconds:.1f} s"
    return accounts, seconds


def _wait_for_followers(run: Path) -> None:
    """A follower whose launcher was killed tells MLflow so before it ends; it has a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not processes_of(run):
            return
        time.sleep(0.5)


def _manifest(run: Path) -> dict[str, Any]:
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    return verify_checkpoint(newest).model_dump(mode="json", exclude={"provenance"})


def _check_same(run: Path, calm: Calm) -> None:
    assert curves(run) == calm.lines, "metrics differ from the run that was left alone"
    assert _manifest(run) == calm.manifest, "weights or moments differ from the run that was left alone"


def _check_mlflow(run: Path, uri: str, steps: int) -> None:
    """Every point is there once, in one MLflow run, which is finished."""
    from mlflow.tracking import MlflowClient

    client, run_id = MlflowClient(tracking_uri=uri), read_json(run / "tracking.json")["run_id"]
    for key in ("train/loss", "tokens", "goodput/share"):
        found = [point.step for point in client.get_metric_history(run_id, key)]
        assert sorted(found) == list(range(1, steps + 1)), f"MLflow has {len(found)} points of {key}, not {steps}"
    assert client.get_run(run_id).info.status == "FINISHED"


def report(found: Outcome, minutes: float, seed: int) -> str:
    """Markdown: faults, ends of attempts, and where the time went."""
    accounts, costs, soak = found.accounts, found.costs, found.soak
    ends = Counter(attempt.code for attempt in soak.attempts)
    kinds = Counter(fault.kind for fault, _ in soak.struck)
    lines = [
        f"`python -m tests.prove.soak --minutes {minutes:g} --seed {seed}`: {len(soak.struck)} faults in "
        f"{found.seconds / 60:.1f} minutes, {len(soak.attempts)} attempts, {found.steps} steps on two ranks, a "
        f"checkpoint every {found.every} steps (√(2·C·MTBF) of {costs.save * 1000:.0f} ms and {_MEAN:g} s). The "
        "metrics, weights and moments are those of the run that was left alone, bit by bit; MLflow has every point "
        "once; no process and no shared memory is left.",
        "",
        "| fault | times | what it did |",
        "|---|---|---|",
    ]
    for kind in KINDS | kinds:
        done = Counter(done for fault, done in soak.struck if fault.kind == kind)
        words = ", ".join(f"{text}: {count}" for text, count in sorted(done.items()))
        lines.append(f"| {kind} | {kinds[kind]} | {words or 'left out'} |")
    codes = ", ".join(f"{count} with {code}" for code, count in sorted(ends.items()))
    shares = {
        kind: getattr(accounts, kind) / accounts.wall
        for kind in ("productive", "data_wait", "checkpoint", "restart", "lost")
    }
    times = ", ".join(f"{kind.replace('_', ' ')} {share:.1%}" for kind, share in shares.items())
    lines += [
        "",
        f"Attempts ended: {codes}. Steps done again: {accounts.lost_steps}.",
        f"Time: {times}; the sum is {accounts.wall / found.seconds:.2%} of the wall time.",
        f"Goodput {accounts.goodput:.1%}; predicted {found.predicted:.1%}, for an interruption every "
        f"{found.mean_between:.0f} s, a first start of {costs.start:.1f} s and restarts of {costs.restart:.1f} s (as a "
        f"run took that was only told to stop, {len(_STOPS)} times), the deadline by which a hang is found, and "
        f"{FULL_SECONDS:g} s where the disk is full.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, go into a name space with a small disk, run, and rewrite the report between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    parser.add_argument("--no-page", action="store_true", help="print the report only")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started goes too
    prefix = mounting_command()
    if prefix is not None and _INSIDE not in os.environ:
        command = [*prefix, sys.executable, "-m", "tests.prove.soak", *sys.argv[1:]]
        os.execvpe(command[0], command, os.environ | {_INSIDE: "1"})
    kinds = dict(KINDS)
    with tempfile.TemporaryDirectory(prefix="lacuna-soak-") as folder:
        disk = Path(folder) / "disk"
        disk.mkdir()
        if prefix is None:
            print("full disks are left out: nothing may be mounted here", file=sys.stderr)
            del kinds["full disk"]
        else:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(disk)], check=True)
        try:
            found = prove(Path(folder), disk, options.minutes, options.seed, kinds)
        finally:
            if prefix is not None:
                subprocess.run(["umount", "-l", str(disk)], check=False)
    text = report(found, options.minutes, options.seed)
    print(text)
    assert found.accounts.goodput >= found.predicted - _MARGIN, "the goodput is below the prediction"
    if not options.no_page:
        rewrite(options.page, NAME, text)


if __name__ == "__main__":
    main()
