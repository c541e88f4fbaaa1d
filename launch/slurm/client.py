"""Slurm's own commands, called without a shell. Its client is the one interface that every version has."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runtime.errors import PreflightError, UserError, one_line

_SECONDS = 60.0
_NO_ANSWER = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Zero Bytes were",
    "communication connection failure",
    "Slurm backup controller in standby",
    "temporarily unable",
    "configuration source",
)
_NO_NODES = "Requested node configuration is not available"


class NoAnswer(PreflightError):
    """The controller did not answer: it may or may not have done what it was asked."""


class Refused(UserError):
    """Slurm answered, and said no."""


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue. `comment` is what its submission wrote there; `left` is Slurm's text, such as `1:02:03`."""

    identity: str
    name: str
    state: str
    reason: str
    left: str
    nodes: str
    comment: str


def have_slurm() -> bool:
    """Whether this machine can submit at all."""
    return shutil.which("sbatch") is not None


def call(*command: str, seconds: float = _SECONDS) -> str:
    """Standard output of a Slurm command. Raises NoAnswer or Refused with Slurm's words, PreflightError without it."""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise PreflightError(f"{command[0]} is not on this machine: submit from a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} got no answer within {seconds:g} s: is slurmctld up?") from None
    if result.returncode == 0:
        return result.stdout
    said = one_line(Exception(result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}"))
    if any(words.lower() in said.lower() for words in _NO_ANSWER):
        raise NoAnswer(f"{command[0]}: {said}: is slurmctld up?")
    raise Refused(f"{command[0]}: {said}")


def queued(*names: str) -> list[QueuedJob]:
    """Jobs of these names that wait or run, oldest first. Raises as `call` does."""
    text = call("squeue", "--noheader", f"--name={','.join(names)}", "--format=%A|%j|%T|%r|%L|%N|%k")
    jobs = [QueuedJob(*line.split("|", 6)) for line in text.splitlines()]
    return sorted(jobs, key=lambda job: int(job.identity))


def submit_script(script: str, directory: str, comment: str, exclude: Iterable[str] | None = None) -> str:
    """Submit `script` from `directory`; returns the job id. Raises as `call` does.

    `exclude`: nodes to stay away from, instead of those that the script names.
    """
    options = [f"--chdir={directory}", f"--comment={comment}", *_excluding(exclude)]
    answer = call("sbatch", "--parsable", *options, script)
    return answer.strip().partition(";")[0]


def test_script(script: str, directory: str, exclude: Iterable[str] | None) -> str:
    """Ask Slurm whether it would take `script`; nothing is submitted. Returns a doubt to tell, or an empty string.

    Raises Refused with Slurm's words. It says the same of nodes that are drained just now as of nodes that cannot be;
    only the latter are refused by a submission.
    """
    try:
        call("sbatch", "--test-only", f"--chdir={directory}", *_excluding(exclude), script)
    except Refused as error:
        if _NO_NODES not in str(error):
            raise
        return "no node that is up could run this job now: it waits until that changes"
    return ""


def _excluding(nodes: Iterable[str] | None) -> list[str]:
    return [] if nodes is None else [f"--exclude={','.join(sorted(nodes))}"]


def keep_away(job: str, nodes: Iterable[str]) -> None:
    """Exclude just these nodes from a job that waits. Raises as `call` does."""
    call("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(sorted(nodes))}")


def cancel(jobs: Sequence[str]) -> None:
    """Remove jobs from the queue. Raises as `call` does."""
    if jobs:
        call("scancel", *jobs)


def warn(job: str) -> None:
    """Send a running job's script the signal that it also gets before the time limit."""
    call("scancel", "--batch", "--signal=USR2", job)


def release(job: str) -> None:
    """Let a job that Slurm holds back (after a failed prolog, say) wait for nodes again. Raises as `call` does."""
    call("scontrol", "release", job)
