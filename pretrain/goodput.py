"""Where the wall time of a run goes, over all of its attempts.

The accounts stand in every line of metrics, and in `goodput.json` for what happens between lines: at an
attempt's begin and end, and every half minute where lines are rarer. Lines that a resumed
attempt drops and writes anew have cost time too: before they go, their seconds are booked as lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import psutil

from pretrain.run_directory import RunDirectory
from pretrain.tracking.spool import iterate_metrics
from runtime.deadline import STARTED
from runtime.errors import UserError
from runtime.files import read_json, write_json

_SHARE = "goodput/share"
_KEYS = (
    "goodput/productive_seconds",
    "goodput/data_wait_seconds",
    "goodput/checkpoint_seconds",
    "goodput/restart_seconds",
    "goodput/lost_seconds",
    "faults/lost_steps",
    "faults/restarts",
)
"""Of the fields of `Accounts`, in a line of metrics."""
_DIGITS = 3
_UNTOLD = 30.0


class Accounts(NamedTuple):
    """Seconds since the run began, each in one of five kinds.

    `productive`: steps that stay. `data_wait`: waits for batches, of rank 0 and of ranks that hold it up. `checkpoint`:
    training kept waiting by saves. `restart`: before the first step of an attempt, and after what was written down last
    of the attempt before. `lost`: steps that were done again, with their waits and saves. All as rank 0 sees them.
    `restarts` counts attempts after the first one that got as far as training.
    """

    productive: float = 0.0
    data_wait: float = 0.0
    checkpoint: float = 0.0
    restart: float = 0.0
    lost: float = 0.0
    lost_steps: int = 0
    restarts: int = 0

    @property
    def wall(self) -> float:
        """Seconds since the run began."""
        return self.productive + self.data_wait + self.checkpoint + self.restart + self.lost

    @property
    def goodput(self) -> float:
        """Share of the wall time that was productive; 0 before anything was."""
        return self.productive / self.wall if self.wall > 0 else 0.0

    def metrics(self) -> dict[str, float]:
        """The accounts as values of a line of metrics, to the millisecond."""
        return {_SHARE: self.goodput, **dict(zip(_KEYS, [round(value, _DIGITS) for value in self], strict=True))}

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Accounts | None:
        """The accounts in a line of metrics; None if it has none."""
        values = [line.get(key) for key in _KEYS]
        if not all(isinstance(value, int | float) for value in values):
            return None
        return cls(*values)  # type: ignore[arg-type]  # all are numbers


@dataclass(frozen=True)
class Entry:
    """The accounts after `step`, at `time` (seconds since 1970)."""

    step: int
    time: float
    accounts: Accounts


class Ledger:
    """Keeps the accounts of a run through one attempt, from the moment that it begins to train."""

    def __init__(self, before: Accounts) -> None:
        self._before, self._start, self._waited = before, time.perf_counter(), 0.0
        self._told = self._start

    @property
    def must_tell(self) -> bool:
        """Whether nothing has been written down for half a minute, so that a kill would leave it unaccounted for."""
        return time.perf_counter() - self._told >= _UNTOLD

    def told(self) -> None:
        """The accounts have just been written down."""
        self._told = time.perf_counter()

    def wait(self, seconds: float) -> None:
        """A batch was waited for."""
        self._waited += seconds

    def accounts(self, stalled: float) -> Accounts:
        """As they stand now; `stalled`: seconds that saves of this attempt have kept the training waiting."""
        before, elapsed = self._before, time.perf_counter() - self._start
        return before._replace(
            productive=before.productive + max(0.0, elapsed - self._waited - stalled),
            data_wait=before.data_wait + self._waited,
            checkpoint=before.checkpoint + stalled,
        )


def open_accounts(directory: RunDirectory, step: int, began: float, now: float) -> Accounts:
    """The accounts with which an attempt begins to train at `now`, after `step`; `began`: when the attempt did.

    Must be called, and its result written, before lines after `step` are dropped.
    """
    kept, newest = _entries(directory, step)
    if newest is None:
        return Accounts(restart=max(0.0, now - began))
    found, stays = newest.accounts, kept.accounts if kept else Accounts()
    lost = sum(getattr(found, kind) - getattr(stays, kind) for kind in ("productive", "data_wait", "checkpoint"))
    return Accounts(
        productive=stays.productive,
        data_wait=stays.data_wait,
        checkpoint=stays.checkpoint,
        restart=found.restart + max(0.0, now - newest.time),
        lost=found.lost + lost,
        lost_steps=found.lost_steps + max(0, newest.step - step),
        restarts=found.restarts + 1,
    )


def _entries(directory: RunDirectory, step: int) -> tuple[Entry | None, Entry | None]:
    """(the last entry up to `step`, the newest of all)."""
    kept = newest = None
    for _, line in iterate_metrics(directory.metrics, skip_broken=True) if directory.metrics.exists() else ():
        entry = _entry_of_line(line)
        if entry is not None:
            newest = entry
            kept = entry if entry.step <= step else kept
    noted = _noted(directory)
    if noted is not None:  # of the last attempt, as are the newest lines
        newest = noted if newest is None or noted.time >= newest.time else newest
        kept = noted if noted.step <= step and (kept is None or noted.step >= kept.step) else kept
    return kept, newest


def newest_accounts(directory: RunDirectory, last_line: Mapping[str, Any]) -> Accounts | None:
    """What is known last of a run: `last_line` of its metrics, or `goodput.json`; None if there is nothing."""
    entries = [entry for entry in (_entry_of_line(last_line), _noted(directory)) if entry is not None]
    return max(entries, key=lambda entry: entry.time).accounts if entries else None


def note_accounts(directory: RunDirectory, step: int, accounts: Accounts) -> None:
    """Write `goodput.json`. Raises OSError."""
    write_json(directory.goodput, {"step": step, "time": round(time.time(), _DIGITS), **accounts._asdict()})


def _entry_of_line(line: Mapping[str, Any]) -> Entry | None:
    accounts = Accounts.of_line(line)
    if accounts is None or not isinstance(line.get("time"), int | float):
        return None
    return Entry(line["step"], line["time"], accounts)


def _noted(directory: RunDirectory) -> Entry | None:
    if not directory.goodput.exists():
        return None
    try:
        values = read_json(directory.goodput)
        return Entry(int(values.pop("step")), float(values.pop("time")), Accounts(**values))
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return None  # it is for people: nothing of the run hangs on it


def attempt_began(directory: RunDirectory, attempt: int) -> float:
    """When the attempt began, seconds since 1970: its launcher, its Slurm job, or else this process."""
    if started := os.environ.get(STARTED):
        return float(started)
    entry = read_json(directory.metadata)["attempts"][attempt]
    if "job" in entry:
        return datetime.strptime(entry["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    return psutil.Process().create_time()
