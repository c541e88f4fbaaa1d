"""Stopping and continuing a run that is out of sight: under Slurm, or in another terminal of this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from launch.slurm.bad_nodes import bad_nodes
from launch.slurm.client import QueuedJob, cancel, keep_away, queued, release, warn
from launch.slurm.record import read_submission, request_stop
from launch.slurm.submit import submit_again
from pretrain.run_directory import RunDirectory
from runtime.claims import newest_claim
from runtime.errors import UserError
from runtime.machine import machine_name, runs_here

_RUNNING = ("RUNNING", "CONFIGURING", "SUSPENDED")


def stop(directory: RunDirectory) -> str:
    """Let the run save and end, and take its waiting jobs out of the queue. Returns what was done, in a line.

    Raises UserError if nothing of it runs here, PreflightError if Slurm does not answer.
    """
    submission = read_submission(directory)
    jobs = queued(submission.name) if submission else []
    if not jobs:
        return _stop_here(directory)
    request_stop(directory, wanted=True)  # first: its own answer to the warning would be a requeue
    running, waiting = _split(jobs)
    cancel([job.identity for job in waiting])
    for job in running:
        warn(job.identity)
    done = [f"job {job.identity} saves and ends" for job in running]
    done += [f"job {job.identity} is out of the queue" for job in waiting]
    return "; ".join(done)


def requeue(directory: RunDirectory) -> str:
    """Let the run go on in the queue: a running job saves first, a held one is released, a gone one comes back.

    Returns what was done, in a line. Raises UserError, or PreflightError if Slurm refuses or does not answer.
    """
    submission = read_submission(directory)
    if submission is None:
        raise UserError(f"{directory.root} was not submitted: use `lacuna submit`, or `lacuna train` on this machine")
    request_stop(directory, wanted=False)
    jobs = queued(submission.name)
    if not jobs:
        return f"job {', '.join(submit_again(directory))} is in the queue"
    running, waiting = _split(jobs)
    if running and not submission.requeues:
        raise UserError(
            f"job {running[0].identity} does not requeue: `lacuna stop {directory.root}`, then submit again"
        )
    for job in running:
        warn(job.identity)
    for job in waiting:
        keep_away(job.identity, bad_nodes(Path(submission.bad_nodes)))
    held = [job for job in waiting if "held" in job.reason.lower()]
    for job in held:
        release(job.identity)
    done = [f"job {job.identity} saves and goes back into the queue" for job in running]
    done += [f"job {job.identity} is {'released' if job in held else 'waiting already'}" for job in waiting]
    return "; ".join(done)


def _split(jobs: list[QueuedJob]) -> tuple[list[QueuedJob], list[QueuedJob]]:
    waiting = [job for job in jobs if job.state == "PENDING"]
    return [job for job in jobs if job.state in _RUNNING], waiting


def runs_on_this_machine(directory: RunDirectory) -> bool:
    """Whether a process of this machine holds the run now."""
    claim = newest_claim(directory.root)
    holder = claim.holder if claim else None
    if holder is None or holder.released or not holder.machine or holder.machine != machine_name():
        return False
    return runs_here(holder.pid, holder.started)


def _stop_here(directory: RunDirectory) -> str:
    claim = newest_claim(directory.root)
    holder = claim.holder if claim else None
    if holder is None or holder.released:
        raise UserError(f"nothing of {directory.root} is running or waiting: there is nothing to stop")
    if not runs_on_this_machine(directory):
        raise UserError(f"{directory.root} is held by {holder.describe()}: stop it there, if it still runs")
    os.kill(holder.pid, signal.SIGUSR2)
    return f"process {holder.pid} saves and ends"
