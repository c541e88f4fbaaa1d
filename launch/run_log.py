"""A rank's log as lines for people, from the attempt under way or an earlier one, and on into the next ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from launch.slurm.attempts import read_metadata
from launch.slurm.client import NoAnswer, have_slurm, queued
from launch.slurm.control import runs_on_this_machine
from launch.slurm.record import read_submission
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError

_PAUSE = 0.5
_QUEUE_PAUSE = 2.0


def rank_log(directory: RunDirectory, rank: int, attempt: int | None, follow: bool) -> Iterator[str]:
    """Lines of a rank's log. With `follow` it waits for more, through restarts and for a first attempt that still waits
    in the queue, until nothing of the run waits or runs.

    Raises UserError if there is no such attempt, or the rank has no log in it.
    """
    attempts = len(read_metadata(directory)["attempts"])
    number = max(0, attempts - 1) if attempt is None else attempt
    awaited = follow and number == attempts and _goes_on(directory)
    if number >= attempts and not awaited:
        raise UserError(f"{directory.root} has no attempt {number}: it has {attempts}, counted from 0")
    if follow:
        yield from _followed(directory, rank, number)
        return
    path = _path(directory, number, rank)
    if not path.exists():
        raise UserError(f"{path} does not exist: rank {rank} has not started in attempt {number}")
    yield from _lines(path, 0)[0]


def _followed(directory: RunDirectory, rank: int, number: int) -> Iterator[str]:
    offset = 0
    while True:
        attempts = read_metadata(directory)["attempts"]
        waits = number >= len(attempts) or "outcome" in attempts[number]
        over = waits and not _goes_on(directory)
        lines, offset = _lines(_path(directory, number, rank), offset)
        yield from lines
        if waits and len(read_metadata(directory)["attempts"]) > number + 1:
            number, offset = number + 1, 0
        elif over:
            return
        else:
            time.sleep(_QUEUE_PAUSE if waits else _PAUSE)


def _goes_on(directory: RunDirectory) -> bool:
    """Whether a job of the run waits or runs, or a process of this machine has it. Slurm's silence is no end."""
    submission = read_submission(directory)
    try:
        if submission is not None and have_slurm() and queued(submission.name):
            return True
    except NoAnswer:
        return True
    return runs_on_this_machine(directory)


def job_log(directory: RunDirectory) -> Path:
    """What the newest Slurm job of the run has printed. Raises UserError if there is none."""
    found = sorted((directory.root / "logs").glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{directory.root} has no output of a Slurm job yet")
    return found[-1]


def _path(directory: RunDirectory, attempt: int, rank: int) -> Path:
    return directory.logs(attempt) / f"rank-{rank:05d}.jsonl"


def _lines(path: Path, offset: int) -> tuple[list[str], int]:
    """Whole lines from `offset` on, as text, and where the next one begins."""
    if not path.exists():
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [_text(line) for line in whole.decode(errors="replace").splitlines()], offset + len(whole)


def _text(line: str) -> str:
    try:
        entry = json.loads(line)
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["time"]))
        trace = "\n" + entry["traceback"] if "traceback" in entry else ""
        return f"{moment} {entry['level']:<7} {entry['message']}{trace}"
    except (ValueError, KeyError, TypeError):
        return line
