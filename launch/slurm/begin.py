"""`python -m launch.slurm.begin RUN NODE…`: the script's first question. Prints the number of the new attempt.

Prints `end` if there is nothing to do, or with an exit code why not; code 1: attempt after attempt has brought no
checkpoint (a job that takes its node down never comes to its verdict). No answer at all: the node is unable.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from launch.slurm.attempts import begin_attempt, end_attempt, fruitless, saved_step
from launch.slurm.bad_nodes import remember
from launch.slurm.health import note_expectations
from launch.slurm.record import Submission, read_submission, stop_requested
from launch.slurm.unable_nodes import forget_unable_nodes, unable_nodes
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.claims import file_system_time, newest_claim
from runtime.errors import LacunaError, UserError, one_line
from runtime.settings import read_yaml

_PAUSE = 5.0


def begin(root: Path, nodes: list[str]) -> int | None:
    """Register the attempt, or None if the run is finished or was told to stop. Raises LacunaError to give up."""
    directory = RunDirectory(root)
    config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
    submission = read_submission(directory)
    if submission is None:
        raise UserError(f"{root} was not submitted: use `lacuna submit`")
    if saved_step(directory) >= config.train.steps:
        print(f"{root} is finished: nothing to do", file=sys.stderr)
        return None
    if stop_requested(directory):
        print(f"{root} was told to stop; `lacuna requeue` or `lacuna submit` continues it", file=sys.stderr)
        return None
    job = os.environ.get("SLURM_JOB_ID", "")
    _let_go(root, config.lease.stale, job)
    _remember_unable(directory, submission)
    ranks = submission.ranks
    attempt = begin_attempt(directory, ranks, config.parallel.describe(ranks), nodes, os.environ)
    tries = fruitless(directory, [*submission.jobs, job])
    if tries > submission.give_up_after:
        reason = f"{tries - 1} attempts in a row brought no checkpoint: see {directory.root / 'logs'}"
        end_attempt(directory, attempt, "failed", 1, reason)
        raise LacunaError(reason)
    note_expectations(directory, attempt)
    return attempt


def _remember_unable(directory: RunDirectory, submission: Submission) -> None:
    """Nodes on which no attempt could start are bad: here, one can."""
    unable = unable_nodes(directory)
    if not unable:
        return
    try:
        remember(Path(submission.bad_nodes), unable, submission.bad_node_days)
        forget_unable_nodes(directory)
    except (LacunaError, OSError) as error:
        print(f"lacuna: {', '.join(unable)} cannot be remembered as bad: {one_line(error)}", file=sys.stderr)


def _let_go(root: Path, stale: float, job: str) -> None:
    """Wait until an attempt of another job, which Slurm has ended, counts as dead by its lease."""
    claim, told = newest_claim(root), False
    while claim is not None and claim.holder is not None and not claim.holder.released and claim.holder.job != job:
        silent = (file_system_time(root) - claim.mtime) / 1e9
        if claim.holder.job is None or not 0 <= silent < stale:
            return
        if not told:
            print(f"waiting for the lease of an earlier job to run out: {claim.describe()}", file=sys.stderr)
        told = True
        time.sleep(min(stale - silent, _PAUSE))
        claim = newest_claim(root)


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    try:
        attempt = begin(Path(arguments[0]), arguments[1:])
    except LacunaError as error:
        print(f"lacuna: {one_line(error)}", file=sys.stderr)
        print("end")
        return error.exit_code
    print("end" if attempt is None else attempt)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
