"""`python -m launch.slurm.verdict RUN ATTEMPT STAGE CODE [--asked]`: what the script does after its steps.

Reads `scontrol show job` on standard input. Notes in `run.json` how the attempt ended, and prints one line:
`requeue`, `end`, or `cancel`, an end that also takes back the rest of a chain, each with CODE [NODES TO EXCLUDE].
"""

from __future__ import annotations

import re
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from launch.slurm.attempts import end_attempt, fruitless, read_metadata, saved_step
from launch.slurm.bad_nodes import bad_nodes, remember
from launch.slurm.cause import Cause, find_cause
from launch.slurm.health import unfit_nodes
from launch.slurm.record import Submission, read_submission, stop_requested
from pretrain.run_directory import RunDirectory
from runtime.errors import LacunaError, PreflightError, Requeue, UserError, one_line

_FINAL = (UserError.exit_code, PreflightError.exit_code)  # the same again would end the same
_STOPPED = Requeue.exit_code
_ENDED_BY_SLURM = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Verdict:
    """`action`: requeue, end or cancel. `exclude`: nodes that the job, or the rest of its chain, stays away from."""

    action: str
    code: int
    exclude: tuple[str, ...] = ()

    def line(self) -> str:
        """The script's answer."""
        return f"{self.action} {self.code} {','.join(self.exclude)}".rstrip()


@dataclass(frozen=True)
class Situation:
    """What a verdict depends on. `fruitless`: attempts in a row without a new checkpoint, with this one."""

    code: int
    cancelled: bool
    stop_requested: bool
    requeues: bool
    fruitless: int
    give_up_after: int

    @property
    def hopeless(self) -> bool:
        """Whether trying again has been of no use often enough."""
        return self.fruitless >= self.give_up_after


def judge(situation: Situation) -> Verdict:
    """The verdict on an attempt that did not finish; a table for people is in docs/slurm.md."""
    code = situation.code
    if situation.cancelled:
        return Verdict("end", code)
    if situation.stop_requested:
        return Verdict("cancel", code)
    if code in _FINAL or situation.hopeless:
        return Verdict("cancel", 1 if code == _STOPPED else code)
    return Verdict("requeue" if situation.requeues else "end", code)


def conclude(root: Path, attempt: int, stage: str, code: int, asked: bool, job: str) -> Verdict:
    """Find out how the attempt ended, note it, and say what to do. `job`: what `scontrol show job` printed."""
    directory = RunDirectory(root)
    submission = read_submission(directory)
    assert submission is not None
    if _superseded(directory, attempt, job):
        print("lacuna: Slurm has started this job elsewhere meanwhile: nothing is decided here", file=sys.stderr)
        return Verdict("end", 1)
    if code == 0 and stage == "train":
        end_attempt(directory, attempt, "finished", 0, "")
        return Verdict("end", 0)
    unfit: dict[str, str] = {}
    if stage == "health" and (asked or code == _ENDED_BY_SLURM):  # a preemption may tell the steps only
        cause = Cause(_STOPPED, "stopped before the ranks started")
    elif stage == "health":
        cause, unfit = _health_failure(directory, attempt)
    else:
        cause = find_cause(directory, attempt, code)
        if asked and cause.code > 128:
            cause = Cause(_STOPPED, f"stopped before it could save: {cause.message}")
    return _judged(directory, submission, attempt, cause, unfit, job)


def _superseded(directory: RunDirectory, attempt: int, job: str) -> bool:
    """Whether this is the script of an earlier start, alive on a node that Slurm has lost: its requeue would end the
    job that runs elsewhere now.
    """
    attempts = read_metadata(directory)["attempts"]
    restarts = re.search(r"\bRestarts=(\d+)", job)
    return attempt != len(attempts) - 1 or (restarts is not None and int(restarts[1]) != attempts[attempt]["restart"])


def _judged(
    directory: RunDirectory, submission: Submission, attempt: int, cause: Cause, unfit: dict[str, str], job: str
) -> Verdict:
    identity = read_metadata(directory)["attempts"][attempt].get("job", "")
    situation = Situation(
        code=cause.code,
        cancelled="JobState=CANCELLED" in job,
        stop_requested=stop_requested(directory),
        requeues=submission.requeues,
        fruitless=fruitless(directory, [*submission.jobs, identity]),
        give_up_after=submission.give_up_after,
    )
    verdict, reason = judge(situation), cause.message
    if verdict.action == "cancel" and situation.hopeless and cause.code not in _FINAL:
        reason += f"; {situation.fruitless} attempts in a row brought no checkpoint: given up"
    avoid = _nodes_to_avoid(submission, unfit)
    if verdict.action != "cancel":
        verdict = replace(verdict, exclude=avoid)
    outcome = "stopped" if cause.code == _STOPPED else "failed"
    end_attempt(directory, attempt, outcome, cause.code, reason)
    print(
        f"lacuna: {one_line(Exception(reason))} ({_next(verdict)}, saved at step {saved_step(directory)})",
        file=sys.stderr,
    )
    return verdict


def _nodes_to_avoid(submission: Submission, unfit: dict[str, str]) -> tuple[str, ...]:
    """All that are bad by now, here or in another run; a list that is out of order keeps no job from going on."""
    path = Path(submission.bad_nodes)
    try:
        if unfit:
            remember(path, unfit, submission.bad_node_days)
        return tuple(sorted({**bad_nodes(path), **unfit}))
    except (LacunaError, OSError) as error:
        print(f"lacuna: bad nodes are not remembered: {one_line(error)}", file=sys.stderr)
        return tuple(sorted(unfit))


def _health_failure(directory: RunDirectory, attempt: int) -> tuple[Cause, dict[str, str]]:
    """The cause, and the nodes to blame: none if all of them failed, for then it is not theirs."""
    nodes = read_metadata(directory)["attempts"][attempt]["nodes"]
    unfit = unfit_nodes(directory, attempt, nodes)
    told = (
        "; ".join(f"{node}: {reason}" for node, reason in unfit.items()) or "its step failed, every node reports well"
    )
    if len(unfit) == len(nodes):
        return Cause(PreflightError.exit_code, f"health check: {told}"), {}
    return Cause(1, f"health check: {told}"), unfit


def _next(verdict: Verdict) -> str:
    if verdict.action == "requeue":
        away = f" without {', '.join(verdict.exclude)}" if verdict.exclude else ""
        return f"back into the queue{away}"
    return f"the job ends with code {verdict.code}"


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    root, attempt, stage, code, *asked = arguments
    try:
        print(conclude(Path(root), int(attempt), stage, int(code), "--asked" in asked, sys.stdin.read()).line())
    except (LacunaError, OSError) as error:
        print(f"lacuna: no verdict: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
