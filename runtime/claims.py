"""Claims on a run directory: files `RUN/lease/NNNNNNNN.json`, of which the highest number counts.

A number is claimed by creating its file exclusively, so of several that try one wins, also on file systems without
locks. The highest file is never removed, so numbers only grow: they are the fencing tokens of the run.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from runtime.errors import UserError
from runtime.files import fsync_directory
from runtime.machine import machine_name, process_start
from runtime.settings import Settings

_NAME = re.compile(r"([0-9]{8})\.json")
_LAST = 99_999_999
_LONGEST = 1 << 16
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"


class Holder(Settings):
    """Content of a claim: who made it and when it last showed that it lives.

    `job` and `restart` are Slurm's job id and restart count (None and 0 without Slurm). `started` is the process's
    start in clock ticks since the machine's boot, for process numbers are used again. `beat` grows with every
    heartbeat. The nonce tells two claims of one number apart, if a person has removed the directory.
    """

    nonce: str = Field(min_length=1, max_length=64)
    job: str | None = Field(None, max_length=64)
    restart: int = Field(0, ge=0)
    host: str = Field(max_length=256)
    machine: str = Field(max_length=256)
    pid: int = Field(gt=0, lt=1 << 31)
    started: int = Field(ge=0)
    since: str = Field(max_length=64)
    heartbeat: str = Field(max_length=64)
    beat: int = Field(0, ge=0)
    released: bool = False

    @classmethod
    def this_process(cls) -> Holder:
        """A claim of this process, now."""
        now = time.strftime(TIME_FORMAT)
        job = os.environ.get("SLURM_JOB_ID") or None
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            nonce=uuid.uuid4().hex,
            job=job,
            restart=int(restart) if job and restart.isascii() and restart.isdecimal() else 0,
            host=socket.gethostname(),
            machine=machine_name(),
            pid=os.getpid(),
            started=process_start(os.getpid()) or 0,
            since=now,
            heartbeat=now,
        )

    def describe(self) -> str:
        """For people: job, place, since when."""
        job = f"job {self.job} restart {self.restart}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since}, last heartbeat {self.heartbeat}"

    def superseded_by(self, other: Holder) -> bool:
        """Whether this is an earlier start of the job that has now started `other`."""
        return self.job is not None and self.job == other.job and self.restart < other.restart


@dataclass(frozen=True)
class Claim:
    """A claim as it was found: `holder` is None if the file cannot be understood; `mtime` is in nanoseconds.

    `file`: inode, size and times, by which a file is known again.
    """

    path: Path
    token: int
    holder: Holder | None
    mtime: int
    file: tuple[int, ...]

    @property
    def pulse(self) -> tuple[int, int]:
        """Changes with every heartbeat."""
        return (self.holder.beat if self.holder else -1, self.mtime)

    def describe(self) -> str:
        """For people: the holder, or where to look."""
        return self.holder.describe() if self.holder else f"see {self.path}"


def claims_directory(root: Path) -> Path:
    """`RUN/lease`."""
    return root / "lease"


def newest_claim(root: Path, known: Claim | None = None) -> Claim | None:
    """The claim that counts on run `root`, or None. Raises OSError if the directory cannot be read.

    `known`, a claim found before, is given back without reading its file as long as that is the same file.
    """
    folder = claims_directory(root)
    while tokens := _tokens(folder):
        with suppress(FileNotFoundError):  # a newer claim came and removed it meanwhile
            newest = max(tokens)
            if known is not None and known.token == newest and known.file == _identity(os.lstat(known.path)):
                return known
            return _read(folder, newest)
    return None


def make_claim(root: Path, after: Claim | None, holder: Holder) -> int | None:
    """Claim the number that follows `after`, durably. Returns it, or None if another was quicker.

    Raises OSError if it cannot be written, UserError if there are no numbers left.
    """
    token = after.token + 1 if after else 1
    folder = claims_directory(root)
    if token > _LAST:
        raise UserError(f"{folder} has no number left after {_LAST}: remove that directory")
    path = claim_path(root, token)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    try:
        with open(handle, "wb") as file:
            file.write(holder.model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(handle)
    except OSError:
        path.unlink()
        raise
    fsync_directory(folder)
    if max(_tokens(folder), default=0) != token:  # others came and went since `after` was read
        path.unlink(missing_ok=True)
        return None
    _sweep(folder, token)
    return token


def claim_path(root: Path, token: int) -> Path:
    """The file of a claim."""
    return claims_directory(root) / f"{token:08d}.json"


def file_system_time(root: Path) -> int:
    """Now, in nanoseconds, by the clock that stamps claims on this file system."""
    probe = claims_directory(root) / f".now-{uuid.uuid4().hex}"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        return os.fstat(handle).st_mtime_ns
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def _tokens(folder: Path) -> list[int]:
    try:
        return [int(found[1]) for name in os.listdir(folder) if (found := _NAME.fullmatch(name))]
    except FileNotFoundError:
        return []


def _read(folder: Path, token: int) -> Claim:
    """A claim; a link, a pipe or whatever else stands in its place is one that cannot be understood."""
    path = folder / f"{token:08d}.json"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError:
        status = os.lstat(path)
        return Claim(path, token, None, status.st_mtime_ns, _identity(status))
    try:
        status = os.fstat(handle)
        text = os.read(handle, _LONGEST) if stat.S_ISREG(status.st_mode) else b""
    finally:
        os.close(handle)
    holder = None
    with suppress(ValidationError):
        holder = Holder.model_validate_json(text)
    return Claim(path, token, holder, status.st_mtime_ns, _identity(status))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _sweep(folder: Path, token: int) -> None:
    """Remove older claims and what their writers left."""
    for name in os.listdir(folder):
        found = _NAME.fullmatch(name)
        if found is None or int(found[1]) < token:
            with suppress(OSError):
                os.unlink(folder / name)
