"""Starts a run on this machine: prepares the run directory, then one process per rank."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.recipe import dump_config
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.environment import describe_machine
from runtime.errors import LacunaError, Requeue, UserError
from runtime.files import read_json, write_atomic, write_json

_ERRORS: dict[int, type[LacunaError]] = {UserError.exit_code: UserError, Requeue.exit_code: Requeue}


def check_before_start(config: RunConfig, processes: int) -> None:
    """Find what would fail on every rank before any process starts. Raises UserError."""
    from data_pipeline.dataset import SampleReader
    from pretrain.session import build_objective

    config.micro_batches(processes)
    reader = SampleReader(config.data, config.train.sequence_length, config.train.seed)
    for dataset in reader.datasets:
        dataset.open_tokenizer()
    build_objective(config, reader.manifests[0].tokenizer)


def prepare_run(config: RunConfig, directory: RunDirectory, processes: int) -> int:
    """Write what the ranks and people read, and register an attempt. Returns the attempt's number from 0."""
    metadata: dict[str, Any] = {"name": config.name, "attempts": []}
    if directory.metadata.exists():
        metadata = read_json(directory.metadata)
    attempt = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processes": processes,
        "layout": config.parallel.describe(processes),
    }
    metadata["attempts"].append(attempt)
    write_atomic(directory.config, dump_config(config))
    write_json(directory.environment, describe_machine())
    write_json(directory.metadata, metadata)
    return len(metadata["attempts"]) - 1


def run_local(config: RunConfig, root: Path, processes: int, until: int | None = None) -> None:
    """Train in the foreground with `processes` ranks on this machine, shown to MLflow if tracking is enabled.

    Raises UserError for the user's mistakes, Requeue if the run was stopped and saved, LacunaError otherwise.
    """
    config = resolve_paths(config)
    check_before_start(config, processes)
    directory = RunDirectory(root)
    attempt = prepare_run(config, directory, processes)
    with _shown_to_mlflow(config, directory):
        code = _start_worker(directory, until) if processes == 1 else _start_workers(directory, processes, until)
        record_outcome(directory, code)
    if code:
        raise _failure(directory, attempt, processes, code)


@contextmanager
def _shown_to_mlflow(config: RunConfig, directory: RunDirectory) -> Iterator[None]:
    if not config.tracking.enabled:
        yield
        return
    from launch.tracking import sync_run, tracking_uri
    from pretrain.tracking.follow import start_follower

    follower = start_follower(directory.root, tracking_uri(config, directory), config.tracking.experiment)
    try:
        yield
    finally:
        follower.terminate()
        follower.wait()
    try:
        sync_run(directory)
    except LacunaError as error:
        print(
            f"MLflow does not have all of this run yet: {error}; later: lacuna track sync {directory.root}",
            file=sys.stderr,
        )


def record_outcome(directory: RunDirectory, code: int) -> None:
    """Note in `run.json` how the attempt ended."""
    metadata = read_json(directory.metadata)
    outcome = {0: "finished", Requeue.exit_code: "stopped"}.get(code, "failed")
    metadata["attempts"][-1] |= {"outcome": outcome, "exit_code": code}
    write_json(directory.metadata, metadata)


def resolve_paths(config: RunConfig) -> RunConfig:
    """The configuration with absolute data paths, since ranks may run elsewhere."""
    data = config.data
    path = None if data.path is None else str(Path(data.path).absolute())
    mixture = {str(Path(p).absolute()): weight for p, weight in data.mixture.items()}
    return config.model_copy(update={"data": data.model_copy(update={"path": path, "mixture": mixture})})


def _start_worker(directory: RunDirectory, until: int | None) -> int:
    from launch import worker

    return worker.main(str(directory.root), until)


def _start_workers(directory: RunDirectory, processes: int, until: int | None) -> int:
    """One torchrun agent for this machine; its workers end with a code and a failure file of their own."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"lacuna-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.2,
    )
    arguments = ["-m", "launch.worker", str(directory.root)] + ([] if until is None else [str(until)])
    try:
        with _threads_per_process(processes):
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode or 1
    except SignalException:
        return Requeue.exit_code
    return 0


@contextmanager
def _threads_per_process(processes: int) -> Iterator[None]:
    """Share the cores among the workers, unless the user has said otherwise."""
    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    try:
        yield
    finally:
        del os.environ[name]


def _failure(directory: RunDirectory, attempt: int, processes: int, code: int) -> LacunaError:
    for rank in range(processes):
        path = directory.failure(attempt, rank)
        if path.exists():
            found = read_json(path)
            return _ERRORS.get(found["exit_code"], LacunaError)(found["message"])
    logs = directory.logs(attempt)
    return _ERRORS.get(code, LacunaError)(f"a rank ended with code {code} without a word: see {logs}")
