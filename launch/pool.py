"""Jobs as processes of this machine: so many at a time, ended politely on a stop, and never outliving the pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import LacunaError, one_line
from runtime.signals import StopRequest

_PAUSE = 0.2
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Job:
    """`python -m MODULE ROOT PID_OF_THE_POOL`, which appends what it says to `log`; see `run_as_job`."""

    name: str
    module: str
    root: Path
    log: Path


def run_jobs(
    jobs: Iterable[Job], processes: int, stop: StopRequest, look: Callable[[], None] = lambda: None
) -> Iterator[tuple[Job, int]]:
    """Yield each job with its exit code once it has ended, `processes` at a time; jobs are taken when there is room.

    `look` is called about once a second.
    After a stop the processes are ended politely and no job is yielded any more. Each has its share of the cores,
    unless OMP_NUM_THREADS says otherwise.
    """
    waiting = iter(jobs)
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    more, looked = True, 0.0
    with _ended_at_last(running):
        while running or (more and not stop):
            while more and len(running) < processes and not stop:
                job = next(waiting, None)
                more = job is not None
                if job is not None:
                    running.append((job, _start(job, processes)))
            if stop:
                for _, process in running:
                    process.send_signal(signal.SIGTERM)
            time.sleep(_PAUSE)
            if time.monotonic() - looked > _SECONDS_BETWEEN_LOOKS:
                looked = time.monotonic()
                look()
            for job, process in list(running):
                if process.poll() is not None:
                    running.remove((job, process))
                    if not stop:
                        yield job, process.returncode


@contextmanager
def _ended_at_last(running: list[tuple[Job, subprocess.Popen[bytes]]]) -> Iterator[None]:
    try:
        yield
    finally:
        for _, process in running:
            process.terminate()
        for _, process in running:
            process.wait()


def _start(job: Job, processes: int) -> subprocess.Popen[bytes]:
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    with open(job.log, "ab") as log:
        command = [sys.executable, "-m", job.module, str(job.root), str(os.getpid())]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def why_failed(job: Job, code: int) -> str:
    """The last error that a job's log tells, or its exit code, and where the log is."""
    lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.startswith("lacuna: ")]
    said = lines[-1].removeprefix("lacuna: ") if lines else f"ended with code {code}"
    return f"{said}; see {job.log}"


def run_as_job(action: Callable[[Path], None]) -> int:
    """Do the `action` of `python -m MODULE ROOT [PID_OF_THE_POOL]`; returns its exit code, its error is one line.

    Without a pool's id it outlives its parent, which under Slurm may be a container's: Slurm ends it.
    """
    if len(sys.argv) > 2:
        _end_with_parent(int(sys.argv[2]))
    try:
        action(Path(sys.argv[1]))
    except LacunaError as error:
        print(f"lacuna: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    return 0


def _end_with_parent(parent: int) -> None:
    """Stop politely when the pool is gone, however it went; its next one then continues the job."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
