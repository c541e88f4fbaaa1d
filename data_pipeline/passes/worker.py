"""Worker processes: each does what its parent writes to its standard input.

A program of its own, and not a fork or a second import of the caller's main module: no locks or threads of the
parent are inherited, and whatever the caller is, a worker starts in the time that pyarrow takes.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from runtime.errors import LacunaError, one_line

T = TypeVar("T")
R = TypeVar("R")
_ROOT = Path(__file__).resolve().parents[2]
_ALONE_BYTES = 1 << 30  # less than this is read sooner than workers start


class Worker:
    """The parent's side of one worker process; messages are pickled between the two alone."""

    def __init__(self) -> None:
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from data_pipeline.passes.worker import main; main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function`, which must be importable by name, returns in the worker. Raises what it raises.

        Raises LacunaError if the worker was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function, arguments), self._process.stdin)
            self._process.stdin.flush()
            result, error = pickle.load(self._process.stdout)  # noqa: S301 - our own process
        except (EOFError, BrokenPipeError):
            raise LacunaError(
                "a worker process was killed (the machine may be short of memory): what is finished is kept, "
                "try again, perhaps with fewer --processes"
            ) from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the process, in the middle of its work if need be."""
        self._process.kill()
        self._process.communicate()


def share_out(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: Sequence[Worker]
) -> Iterator[tuple[int, Any]]:
    """(number of a task, what `function` returned for it) as they are done; each worker takes the next when free.

    Raises the first error, and begins no task after it.
    """
    waiting, done = iter(list(enumerate(tasks))), queue.SimpleQueue[tuple[int, Any, BaseException | None]]()
    turn = threading.Lock()

    def serve(worker: Worker) -> None:
        while True:
            with turn:
                number, task = next(waiting, (None, ()))
            if number is None:
                return
            try:
                done.put((number, worker.do(function, *task), None))
            except BaseException as error:
                with turn:
                    list(waiting)
                done.put((number, None, error))

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for _ in tasks:
        number, result, error = done.get()
        if error is not None:
            raise error
        yield number, result


def processes_for(size: int) -> int:
    """How many processes read `size` bytes of a dataset soonest: one for each core, or only this one."""
    return len(os.sched_getaffinity(0)) if size > _ALONE_BYTES else 1


def spread(function: Callable[[T], R], tasks: Sequence[T], processes: int) -> Iterator[tuple[int, R]]:
    """(number of a task, what `function` returned for it) as they are done, by so many workers, or here if by one.

    Raises the first error.
    """
    if processes == 1 or len(tasks) < 2:
        yield from ((number, function(task)) for number, task in enumerate(tasks))
        return
    workers = [Worker() for _ in range(min(processes, len(tasks)))]
    try:
        yield from share_out(function, [(task,) for task in tasks], workers)
    finally:
        for worker in workers:
            worker.close()


def _serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    """Do tasks until the parent closes its end or dies, which ends this process at once."""
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                received.put(pickle.load(tasks))  # noqa: S301 - the parent's
        except Exception:
            os._exit(1)

    threading.Thread(target=receive, name="lacuna-tasks", daemon=True).start()
    while True:
        function, arguments = received.get()
        result, error = None, None
        try:
            result = function(*arguments)
        except Exception as raised:
            error = _portable(raised)
        pickle.dump((result, error), answers)
        answers.flush()


def _portable(error: Exception) -> Exception:
    """The error itself if it can be sent, else its words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:
        return LacunaError(one_line(error))
    return error


def main() -> None:
    """Keep standard output for answers: what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import pyarrow as pa

    pa.set_cpu_count(1)
    _serve(sys.stdin.buffer, answers)
