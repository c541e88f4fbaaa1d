"""Attempts of a run under Slurm in `run.json`: who began when and where, and whether there was progress."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from parallel.checkpoint.catalogue import newest_checkpoint
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.files import read_json, write_json

LOST = "ended without a word: its node or its job was killed"


def saved_step(directory: RunDirectory) -> int:
    """Step of the newest checkpoint, 0 if there is none."""
    newest = newest_checkpoint(directory.checkpoints)
    return int(newest.name.removeprefix("step-")) if newest else 0


def read_metadata(directory: RunDirectory) -> dict[str, Any]:
    """`run.json`. Raises UserError if it is missing or broken."""
    metadata: Any = read_json(directory.metadata)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("attempts"), list):
        raise UserError(f"{directory.metadata} has no list of attempts: restore it or move it away")
    return metadata


def begin_attempt(
    directory: RunDirectory, processes: int, layout: str, nodes: Sequence[str], variables: Mapping[str, str]
) -> int:
    """Register an attempt of the job that `variables` (Slurm's) name. Returns its number from 0.

    An earlier attempt of Slurm's that says no outcome was killed: its end is noted here.
    """
    metadata = read_metadata(directory)
    attempts = metadata["attempts"]
    for earlier in attempts:
        if "job" in earlier and "outcome" not in earlier:
            earlier |= {"outcome": "failed", "reason": LOST}
    attempts.append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "processes": processes,
            "layout": layout,
            "job": variables.get("SLURM_JOB_ID", ""),
            "restart": int(variables.get("SLURM_RESTART_COUNT") or 0),
            "nodes": list(nodes),
            "from_step": saved_step(directory),
        }
    )
    number = len(attempts) - 1
    directory.logs(number).mkdir(parents=True, exist_ok=True)
    write_json(directory.metadata, metadata)
    return number


def end_attempt(directory: RunDirectory, attempt: int, outcome: str, code: int, reason: str) -> None:
    """Note how an attempt ended. `outcome`: as in docs/contract.md."""
    metadata = read_metadata(directory)
    metadata["attempts"][attempt] |= {"outcome": outcome, "exit_code": code} | ({"reason": reason} if reason else {})
    write_json(directory.metadata, metadata)


def fruitless(directory: RunDirectory, jobs: Sequence[str]) -> int:
    """How many of the last attempts in a row, all of `jobs`, have ended without a new checkpoint."""
    now, count = saved_step(directory), 0
    for attempt in reversed(read_metadata(directory)["attempts"]):
        if attempt.get("job") not in jobs or attempt["from_step"] < now:
            break
        count += 1
    return count
