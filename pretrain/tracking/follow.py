"""The process beside a training run that shows its metrics to MLflow while it goes.

A process and not a thread: importing MLflow holds the interpreter for seconds, and a server that hangs, leaks
or crashes must not be felt by the training.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from pretrain.run_directory import RunDirectory
from pretrain.tracking.facts import final_status
from pretrain.tracking.mlflow import forward
from pretrain.tracking.uri import redact
from runtime.environment import RankInfo
from runtime.errors import LacunaError
from runtime.logs import configure_logs, log

_URI_VARIABLE = "LACUNA_TRACKING_URI"
_LONGEST_PAUSE = 120.0
_LAST_TRY = 3


def start_follower(
    run_directory: Path, uri: str, experiment: str = "lacuna", seconds: float = 5.0
) -> subprocess.Popen[bytes]:
    """Start `follow` as a process of its own beside this one; it ends by itself soon after this one.

    Its words go to `RUN/logs/tracking.log`. The URI travels in the environment, since a command line with a
    password in it is everybody's to read. It stands in its own session, so that Ctrl-C is for the training.
    """
    logs = run_directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __name__, str(run_directory), f"--experiment={experiment}"]
    command += [f"--parent={os.getpid()}", f"--seconds={seconds}"]
    environment = os.environ | {_URI_VARIABLE: uri, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited: one that comes early must wait
    try:
        with open(logs / "tracking.log", "ab") as out:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow(
    run_directory: Path,
    uri: str,
    parent: int | None,
    seconds: float = 5.0,
    experiment: str = "lacuna",
    conclude: bool = True,
) -> bool:
    """Forward the run every `seconds` as its metrics grow, until process `parent` is gone or SIGTERM comes.

    A dead server is tried again after growing pauses (up to 120 s) and said once in the log. At the end there
    is one last short try, with the plots; what is then still missing waits for `lacuna track sync`. With `conclude`
    MLflow is told how the attempt ended: as `run.json` says, or failed if the parent was killed before it could note
    that. Returns whether MLflow has it all. For the main thread of a process of its own: takes SIGTERM over and lowers
    the process's priority.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.nice(10)
    watched = _Process(parent)
    sender = _Sender(run_directory, uri, experiment, seconds)
    while not stop.wait(seconds) and watched.alive():
        sender.tick()
    return sender.last_try(_status(run_directory, killed=not stop.is_set()) if conclude else None)


def _status(run_directory: Path, killed: bool) -> str | None:
    try:
        directory = RunDirectory(run_directory)
        return final_status(directory) or ("FAILED" if killed and directory.metadata.exists() else None)
    except LacunaError:
        return None  # a broken run.json is told elsewhere


class _Sender:
    """When to send: only if the file has grown, and after failures ever more seldom."""

    def __init__(self, run_directory: Path, uri: str, experiment: str, seconds: float) -> None:
        self._run_directory, self._uri, self._experiment = run_directory, uri, experiment
        self._seconds, self._pause, self._next_try = seconds, 0.0, 0.0
        self._sent_bytes = -1

    def tick(self) -> None:
        if time.monotonic() >= self._next_try and self._size() != self._sent_bytes and not self._send(10):
            self._pause = min(max(2 * self._pause, self._seconds), _LONGEST_PAUSE)
            self._next_try = time.monotonic() + self._pause

    def last_try(self, status: str | None) -> bool:
        return self._send(_LAST_TRY, status, plots=True)

    def _size(self) -> int:
        path = self._run_directory / "metrics.jsonl"
        return path.stat().st_size if path.exists() else -1

    def _send(self, seconds: int, status: str | None = None, plots: bool = False) -> bool:
        size = self._size()
        try:
            forward(self._run_directory, self._uri, self._experiment, status, seconds, plots)
        except (LacunaError, OSError) as error:
            if self._pause == 0.0:
                log.warning("%s", error)
            return False
        if self._pause > 0.0:
            log.warning("tracking server %s answers again", redact(self._uri))
        self._pause, self._sent_bytes = 0.0, size
        return True


class _Process:
    """A process that is watched by number and start time, for numbers are used again."""

    def __init__(self, number: int | None) -> None:
        self._forever = number is None
        try:
            self._process = psutil.Process(number) if number is not None else None
        except psutil.NoSuchProcess:
            self._process = None

    def alive(self) -> bool:
        if self._process is None:
            return self._forever
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def main() -> None:
    """`python -m pretrain.tracking.follow RUN --parent PID`, with the URI in LACUNA_TRACKING_URI.

    Ends with 0 if MLflow has it all.
    """
    parser = argparse.ArgumentParser(description="forward a run's metrics to MLflow")
    parser.add_argument("run", type=Path)
    parser.add_argument("--experiment", default="lacuna")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    configure_logs(RankInfo())
    complete = follow(options.run, os.environ[_URI_VARIABLE], options.parent, options.seconds, options.experiment)
    sys.exit(0 if complete else 1)


if __name__ == "__main__":
    main()
