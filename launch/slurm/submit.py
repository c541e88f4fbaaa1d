"""`lacuna submit`: from a recipe and a cluster to jobs in a queue, every one of them exactly once.

All jobs of a run have one name that no other run has, and wait for each other (`singleton`). The submission is noted
before Slurm is asked, with a token that its jobs carry. When the controller dies between its yes and our hearing of
it, the queue is asked for the token before anything is submitted again.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.recipe import write_config
from launch.slurm.bad_nodes import bad_nodes, bad_nodes_file
from launch.slurm.client import NoAnswer, Refused, have_slurm, queued, submit_script, test_script
from launch.slurm.cluster import ClusterConfig
from launch.slurm.preflight import check_limits, check_memory, check_room, seconds
from launch.slurm.record import Submission, read_submission, request_stop, write_submission
from launch.slurm.script import Job, check_run_path, job_name, render
from launch.slurm.unable_nodes import forget_unable_nodes
from launch.train import check_before_start, resolve_paths
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.environment import code_version, describe_machine
from runtime.errors import LacunaError, PreflightError, UserError, one_line
from runtime.files import write_atomic, write_json

SCRIPT = "submit.sbatch"
_PATIENCE = 120.0  # seconds that a controller may be away
_PAUSE = 2.0


@dataclass(frozen=True)
class Request:
    """What the user asked for; `time`: instead of the cluster file's."""

    config: RunConfig
    cluster: ClusterConfig
    run: Path
    nodes: int
    ranks_per_node: int
    chain: int = 1
    time: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A request that has been checked: its script, and the plan of `lacuna plan`."""

    request: Request
    config: RunConfig
    script: str
    plan: dict[str, Any]


def prepare(request: Request) -> Prepared:
    """Check all that can be known without writing anything, and render. Raises UserError or PreflightError."""
    config, cluster = resolve_paths(request.config), request.cluster
    run, ranks = request.run.expanduser().absolute(), request.nodes * request.ranks_per_node
    check_run_path(run)
    limit = request.time or cluster.time
    if seconds(limit) <= cluster.grace:
        raise UserError(
            f"--time {limit} is not longer than the {cluster.grace} s for saving (grace of the cluster file)"
        )
    found = check_memory(config, cluster, ranks)
    check_before_start(config, RunDirectory(run), ranks)
    check_room(run, found["checkpoints"]["bytes"])
    if have_slurm():
        try:
            check_limits(cluster, request.nodes, limit)
        except NoAnswer as error:  # a dry run needs no Slurm, and a submission will ask again
            print(f"lacuna: not compared with the partition's limits: {error}", file=sys.stderr)
    job = Job(
        run=run,
        name=config.name,
        layout=config.parallel.describe(ranks),
        nodes=request.nodes,
        ranks_per_node=request.ranks_per_node,
        cluster=cluster,
        python=cluster.python or sys.executable,
        time=request.time,
        chain=request.chain,
        exclude=tuple(sorted(bad_nodes(bad_nodes_file(cluster)))),
        tracking=config.tracking.enabled,
    )
    script = render(job)
    check_syntax(script)
    return Prepared(replace(request, run=run), config, script, found)


def check_syntax(script: str) -> None:
    """Raise UserError if bash cannot read the script, which only lines of `setup` can cause."""
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    if result.returncode:
        said = result.stderr.strip().splitlines()[0]
        raise UserError(f"the setup lines of the cluster file are no whole shell commands ({said}): mend them")


def submit(prepared: Prepared, patience: float = _PATIENCE) -> list[str]:
    """Write the run directory and put the jobs into the queue. Returns their ids, in the order they will run.

    Raises UserError if jobs of the run are in the queue already, PreflightError if Slurm refuses or does not answer.
    """
    request = prepared.request
    directory, name = RunDirectory(request.run), job_name(request.run)
    there = _patiently(lambda: queued(name), patience)
    if there:
        listed = ", ".join(job.identity for job in there)
        raise UserError(f"{request.run} has jobs in the queue: {listed}; `lacuna stop {request.run}` takes them back")
    submission = _write(prepared, directory, name)
    if prepared.config.tracking.enabled:
        _open_mlflow_run(directory)
    return _enqueue(directory, submission, patience)


def submit_again(directory: RunDirectory, patience: float = _PATIENCE) -> list[str]:
    """Put the run's job, as it was submitted before, into the queue anew, away from the nodes that are bad by now.

    Returns its id. Raises as `submit` does.
    """
    last = read_submission(directory)
    if last is None or not (directory.root / SCRIPT).exists():
        raise UserError(f"{directory.root} was not submitted: use `lacuna submit`")
    submission = replace(last, token=uuid.uuid4().hex, wanted=1, jobs=[])
    write_submission(directory, submission)
    return _enqueue(directory, submission, patience)


def _enqueue(directory: RunDirectory, submission: Submission, patience: float) -> list[str]:
    script = directory.root / SCRIPT
    exclude = bad_nodes(Path(submission.bad_nodes))
    doubt = test_script(str(script), str(directory.root), exclude)
    if doubt:
        print(f"lacuna: {doubt}", file=sys.stderr)
    forget_unable_nodes(directory)
    for number in range(submission.wanted):
        job = submit_once(script, submission.name, f"{submission.token}-{number}", patience, exclude)
        submission = replace(submission, jobs=[*submission.jobs, job])
        write_submission(directory, submission)
    return submission.jobs


def _open_mlflow_run(directory: RunDirectory) -> None:
    """Make the MLflow run that all attempts continue; before there is a job, so that nobody else makes it too."""
    from launch.tracking import sync_run

    try:
        sync_run(directory)
    except LacunaError as error:
        print(f"lacuna: MLflow does not have this run yet: {one_line(error)}", file=sys.stderr)


def _write(prepared: Prepared, directory: RunDirectory, name: str) -> Submission:
    request, config, cluster = prepared.request, prepared.config, prepared.request.cluster
    submission = Submission(
        name=name,
        token=uuid.uuid4().hex,
        wanted=request.chain,
        nodes=request.nodes,
        ranks_per_node=request.ranks_per_node,
        requeues=cluster.requeue and request.chain == 1,
        give_up_after=cluster.give_up_after,
        bad_nodes=str(bad_nodes_file(cluster)),
        bad_node_days=cluster.bad_nodes.days,
        data=config.data.paths(),
    )
    try:
        (directory.root / "logs").mkdir(parents=True, exist_ok=True)
        write_config(directory.config, config)
        write_json(directory.environment, {**describe_machine(), "code": code_version()})
        if not directory.metadata.exists():
            write_json(directory.metadata, {"name": config.name, "attempts": []})
        write_atomic(directory.root / SCRIPT, prepared.script)
        write_submission(directory, submission)
        request_stop(directory, wanted=False)
    except OSError as error:
        raise UserError(
            f"{directory.root} cannot be written ({error.strerror}): mend that or use another --run"
        ) from None
    return submission


def submit_once(
    script: Path, name: str, comment: str, patience: float = _PATIENCE, exclude: Iterable[str] | None = None
) -> str:
    """Submit, and if no answer comes, look whether it was done before trying again. Returns the job's id.
    `exclude` as in `submit_script`.

    Raises PreflightError if Slurm refuses, or if it does not answer for `patience` seconds.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            return submit_script(str(script), str(script.parent), comment, exclude)
        except Refused as error:
            raise PreflightError(f"{error}: mend the cluster file or the options") from None
        except NoAnswer as error:
            reason = error
        time.sleep(_PAUSE)
        left = give_up - time.monotonic()
        try:
            found = _patiently(lambda: queued(name), left)
        except NoAnswer:
            raise PreflightError(
                f"{reason} It is not known whether the job was taken: submit again when Slurm answers, "
                "no second job will be made"
            ) from None
        for job in found:
            if job.comment == comment:
                return job.identity


def _patiently(ask: Any, patience: float) -> Any:
    """`ask()`, again and again while nobody answers. Raises NoAnswer after `patience` seconds."""
    give_up = time.monotonic() + patience
    while True:
        try:
            return ask()
        except NoAnswer:
            if time.monotonic() > give_up:
                raise
            time.sleep(_PAUSE)
