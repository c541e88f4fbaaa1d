"""Starts a run on this machine: prepares the run directory, then one process per rank."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.config import is_remote
from launch import worker
from launch.outcome import attempt_failure, record_outcome
from launch.recipe import write_config
from launch.workers import start_workers
from pretrain.config import RunConfig
from pretrain.resume import ResumeChoice, apply_choice, check_continues
from pretrain.run_directory import RunDirectory
from runtime.deadline import STARTED
from runtime.environment import RankInfo, code_version, describe_machine
from runtime.errors import LacunaError, UserError
from runtime.files import read_json, remove_temporaries, write_json
from runtime.lease import Lease, LeaseConfig
from runtime.signals import StopRequest

Identity = Callable[[int], dict[str, Any]]
"""What a run is, as far as its first so many steps tell."""


def check_before_start(
    config: RunConfig, directory: RunDirectory, processes: int, choice: ResumeChoice | None = None
) -> Identity:
    """Find what would fail on every rank before any process starts and anything is written. Raises UserError.

    Returns the run's identity. What `choice` lets be set aside is looked at, and nothing is moved.
    """
    from data_pipeline.dataset import SampleReader
    from pretrain.planning.nearest_layout import require_divides
    from pretrain.session import build_objective, run_identity

    require_divides(config, processes)
    _metadata(config, directory)
    train = config.train
    reader = SampleReader(config.data, train.sequence_length, train.seed, global_batch=train.global_batch)
    reader.require(train.steps * train.global_batch)
    for dataset in reader.datasets:
        dataset.open_tokenizer()
        dataset.check_files()
    build_objective(config, reader.manifests[0].tokenizer)

    def identity(step: int) -> dict[str, Any]:
        return run_identity(config, reader.digest_before(step * train.global_batch))

    if not apply_choice(directory, choice or ResumeChoice(), dry_run=True):
        check_continues(config, directory, identity)
    return identity


def prepare_run(config: RunConfig, directory: RunDirectory, processes: int) -> int:
    """Write what the ranks and people read, and register an attempt. Returns the attempt's number from 0.

    Raises UserError if the directory cannot be written or its `run.json` is broken.
    """
    metadata = _metadata(config, directory)
    for path in (directory.config, directory.environment, directory.metadata, directory.metrics):
        remove_temporaries(path)
    attempt = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processes": processes,
        "layout": config.parallel.describe(processes),
    }
    metadata["attempts"].append(attempt)
    try:
        write_config(directory.config, config)
        write_json(directory.environment, {**describe_machine(), "code": code_version()})
        write_json(directory.metadata, metadata)
    except OSError as error:
        raise _unwritable(directory.root, error) from None
    return len(metadata["attempts"]) - 1


def _metadata(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    if not directory.metadata.exists():
        return {"name": config.name, "attempts": []}
    metadata = read_json(directory.metadata)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("attempts"), list):
        raise UserError(f"{directory.metadata} has no list of attempts: restore it or move it away")
    return metadata


def run_local(
    config: RunConfig,
    root: Path,
    processes: int,
    until: int | None = None,
    choice: ResumeChoice | None = None,
) -> None:
    """Train in the foreground with `processes` ranks on this machine, shown to MLflow if tracking is enabled.

    Raises UserError for the user's mistakes, Requeue if the run was stopped and saved, LacunaError otherwise.
    """
    config = resolve_paths(config)
    directory = RunDirectory(root)
    with StopRequest() as stop:  # a signal must not find the process unprepared while it imports
        identity = check_before_start(config, directory, processes, choice)
        with _started(), leased(directory, config.lease) as lease:
            _continue_by_choice(config, directory, identity, choice)
            attempt = prepare_run(config, directory, processes)
            with _shown_to_mlflow(config, directory) as follower:
                if processes == 1:
                    with lease.kept(config.lease.heartbeat):
                        failure = worker.main(str(root), until, RankInfo(), stop, lease)
                else:
                    codes = start_workers(directory, processes, until, stop, lease.token)
                    failure = None if codes is None else attempt_failure(directory, attempt, processes, codes)
                if lease.held():
                    record_outcome(directory, attempt, failure, paused=until is not None and until < config.train.steps)
        if failure:  # whoever starts the run again need not wait for a tracking server
            raise failure
        if follower is not None:
            _await_last_points(follower, directory)


def prepare_only(config: RunConfig, root: Path, processes: int, choice: ResumeChoice | None = None) -> None:
    """Check and write the run directory for ranks that torchrun or srun will start as `python -m launch.worker RUN`.

    Raises UserError as `run_local` does; `processes` is the number of ranks there will be.
    """
    config, directory = resolve_paths(config), RunDirectory(root)
    identity = check_before_start(config, directory, processes, choice)
    with leased(directory, config.lease):
        _continue_by_choice(config, directory, identity, choice)
        prepare_run(config, directory, processes)


def _continue_by_choice(
    config: RunConfig, directory: RunDirectory, identity: Identity, choice: ResumeChoice | None
) -> None:
    """Set aside what the user allowed, now that the run is ours, and look again at what it then continues from."""
    if choice is not None and choice.changes:
        apply_choice(directory, choice)
        check_continues(config, directory, identity)


@contextmanager
def leased(directory: RunDirectory, config: LeaseConfig) -> Iterator[Lease]:
    """Hold the run directory, which is made if need be, against all other attempts. Raises UserError if one lives."""
    lease = Lease.acquire(directory.root, config)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def _started() -> Iterator[None]:
    """Let the time limit of all ranks count from now, unless somebody has set when it began."""
    if STARTED in os.environ:
        yield
        return
    os.environ[STARTED] = f"{time.time():.3f}"
    try:
        yield
    finally:
        del os.environ[STARTED]


def _unwritable(root: Path, error: OSError) -> UserError:
    return UserError(f"{root} cannot be written ({error.strerror}): mend that or use another --run")


@contextmanager
def _shown_to_mlflow(config: RunConfig, directory: RunDirectory) -> Iterator[subprocess.Popen[bytes] | None]:
    """A follower beside the ranks, if tracking is enabled. At their end it is told to send the rest, which may take it
    seconds, and to end.
    """
    if not config.tracking.enabled:
        yield None
        return
    from launch.tracking import tracking_uri
    from pretrain.tracking.follow import start_follower

    follower = start_follower(directory.root, tracking_uri(config, directory), config.tracking.experiment)
    try:
        yield follower
    finally:
        follower.terminate()


def _await_last_points(follower: subprocess.Popen[bytes], directory: RunDirectory) -> None:
    """Wait for the follower, and say it if MLflow does not have all."""
    from launch.tracking import sync_run

    try:
        if follower.wait() != 0:
            sync_run(directory)
    except LacunaError as error:
        print(
            f"MLflow does not have all of this run yet: {error}; later: lacuna track sync {directory.root}",
            file=sys.stderr,
        )


def resolve_paths(config: RunConfig) -> RunConfig:
    """The configuration with absolute data paths, since ranks may run elsewhere."""
    data = config.data.with_paths(_absolute)
    cache = None if data.remote.cache is None else _absolute(data.remote.cache)
    remote = data.remote.model_copy(update={"cache": cache})
    return config.model_copy(update={"data": data.model_copy(update={"remote": remote})})


def _absolute(path: str) -> str:
    return path if is_remote(path) else str(Path(path).expanduser().absolute())
