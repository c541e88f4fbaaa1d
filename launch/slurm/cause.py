"""Which rank ended a step, and why: from the exit codes that ranks noted and the words they left.

srun ends the peers of a failed rank and then reports one of their ends. Each rank's shell therefore notes
`exit-NNNNN`: its exit code and its node; the worker itself leaves `failure-NNNNN.json`.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass

from pretrain.run_directory import RunDirectory
from runtime.errors import Hang, PreflightError, Requeue, UserError
from runtime.files import read_json

_PEER_LOST = 1
_KNOWS_WHY = (UserError.exit_code, PreflightError.exit_code, Hang.exit_code)
_ENDED_BY_SLURM = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Cause:
    """Why a step ended: the rank's exit code (128 + N: killed by signal N) and one line for people."""

    code: int
    message: str


@dataclass(frozen=True)
class _End:
    rank: int
    code: int
    node: str
    moment: float
    words: str | None

    @property
    def order(self) -> tuple[int, float]:
        """Causes first: a hang, whose finder also kills; ranks that know why they ended or had no time for words;
        then those that lost a peer.
        """
        if self.code == _ENDED_BY_SLURM:
            return 4, self.moment
        if self.code == Requeue.exit_code:
            return 3, self.moment
        if self.code == _PEER_LOST and self.words is not None:
            return 2, self.moment
        return int(self.code != Hang.exit_code), self.moment


def find_cause(directory: RunDirectory, attempt: int, step_code: int) -> Cause:
    """The cause of the end of an attempt whose step ended with `step_code`, not 0."""
    ends = _ends(directory, attempt)
    if not ends:
        return Cause(step_code, f"srun ended with code {step_code}, and no rank said why")
    first = min(ends, key=lambda end: end.order)
    where = f"rank {first.rank} on {first.node}"
    if first.words is None:
        return Cause(first.code, f"{where} {_end(first.code)}; see {directory.logs(attempt)}")
    if first.code in (*_KNOWS_WHY, Requeue.exit_code):
        return Cause(first.code, first.words)
    return Cause(first.code, f"{where}: {first.words}")


def _ends(directory: RunDirectory, attempt: int) -> list[_End]:
    found = []
    for path in directory.logs(attempt).glob("exit-*"):
        name = path.name.removeprefix("exit-")
        if not name.isdecimal():  # scripts of older versions left that where they were ended amid their last line
            continue
        rank = int(name)
        code, _, node = path.read_text().strip().partition(" ")
        failure = directory.failure(attempt, rank)
        words = str(read_json(failure)["message"]) if failure.exists() else None
        found.append(_End(rank, int(code) if code.isdecimal() else 1, node, path.stat().st_mtime, words))
    return found


def _end(code: int) -> str:
    if code <= 128:
        return f"ended with code {code} and no word"
    name = f"signal {code - 128}"
    with suppress(ValueError):
        name = signal.Signals(code - 128).name
    hint = ", often for want of memory" if code - 128 == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
