"""One rank of a run: reads the run directory's configuration and trains. Entry point of every process."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.fencing import LAUNCHER, fenced
from launch.outcome import record_outcome
from pretrain.config import RunConfig
from pretrain.health.meeting import watched_until_met
from pretrain.run_directory import RunDirectory
from runtime.deadline import Deadline, StopOrDeadline
from runtime.environment import RankInfo
from runtime.errors import Hang, LacunaError, Requeue, UserError, one_line
from runtime.files import read_json, write_json
from runtime.lease import Lease
from runtime.logs import capture_warnings, configure_logs, log
from runtime.machine import die_with_parent
from runtime.progress import ProgressBar
from runtime.settings import read_yaml
from runtime.signals import STOP_SIGNALS, StopRequest

if TYPE_CHECKING:
    from data_pipeline.dataset import SampleReader
    from parallel.engines.base import Engine
    from parallel.mesh import Mesh
    from pretrain.feed import Feed

_ELASTIC = "TORCHELASTIC_RUN_ID"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def main(
    run: str, until: int | None, rank: RankInfo, stop: StopRequest, lease: Lease | None = None
) -> LacunaError | None:
    """Train as `rank` until a step, the end or a stop. Returns why it ended early, or None.

    `lease` is the attempt's, if this process holds it already. The reason stands in the attempt's failure file too,
    for a launcher in another process, and with a traceback in the rank's log.
    """
    directory = RunDirectory(Path(run))
    attempt = current_attempt(directory)
    configure_logs(rank, directory.logs(attempt))
    capture_warnings()
    faulthandler.enable()
    try:
        _train(directory, rank, attempt, until, stop, lease)
    except Exception as error:
        log.debug("rank %d ends with an error", rank.rank, exc_info=True)
        failure = _as_failure(error, rank, directory.logs(attempt))
        _leave_word(directory, attempt, rank, failure)
        return failure
    return None


def _leave_word(directory: RunDirectory, attempt: int, rank: RankInfo, failure: LacunaError) -> None:
    reason = {"message": one_line(failure), "exit_code": failure.exit_code}
    with suppress(OSError):  # on a full disk the launcher says at least the code
        write_json(directory.failure(attempt, rank.rank), reason)


def _as_failure(error: Exception, rank: RankInfo, logs: Path) -> LacunaError:
    if isinstance(error, LacunaError):
        return error
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return UserError(f"rank {rank.rank}: {error}: free some room, start again with the same --run to continue")
    return LacunaError(f"rank {rank.rank}: {type(error).__name__}: {error} (traceback in {logs})")


def current_attempt(directory: RunDirectory) -> int:
    """Number of the attempt under way, counted from 0; the launcher registers attempts in `run.json`."""
    return len(read_json(directory.metadata)["attempts"]) - 1


def _train(
    directory: RunDirectory,
    rank: RankInfo,
    attempt: int,
    until: int | None,
    stop: StopRequest,
    lease: Lease | None,
) -> None:
    config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
    end = partial(_end_hung, directory, attempt, rank, lease)
    with watched_until_met(config.watchdog, directory, attempt, rank, end) as waits:
        mesh, engine, reader, feed = _assemble(config, rank, stop, waits)
    from parallel.mesh import close_process_group
    from pretrain.health.attend import attended
    from pretrain.loop import train
    from pretrain.session import Session

    deadline = Deadline.of_attempt(config.train.time_limit, config.train.time_reserve)
    until = min(until or config.train.steps, config.train.steps)
    with ExitStack() as stack:
        fence = stack.enter_context(fenced(directory, config.lease, mesh, lease))
        health = stack.enter_context(attended(config, directory, mesh, attempt, fence.token, end))
        session = Session(config, directory, engine, reader, attempt, fence, deadline)
        start, guard = session.resume()
        stack.enter_context(session.opened(start))
        bar = stack.enter_context(ProgressBar(config.name, until - start, visible=rank.is_first))

        def report(step: int, values: dict[str, Any]) -> None:
            session.log_metrics(step, values)
            bar.advance(
                step - start - bar.done,
                f"loss {values['train/loss']:.3f}  {values['perf/tokens_per_second']:,.0f} tokens/s",
            )

        asked = StopOrDeadline(stop, deadline)
        step, stopped = train(config, engine, feed, range(start, until), guard, session.hooks(report, health), asked)
    requested = any(mesh.gather(bool(stop)))  # also a barrier: an agent gives the others little time once one has ended
    close_process_group()
    if stopped:
        raise _stopped(step, start, config, requested)


def _assemble(
    config: RunConfig, rank: RankInfo, stop: StopRequest, waits: threading.Event
) -> tuple[Mesh, Engine, SampleReader, Feed]:
    """Import what is heavy, meet the other ranks, and build this one's part. `waits` is set when it waits for them."""
    from data_pipeline.dataset import SampleReader
    from parallel.mesh import Mesh
    from pretrain.build import build_engine
    from pretrain.feed import Feed
    from pretrain.session import build_objective

    data, train = config.data, config.train
    reader = SampleReader(data, train.sequence_length, train.seed, global_batch=train.global_batch)
    objective = build_objective(config, reader.manifests[0].tokenizer)
    with _ended_by_sigterm(stop, rank):
        waits.set()
        mesh = Mesh.create(config.parallel, rank, config.watchdog.collective_timeout)
    feed = Feed(
        reader,
        objective,
        train.global_batch,
        train.micro_batch,
        mesh.data_rank,
        mesh.data_size,
        mesh.context_rank,
        config.parallel.context,
        prefetch=reader.prefetch if reader.remote else None,
        quarantine=data.on_corrupt == "quarantine",
    )
    return mesh, build_engine(config, mesh), reader, feed


