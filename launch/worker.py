"""One rank of a run: reads the run directory's configuration and trains. Entry point of every process."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from runtime.environment import RankInfo
from runtime.errors import LacunaError, Requeue, UserError, one_line
from runtime.files import read_json, write_json
from runtime.logs import capture_warnings, configure_logs, log
from runtime.progress import ProgressBar
from runtime.settings import read_yaml
from runtime.signals import STOP_SIGNALS, StopRequest

LAUNCHER_TELLS = "LACUNA_LAUNCHER_TELLS"
"""Set for workers whose errors a launcher tells; under plain torchrun or srun they tell them themselves."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def main(run: str, until: int | None, rank: RankInfo, stop: StopRequest) -> LacunaError | None:
    """Train as `rank` until a step, the end or a stop. Returns why it ended early, or None.

    The reason stands in the attempt's failure file too, for a launcher in another process, and with a traceback
    in the rank's log.
    """
    directory = RunDirectory(Path(run))
    attempt = current_attempt(directory)
    configure_logs(rank, directory.logs(attempt))
    capture_warnings()
    faulthandler.enable()
    try:
        _train(directory, rank, attempt, until, stop)
    except Exception as error:
        log.debug("rank %d ends with an error", rank.rank, exc_info=True)
        failure = _as_failure(error, rank, directory.logs(attempt))
        reason = {"message": one_line(failure), "exit_code": failure.exit_code}
        with suppress(OSError):  # on a full disk the launcher says at least the code
            write_json(directory.failure(attempt, rank.rank), reason)
        return failure
    return None


def _as_failure(error: Exception, rank: RankInfo, logs: Path) -> LacunaError:
    if isinstance(error, LacunaError):
        return error
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return UserError(f"rank {rank.rank}: {error}: free some room, start again with the same --run to continue")
    return LacunaError(f"rank {rank.rank}: {type(error).__name__}: {error} (traceback in {logs})")


def current_attempt(directory: RunDirectory) -> int:
    """Number of the attempt under way, counted from 0; the launcher registers attempts in `run.json`."""
    return len(read_json(directory.metadata)["attempts"]) - 1


def _train(directory: RunDirectory, rank: RankInfo, attempt: int, until: int | None, stop: StopRequest) -> None:
    from data_pipeline.dataset import SampleReader
    from parallel.mesh import Mesh, close_process_group
    from pretrain.build import build_engine
    from pretrain.feed import Feed
    from pretrain.loop import train
    from pretrain.session import Session, build_objective

    config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
    reader = SampleReader(config.data, config.train.sequence_length, config.train.seed)
    objective = build_objective(config, reader.manifests[0].tokenizer)
    mesh = Mesh.create(config.parallel, rank)
    engine = build_engine(config, mesh)
    session = Session(config, directory, engine, reader, attempt)
    start, guard = session.resume()
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
                step - start - bar.done,
                f"loss {values['train/loss']:.3f}  {values['perf/tokens_per_second']:,.0f} tokens/s",
            )

        step, stopped = train(config, engine, feed, range(start, until), guard, session.hooks(report), stop)
    mesh.barrier()  # an agent gives the others little time once one has ended
    close_process_group()
    if stopped:
        raise Requeue(
            f"stopped at step {step} of {config.train.steps} on request; start again with the same --run to continue"
        )


def _as_process(arguments: list[str]) -> int:
    """`python -m launch.worker RUN [UNTIL]`, as a rank that torchrun or srun started."""
    stop = StopRequest().install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the launcher blocks them until they can be noted
    try:
        until = int(arguments[1]) if arguments[1:] else None
        failure = main(arguments[0], until, RankInfo.from_environment(), stop)
    except LacunaError as error:  # before there is a log to write to
        failure = error
    if failure is None:
        return 0
    if LAUNCHER_TELLS not in os.environ:
        print(f"lacuna: {one_line(failure)}", file=sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    code = _as_process(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # a rank that failed must not wait in atexit handlers for peers that are gone
    os._exit(code)
