"""Signs of life of the ranks of an attempt, as small files in its logs.

Files and not the ranks' meeting point (the TCP store): rank 0 is host there, and may be the one that hangs. A rank
writes at most one kilobyte a tick, in place, and looks whether an alarm file exists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from runtime.environment import node_name
from runtime.errors import UserError
from runtime.files import read_json, write_json
from runtime.machine import machine_name, process_start, runs_here

_BYTES = 1024  # more than a sign can have


@dataclass(frozen=True)
class Sign:
    """Where a rank was when it last looked up.

    `host`: as Slurm calls it, else its own name. `seconds`: how long in that phase. `waiting`: it is in a collective,
    so it waits for others. `answered`: said so after the alarm.
    """

    rank: int
    host: str
    machine: str
    pid: int
    process_started: int
    phase: str = "start"
    step: int = 0
    count: int = 0
    seconds: float = 0.0
    waiting: bool = False
    answered: bool = False

    @classmethod
    def of_this_process(cls, rank: int) -> Sign:
        """The fields that do not change."""
        return cls(rank, node_name(), machine_name(), os.getpid(), process_start(os.getpid()) or 0)

    @property
    def near(self) -> bool:
        """Whether the process is there and on this machine."""
        return self.machine == machine_name() != "" and runs_here(self.pid, self.process_started)


@dataclass(frozen=True)
class Verdict:
    """Which ranks hang, and the line that says so."""

    ranks: tuple[int, ...]
    message: str


class SignBoard:
    """The files of one attempt in `folder`."""

    def __init__(self, folder: Path, world: int) -> None:
        self.folder, self.world = folder, world
        folder.mkdir(parents=True, exist_ok=True)

    def stack(self, rank: int) -> Path:
        """Where a rank writes the stacks of its threads."""
        return self.folder / f"stack-{rank:05d}.txt"

    def show(self, sign: Sign) -> None:
        """Replace the rank's sign; blanks cover what a longer one has left. Errors of the disk are passed over."""
        line = json.dumps(asdict(sign), ensure_ascii=False).encode()
        with suppress(OSError):
            handle = os.open(self._sign(sign.rank), os.O_CREAT | os.O_WRONLY, 0o644)
            try:
                os.pwrite(handle, line.ljust(_BYTES), 0)
            finally:
                os.close(handle)

    def sign(self, rank: int) -> Sign | None:
        """What the rank has shown last; None if that is nothing, or cannot be read."""
        with suppress(UserError, TypeError):
            return Sign(**read_json(self._sign(rank)))
        return None

    def signs(self, ranks: Iterable[int]) -> dict[int, Sign]:
        """Those of `ranks` that can be read."""
        found = {rank: self.sign(rank) for rank in ranks}
        return {rank: sign for rank, sign in found.items() if sign is not None}

    def raise_alarm(self, rank: int) -> bool:
        """True for the one rank that is first; the others have been heard already, or will be."""
        try:
            os.close(os.open(self._alarm, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        return True

    @property
    def alarmed(self) -> bool:
        """Whether some rank has raised the alarm."""
        return self._alarm.exists()

    def pronounce(self, verdict: Verdict) -> None:
        """Tell all ranks. Raises OSError."""
        write_json(self._verdict, asdict(verdict))

    def verdict(self) -> Verdict | None:
        """What the rank that raised the alarm has found, once it has."""
        with suppress(UserError, TypeError, KeyError):
            found = read_json(self._verdict)
            return Verdict(tuple(found["ranks"]), str(found["message"]))
        return None

    @property
    def _alarm(self) -> Path:
        return self.folder / "alarm"

    @property
    def _verdict(self) -> Path:
        return self.folder / "hang.json"

    def _sign(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"


def state_of(sign: Sign) -> str:
    """What the system says of the process, such as `stopped`; empty if it runs, sleeps, or is not on this machine."""
    if not sign.near:
        return ""
    with suppress(psutil.Error):
        state = str(psutil.Process(sign.pid).status())
        return "" if state in (psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING) else state
    return ""