@contextmanager
def _ended_by_sigterm(stop: StopRequest, rank: RankInfo) -> Iterator[None]:
    """Let SIGTERM end this process at once while it waits for its peers to come: there is nothing to save yet.

    Launchers end the peers of a rank that died with it, and wait long for those that only note it. Raises Requeue if a
    stop was noted before.
    """
    if rank.world == 1:
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        if stop:
            raise Requeue("stopped on request before it began; start again with the same --run to continue")
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _end_hung(directory: RunDirectory, attempt: int, rank: RankInfo, lease: Lease | None, hang: Hang) -> None:
    """End this process, whose main thread may hang for ever; `lease`: it is its own launcher, if it is given."""
    _leave_word(directory, attempt, rank, hang)
    if lease is not None and lease.held():
        record_outcome(directory, attempt, hang, paused=False)
    if LAUNCHER not in os.environ:
        print(f"lacuna: {one_line(hang)}", file=sys.stderr, flush=True)
    os._exit(hang.exit_code)


def _stopped(step: int, start: int, config: RunConfig, requested: bool) -> LacunaError:
    where = f"stopped at step {step} of {config.train.steps}"
    if requested:
        return Requeue(f"{where} on request; start again with the same --run to continue")
    if step == start:
        return UserError(
            f"{where}: the time limit leaves no time for a step and a save: "
            f"give more time, or lower train.time_reserve={config.train.time_reserve:g}"
        )
    return Requeue(f"{where} before the time limit; start again with the same --run to continue")


def _as_process(arguments: list[str]) -> int:
    """`python -m launch.worker RUN [UNTIL]`, as a rank that torchrun or srun started."""
    if _ELASTIC in os.environ:  # its agent starts workers from its main thread
        die_with_parent(int(os.environ.get(LAUNCHER, os.getppid())))
    stop = StopRequest().install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the launcher blocks them until they can be noted
    try:
        until = int(arguments[1]) if arguments[1:] else None
        failure = main(arguments[0], until, RankInfo.from_environment(), stop)
    except LacunaError as error:  # before there is a log to write to
        failure = error
    if failure is None:
        return 0
    if LAUNCHER not in os.environ:
        print(f"lacuna: {one_line(failure)}", file=sys.stderr)
    return failure.exit_code


if __name__ == "__main__":
    code = _as_process(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # a rank that failed must not wait in atexit handlers for peers that are gone
    os._exit(code)
