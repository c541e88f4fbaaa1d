"""What a run is doing, read from its directory and Slurm's queue: for tables, scripts and alarms."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.slurm.attempts import read_metadata, saved_step
from launch.slurm.client import NoAnswer, QueuedJob, have_slurm, queued
from launch.slurm.control import runs_on_this_machine
from launch.slurm.record import Submission, read_submission
from launch.slurm.unable_nodes import unable_nodes
from pretrain.goodput import newest_accounts
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.settings import read_yaml

_TAIL = 1 << 18
_RECENT = 20  # lines that the speed of now is taken from


@dataclass(frozen=True)
class RunStatus:
    """`state`: Slurm's in small letters, or `running` (on this machine), or the last attempt's outcome.

    Seconds and steps; None where a run has nothing to tell yet. `restarts`: attempts after the first one.
    `silent_seconds`: since the last line of metrics. `slow`: ranks that are slower than their peers.
    `goodput`: its share, and the seconds of each kind.
    """

    run: str
    name: str
    state: str
    reason: str
    jobs: list[str]
    step: int
    steps: int
    tokens: int
    loss: float | None
    tokens_per_second: float | None
    mfu: float | None
    eta_seconds: float | None
    silent_seconds: float | None
    checkpoint: int | None
    restarts: int
    slow: str | None
    goodput: dict[str, float] | None


def run_statuses(roots: Sequence[Path]) -> list[RunStatus]:
    """The status of every run. Slurm is asked once. Raises UserError for a directory that holds no run."""
    directories = [RunDirectory(root) for root in roots]
    for directory in directories:
        if not directory.metadata.exists():
            raise UserError(f"{directory.root} is no run directory: it has no run.json")
    submissions = [read_submission(directory) for directory in directories]
    jobs = _queue([s for s in submissions if s is not None])
    return [_status(d, s, jobs) for d, s in zip(directories, submissions, strict=True)]


def _queue(submissions: Sequence[Submission]) -> Mapping[str, list[QueuedJob]] | None:
    """Jobs in the queue by name; None if Slurm cannot tell."""
    if not submissions or not have_slurm():
        return None if submissions else {}
    try:
        found = queued(*(submission.name for submission in submissions))
    except NoAnswer:
        return None
    return {s.name: [job for job in found if job.name == s.name] for s in submissions}


def _status(
    directory: RunDirectory, submission: Submission | None, queue: Mapping[str, list[QueuedJob]] | None
) -> RunStatus:
    config, metadata = read_yaml(directory.config), read_metadata(directory)
    attempts = metadata["attempts"]
    jobs = queue.get(submission.name, []) if queue is not None and submission else []
    lines = last_lines(directory.metrics)
    last = lines[-1] if lines else {}
    steps, step = int(config["train"]["steps"]), int(last.get("step", 0))
    speeds = [line["perf/tokens_per_second"] for line in lines[-_RECENT:] if "perf/tokens_per_second" in line]
    speed = statistics.median(speeds) if speeds else None
    left = (steps - step) * int(config["train"]["global_batch"]) * int(config["train"]["sequence_length"])
    state, reason = _state(directory, attempts, jobs, asked_in_vain=submission is not None and queue is None)
    return RunStatus(
        run=str(directory.root),
        name=str(metadata.get("name", directory.root.name)),
        state=state,
        reason=reason,
        jobs=[job.identity for job in jobs],
        step=step,
        steps=steps,
        tokens=int(last.get("tokens", 0)),
        loss=last.get("train/loss"),
        tokens_per_second=speed,
        mfu=last.get("perf/mfu"),
        eta_seconds=left / speed if speed else None,
        silent_seconds=max(0.0, time.time() - last["time"]) if "time" in last else None,
        checkpoint=saved_step(directory) or None,
        restarts=max(0, len(attempts) - 1),
        slow=None if "outcome" in (attempts[-1] if attempts else {}) else last.get("health/slow"),
        goodput=_goodput(directory, last),
    )


def _goodput(directory: RunDirectory, last: Mapping[str, Any]) -> dict[str, float] | None:
    accounts = newest_accounts(directory, last)
    return None if accounts is None else {"share": accounts.goodput, "wall": accounts.wall, **accounts._asdict()}


def _state(
    directory: RunDirectory, attempts: Sequence[Mapping[str, Any]], jobs: Sequence[QueuedJob], asked_in_vain: bool
) -> tuple[str, str]:
    active = next((job for job in jobs if job.state != "PENDING"), jobs[0] if jobs else None)
    if active is not None:
        return active.state.lower(), "" if active.reason == "None" else active.reason
    if runs_on_this_machine(directory):
        return "running", ""
    unable = unable_nodes(directory)
    if unable:
        return "failed", "; ".join(f"{node}: {reason}" for node, reason in unable.items())
    last = attempts[-1] if attempts else {}
    reason = str(last.get("reason", ""))
    if "outcome" in last:
        return str(last["outcome"]), reason
    if asked_in_vain:
        return "unknown", "Slurm does not answer"
    return ("gone", "it ended without a word") if attempts else ("prepared", "")


def last_lines(path: Path) -> list[dict[str, Any]]:
    """The last lines of a metrics file, however long it is; a torn one is left out."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found
