"""Worker processes of a run on this machine, and the stop signals on their way to them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from launch.fencing import LAUNCHER, LAUNCHER_LEASE
from pretrain.run_directory import RunDirectory
from runtime.signals import STOP_SIGNALS, StopRequest

_MODULE = "launch.worker"
_SECONDS_TO_NOTICE = 0.1


def start_workers(
    directory: RunDirectory, processes: int, until: int | None, stop: StopRequest, token: int
) -> dict[int, int] | None:
    """One torchrun agent for this machine. Returns exit codes of the ranks that failed, or None if all is well.

    The workers write under lease `token`. A stop that `stop` notes is passed on to them; they save and end with the
    code of a requeue. Codes are not known ({}) if it came before there were workers, or the agent itself was hung up.
    """
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
        # The stop signals stay ours: an agent that is interrupted while it starts workers forgets them.
        signals_to_handle="SIGQUIT,SIGHUP" if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else "SIGQUIT",
    )
    arguments = ["-m", _MODULE, str(directory.root)] + ([] if until is None else [str(until)])
    if stop:
        return {}
    try:
        with _workers_environment(processes, token), _stops_passed_on(stop, processes):
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException:
        return {}
    return None


@contextmanager
def _stops_passed_on(stop: StopRequest, processes: int) -> Iterator[None]:
    """Send the stop on to the workers, once all of them are there.

    They are born with the stop signals blocked, so that none dies of one before it can note it (its peers would
    wait for it): processes inherit the mask of the thread that starts them. The passing thread keeps listening.
    """
    done = threading.Event()

    def pass_on() -> None:
        while not done.wait(_SECONDS_TO_NOTICE):
            if stop.signal is None:
                continue
            with suppress(psutil.NoSuchProcess):
                workers = [child for child in psutil.Process().children() if _MODULE in child.cmdline()]
                if len(workers) == processes:
                    for worker in workers:
                        worker.send_signal(stop.signal)
                    return

    passing = threading.Thread(target=pass_on, name="lacuna-stop", daemon=True)
    passing.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        done.set()
        passing.join()


@contextmanager
def _workers_environment(processes: int, token: int) -> Iterator[None]:
    """Share the cores among the workers, unless the user has said otherwise; and tell them whose they are."""
    wanted = {LAUNCHER: str(os.getpid()), LAUNCHER_LEASE: str(token)}
    if "OMP_NUM_THREADS" not in os.environ:
        wanted["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))
    os.environ |= wanted
    try:
        yield
    finally:
        for name in wanted:
            del os.environ[name]
