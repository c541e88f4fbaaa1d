"""A rank's log as lines for people, from the attempt under way or an earlier one, and on into the next ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from launch.slurm.attempts import read_metadata
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError

_PAUSE = 0.5


def rank_log(directory: RunDirectory, rank: int, attempt: int | None, follow: bool) -> Iterator[str]:
    """Lines of a rank's log. With `follow` it waits for more, through restarts, until the run's last attempt ends.

    Raises UserError if there is no such attempt, or the rank has no log in it.
    """
    attempts = len(read_metadata(directory)["attempts"])
    number = attempts - 1 if attempt is None else attempt
    if not 0 <= number < attempts:
        raise UserError(f"{directory.root} has no attempt {number}: it has {attempts}, counted from 0")
    path = _path(directory, number, rank)
    if not follow:
        if not path.exists():
            raise UserError(f"{path} does not exist: rank {rank} has not started in attempt {number}")
        yield from _lines(path, 0)[0]
        return
    offset = 0
    while True:
        over = "outcome" in read_metadata(directory)["attempts"][number]
        lines, offset = _lines(path, offset)
        yield from lines
        if over and len(read_metadata(directory)["attempts"]) > number + 1:
            number, offset = number + 1, 0
            path = _path(directory, number, rank)
        elif over:
            return
        else:
            time.sleep(_PAUSE)


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
