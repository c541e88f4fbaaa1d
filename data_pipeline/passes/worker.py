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
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import LacunaError, one_line

_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """The parent's side of one worker process; messages are pickled between the two alone."""

    def __init__(self) -> None:
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from data_pipeline.passes.worker import main; main()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def do(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function`, which must be importable by name, in the worker. Raises what it raises.

        Raises LacunaError if the worker was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((function, arguments), self._process.stdin)
            self._process.stdin.flush()
            error = pickle.load(self._process.stdout)  # noqa: S301 - our own process
        except (EOFError, BrokenPipeError):
            raise LacunaError(
                "a worker process was killed (the machine may be short of memory): what is finished is kept, "
                "build again, perhaps with fewer --processes"
            ) from None
        if error is not None:
            raise error

    def close(self) -> None:
        """End the process, in the middle of its work if need be."""
        self._process.kill()
        self._process.communicate()


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
        error: BaseException | None = None
        try:
            function(*arguments)
        except Exception as raised:
            error = raised
        pickle.dump(_portable(error), answers)
        answers.flush()


def _portable(error: BaseException | None) -> BaseException | None:
    """The error itself if it can be sent, else its words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:
        return LacunaError(one_line(error) if error else "")
    return error


def main() -> None:
    """Keep standard output for answers: what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import pyarrow as pa

    pa.set_cpu_count(1)
    _serve(sys.stdin.buffer, answers)
