"""A lease on a run directory: one attempt writes there, and an older one that comes back to life writes nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from runtime.claims import (
    TIME_FORMAT,
    Claim,
    Holder,
    claim_path,
    claims_directory,
    file_system_time,
    make_claim,
    newest_claim,
)
from runtime.errors import LacunaError, UserError
from runtime.logs import log
from runtime.machine import process_start, runs_here
from runtime.settings import Settings


class LeaseConfig(Settings):
    """How often the holder of a run shows that it lives, and after how long a silent one is taken for dead, seconds.

    Only a holder on another machine is judged by its heartbeat; on the same one its process is looked at.
    """

    heartbeat: float = Field(15.0, gt=0)
    stale: float = Field(120.0, gt=0)

    @model_validator(mode="after")
    def _beats_in_time(self) -> Self:
        least = 4 * self.heartbeat
        if self.stale < least:
            raise ValueError(f"stale={self.stale:g} is less than 4 × heartbeat={self.heartbeat:g}: set {least:g}")
        return self


class LeaseLost(LacunaError):
    """Another attempt has taken the run over; this one must not write any more. Exit code 1."""


@dataclass(frozen=True)
class Fence:
    """What a rank needs of its attempt's lease: the token, and `check`, which raises LeaseLost (on rank 0 only)."""

    token: int = 0
    check: Callable[[], None] = lambda: None


class Lease:
    """The lease of one attempt, in a process that holds it."""

    def __init__(self, root: Path, token: int, holder: Holder) -> None:
        self.token = token
        self._root, self._holder = root, holder
        self._seen: Claim | None = None

    @classmethod
    def acquire(cls, root: Path, config: LeaseConfig) -> Lease:
        """Claim the run. A holder on another machine that looks dead is watched for `stale / 4` seconds first.

        Raises UserError naming the holder if one lives, or if the directory cannot be written.
        """
        mine = Holder.this_process()
        try:
            claims_directory(root).mkdir(parents=True, exist_ok=True)
            while True:
                newest = newest_claim(root)
                if newest is not None:
                    _require_free(root, newest, mine, config)
                token = make_claim(root, newest, mine)
                if token is not None:
                    return cls(root, token, mine)
        except OSError as error:
            raise UserError(f"{root} cannot be written ({error.strerror}): mend that or use another --run") from None

    @classmethod
    def adopt(cls, root: Path, token: int) -> Lease:
        """Take the lease over for this process from the one that claimed it (a launcher). Raises LeaseLost."""
        claim = newest_claim(root)
        if claim is None or claim.token != token or claim.holder is None:
            raise _lost(root, claim)
        place = {"pid": os.getpid(), "started": process_start(os.getpid()) or 0}
        lease = cls(root, token, claim.holder.model_copy(update=place))
        with suppress(OSError):  # a full disk: the launcher's process stands for this one
            lease._beat()
        return lease

    def check(self) -> None:
        """Raise LeaseLost unless this attempt still holds the run, OSError if that cannot be read."""
        self._seen = claim = newest_claim(self._root, self._seen)  # asked in every step, so it must be cheap
        if claim is None or claim.token != self.token or (claim.holder and claim.holder.nonce != self._holder.nonce):
            raise _lost(self._root, claim)

    def held(self) -> bool:
        """Whether this attempt still holds the run; no, if that cannot be read."""
        try:
            self.check()
        except (LeaseLost, OSError):
            return False
        return True

    @contextmanager
    def kept(self, seconds: float) -> Iterator[Self]:
        """Show every `seconds` that this process lives, on a thread. That the lease is lost is for `check` to tell."""
        done = threading.Event()

        def keep() -> None:
            while not done.wait(seconds):
                try:
                    self._beat()
                except LeaseLost:
                    return
                except OSError as error:
                    log.debug("no heartbeat could be written: %s", error)
                    with suppress(OSError):  # on a full disk a touch still shows
                        os.utime(claim_path(self._root, self.token))

        thread = threading.Thread(target=keep, name="lacuna-lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def release(self) -> None:
        """Say that the attempt is over. A lease that was lost is left as it is; so is one on a full disk."""
        with suppress(LeaseLost, OSError):
            claim = newest_claim(self._root)
            self.check()
            if claim is not None and claim.holder is not None:
                self._holder = claim.holder  # perhaps adopted meanwhile
            self._beat(released=True)

    def _beat(self, released: bool = False) -> None:
        self.check()
        now = time.strftime(TIME_FORMAT)
        changes = {"beat": self._holder.beat + 1, "heartbeat": now, "released": released}
        self._holder = self._holder.model_copy(update=changes)
        path = claim_path(self._root, self.token)
        staging = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            staging.write_text(self._holder.model_dump_json(indent=1))
            os.replace(staging, path)
        except OSError:
            staging.unlink(missing_ok=True)
            raise


def _require_free(root: Path, claim: Claim, mine: Holder, config: LeaseConfig) -> None:
    """Raise UserError if the holder of `claim` lives; wait for a sign of life if that is in doubt."""
    holder = claim.holder
    if holder is not None:
        if holder.released:
            return
        if holder.superseded_by(mine):
            log.warning("taking the run over from an earlier start of this job: %s", holder.describe())
            return
        if mine.machine and holder.machine == mine.machine:
            if runs_here(holder.pid, holder.started):
                raise _held(root, claim)
            log.warning("the run's last attempt is gone without a word: %s", holder.describe())
            return
    silent = (file_system_time(root) - claim.mtime) / 1e9
    if 0 <= silent < config.stale:
        raise _held(root, claim)
    # a heartbeat from the future means clocks that differ: then only a whole period of silence counts
    _watch(root, claim, config.stale / 4 if silent >= 0 else config.stale, config.heartbeat / 2)
    log.warning("taking the run over from a silent holder: %s", claim.describe())


def _watch(root: Path, claim: Claim, seconds: float, pause: float) -> None:
    """Raise UserError if the holder of `claim` shows within `seconds` that it lives."""
    log.warning("watching the run's silent holder for %.3g s: %s", seconds, claim.describe())
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, pause))
        now = newest_claim(root)
        if now is None or now.token != claim.token or now.pulse != claim.pulse:
            raise _held(root, now or claim)


def _held(root: Path, claim: Claim) -> UserError:
    return UserError(
        f"{root} is being trained by another process ({claim.describe()}): wait for it, or use another --run"
    )


def _lost(root: Path, claim: Claim | None) -> LeaseLost:
    if claim is None:
        return LeaseLost(f"{claims_directory(root)} was removed, so this attempt writes nothing more: start it again")
    return LeaseLost(f"{root} was taken over by a later attempt ({claim.describe()}): this one writes nothing more")
