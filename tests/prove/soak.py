"""A small run under random faults, with nobody attending: it must end with the bits of the run that was left alone.

`python -m tests.prove.soak` takes about 20 minutes (`--minutes`), with a fault a minute on average, and rewrites its
part of docs/reliability.md. Two ranks train on this machine; each step is held to at least a quarter of a second, so
that the machine's own speed matters little. The disk is a small one in a name space of its own, the tracking server
is a real `mlflow server` behind a listener that fails as servers do.
"""

from __future__ import annotations

import argparse
import os
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
from pretrain.interruptions import best_interval, expected_goodput
from pretrain.run_directory import RunDirectory
from pretrain.tracking.spool import read_metrics
from runtime.errors import Hang
from runtime.files import read_json
from tests.prove.page import rewrite
from tests.prove.ui import serving
from tests.support.command_line import lacuna, succeeded
from tests.support.kill_points import curves, nothing_left
from tests.support.mounting import mounting_command
from tests.support.small_run import build_dataset, write_corpus, write_recipe
from tests.support.soak import Soak, plan_faults
from tests.support.unreliable_server import UnreliableServer

NAME = "soak"
KINDS = {"kill": 2, "hang": 1, "node": 1, "signal": 2, "full disk": 1, "tracker": 1}
_WATCHDOG = {"start": 60, "data": 10, "collective": 15, "step": 15, "save": 30}
_HANG_SECONDS = 22.0  # the longest of these that matters once steps are taken, and the time for the others to answer
_MEAN, _PACE, _DISK = 60.0, 0.25, "64m"
_INSIDE = "LACUNA_SOAK_INSIDE"
_MARGIN = 0.03
_EXPECTED = 0.5  # share of the time that is assumed to be productive when the number of steps is chosen


@dataclass(frozen=True)
class Calm:
    """The run that was left alone: its curve, last checkpoint, and what saves and restarts take."""

    lines: dict[int, dict[str, Any]]
    manifest: dict[str, Any]
    save_seconds: float
    start_seconds: float
    restart_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of the soak."""

    steps: int
    every: int
    seconds: float
    accounts: Accounts
    predicted: float
    mean_between: float
    calm: Calm
    soak: Soak


def prove(work: Path, disk: Path, minutes: float, seed: int, kinds: dict[str, float]) -> Outcome:
    """Run both. Raises AssertionError if anything is not as promised."""
    steps = max(24, round(minutes * 60 * _EXPECTED / _PACE))
    corpus = work / "corpus"
    corpus.mkdir()
    recipe = write_recipe(work, build_dataset(write_corpus(corpus), work / "data"))
    with serving(_empty_store(work)) as target, UnreliableServer(target) as server:
        options = ["--processes", "2", f"train.steps={steps}", "checkpoint.keep=2", "tracking.enabled=true"]
        options += [f"tracking.uri={server.uri}", *(f"watchdog.{key}={value}" for key, value in _WATCHDOG.items())]
        calm = leave_alone(work, recipe, options, steps)
        every = max(2, round(best_interval(calm.save_seconds, _MEAN) / _PACE))
        print(
            f"left alone: saves {calm.save_seconds:.3f} s, restarts {calm.restart_seconds:.1f} s; "
            f"{steps} steps, a checkpoint every {every}",
            file=sys.stderr,
            flush=True,
        )
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
    mean = seconds / max(1, len(soak.attempts) - 1)
    after_start = 1 - calm.start_seconds / seconds
    hangs = sum(attempt.code == Hang.exit_code for attempt in soak.attempts)
    restart = calm.restart_seconds + _HANG_SECONDS * hangs / max(1, len(soak.attempts) - 1)
    predicted = after_start * expected_goodput(every * _PACE, calm.save_seconds, restart, mean)
    return Outcome(steps, every, seconds, accounts, predicted, mean, calm, soak)


def leave_alone(work: Path, recipe: Path, options: list[str], steps: int) -> Calm:
    """Train without faults and without holding steps up, in two attempts: the second tells what a restart takes."""
    run = work / "calm"
    arguments = ["train", recipe, "--run", run, *options, "checkpoint.every=20"]
    succeeded(lacuna(*arguments, "--until", "20", timeout=900))
    first = read_json(run / "goodput.json")
    succeeded(lacuna(*arguments, timeout=1800))
    second = read_json(run / "goodput.json")
    saves = [line["checkpoint/blocked_seconds"] for line in read_metrics(run / "metrics.jsonl") if _saved(line)]
    restart = second["restart"] - first["restart"]
    return Calm(curves(run), _manifest(run), sorted(saves)[len(saves) // 2], first["restart"], restart)


def _saved(line: dict[str, Any]) -> bool:
    return "checkpoint/blocked_seconds" in line


def _empty_store(work: Path) -> Path:
    return work / "mlflow.db"


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
    import psutil

    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not [p for p in psutil.process_iter(["cmdline"]) if str(run) in (p.info["cmdline"] or [])]:
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
    accounts, calm, soak = found.accounts, found.calm, found.soak
    ends = Counter(attempt.code for attempt in soak.attempts)
    kinds = Counter(fault.kind for fault, _ in soak.struck)
    lines = [
        f"`python -m tests.prove.soak --minutes {minutes:g} --seed {seed}`: {len(soak.struck)} faults in "
        f"{found.seconds / 60:.1f} minutes, {len(soak.attempts)} attempts, {found.steps} steps on two ranks, a "
        f"checkpoint every {found.every} steps (√(2·C·MTBF) of {calm.save_seconds * 1000:.0f} ms and {_MEAN:g} s). The "
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
        f"Goodput {accounts.goodput:.1%}; predicted for a first start of {calm.start_seconds:.1f} s, an interruption "
        f"every {found.mean_between:.0f} s and restarts of {calm.restart_seconds:.1f} s (both measured on the run that "
        f"was left alone), and {_HANG_SECONDS:g} s more where a hang must be found first: {found.predicted:.1%}.",
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
