"""How an attempt of a run ended, told from the exit codes of its ranks and the words they left."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pretrain.run_directory import RunDirectory
from runtime.errors import Hang, LacunaError, PreflightError, Requeue, UserError
from runtime.files import read_json, write_json

_ERRORS: dict[int, type[LacunaError]] = {e.exit_code: e for e in (UserError, PreflightError, Requeue, Hang)}


def attempt_failure(directory: RunDirectory, attempt: int, ranks: int, codes: Mapping[int, int]) -> LacunaError:
    """The error to tell a person, of all that `ranks` ranks left; `codes` are the exit codes that are known.

    A rank that lost its peers ends with an error of its own, so those that were killed, or know why they ended,
    are believed before those that were surprised; a hang before all, since the watchdog then kills.
    """
    logs = directory.logs(attempt)
    found = [read_json(path) for rank in range(ranks) if (path := directory.failure(attempt, rank)).exists()]
    for word in found:
        if word["exit_code"] == Hang.exit_code:
            return Hang(word["message"])
    for rank, code in sorted(codes.items()):
        if code < 0 and code != -signal.SIGTERM:  # the launcher itself ends the others with SIGTERM
            hint = ", often for want of memory" if code == -signal.SIGKILL else ""
            return LacunaError(
                f"rank {rank} was killed by {_signal_name(-code)}{hint}; see {logs}, "
                "start again with the same --run to continue"
            )
    if found:
        word = min(found, key=lambda said: (said["exit_code"] == Requeue.exit_code, said["exit_code"] == 1))
        return _ERRORS.get(word["exit_code"], LacunaError)(word["message"])
    code = next(iter(codes.values()), Requeue.exit_code)
    if code in (Requeue.exit_code, -signal.SIGTERM):
        return Requeue("stopped on request before it could save; start again with the same --run to continue")
    return _ERRORS.get(code, LacunaError)(f"a rank ended with code {code} and could not write why to {logs}")


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def record_outcome(directory: RunDirectory, attempt: int, failure: LacunaError | None, paused: bool) -> None:
    """Note in `run.json` how an attempt ended: finished, paused (as --until asked), stopped or failed."""
    metadata: dict[str, Any] = read_json(directory.metadata)
    code = failure.exit_code if failure else 0
    outcome = {0: "paused" if paused else "finished", Requeue.exit_code: "stopped"}.get(code, "failed")
    metadata["attempts"][attempt] |= {"outcome": outcome, "exit_code": code}
    with suppress(OSError):  # a full disk must not hide what went wrong
        write_json(directory.metadata, metadata)
