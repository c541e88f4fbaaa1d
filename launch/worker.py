"""One rank of a run: reads the run directory's configuration and trains. Entry point of every process."""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.environment import RankInfo
from runtime.errors import LacunaError, Requeue, one_line
from runtime.files import read_json, write_json
from runtime.logs import capture_warnings, configure_logs, log
from runtime.progress import ProgressBar
from runtime.settings import read_yaml
from runtime.signals import StopRequest

EXIT_REQUEUE = Requeue.exit_code


def main(run: str, until: int | None) -> int:
    """Train as the rank that the environment names. Returns the exit code; the reason stands in the rank's log."""
    directory, rank = RunDirectory(Path(run)), RankInfo.from_environment()
    attempt = current_attempt(directory)
    configure_logs(rank, directory.logs(attempt))
    capture_warnings()
    faulthandler.enable()
    try:
        _train(directory, rank, attempt, until)
    except LacunaError as error:
        log.debug("ends with an error", exc_info=True)
        write_json(directory.failure(attempt, rank.rank), {"message": one_line(error), "exit_code": error.exit_code})
        return error.exit_code
    except Exception as error:
        log.error("rank %d: %s: %s", rank.rank, type(error).__name__, one_line(error), exc_info=True)
        message = (
            f"rank {rank.rank}: {type(error).__name__}: {one_line(error)} (traceback in {directory.logs(attempt)})"
        )
        write_json(directory.failure(attempt, rank.rank), {"message": message, "exit_code": 1})
        return 1
    return 0


def current_attempt(directory: RunDirectory) -> int:
    """Number of the attempt under way, counted from 0; the launcher registers attempts in `run.json`."""
    return len(read_json(directory.metadata)["attempts"]) - 1


def _train(directory: RunDirectory, rank: RankInfo, attempt: int, until: int | None) -> None:
    from data_pipeline.dataset import SampleReader
    from parallel.mesh import Mesh, close_process_group
    from pretrain.build import build_engine
    from pretrain.feed import Feed
    from pretrain.loop import train
    from pretrain.session import Session, build_objective

    config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
    stop = StopRequest().install()
    reader = SampleReader(config.data, config.train.sequence_length, config.train.seed)
    objective = build_objective(config, reader.manifests[0].tokenizer)
    mesh = Mesh.create(config.parallel, rank)
    engine = build_engine(config, mesh)
    session = Session(config, directory, engine, reader, attempt)
    start = session.resume()
    until = min(until or config.train.steps, config.train.steps)
    train_config = config.train
    feed = Feed(
        reader,
        objective,
        train_config.global_batch,
        train_config.micro_batch,
        mesh.data_rank,
        mesh.data_size,
        mesh.context_rank,
        config.parallel.context,
    )
    with session.opened(start), ProgressBar(config.name, until - start, visible=rank.is_first) as bar:

        def report(step: int, values: dict[str, Any]) -> None:
            session.log_metrics(step, values)
            bar.advance(
                train_config.log_every,
                f"loss {values['train/loss']:.3f}  {values['perf/tokens_per_second']:,.0f} tokens/s",
            )

        step, stopped = train(config, engine, feed, start, until, session.hooks(report), stop)
    close_process_group()
    if stopped:
        raise Requeue(
            f"stopped at step {step} of {config.train.steps} on request; start again with the same --run to continue"
        )


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
    sys.stdout.flush()
    sys.stderr.flush()
    # a rank that failed must not wait in atexit handlers for peers that are gone
    os._exit(code)
