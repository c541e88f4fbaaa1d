"""A reader in a process of its own, asked for batches by line; see `bench.peer_programs.protocol`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SECONDS_TO_ANSWER = 240.0


class ReaderProcess:
    """Starts a reader and waits until it is ready. Raises RuntimeError with its last words if it ends before."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                start_new_session=True,
            )
        self._answer()

    def seconds(self, batches: int) -> Callable[[int], float]:
        """A call that takes so many batches and returns the seconds; its argument, the round, does not matter."""

        def take(_round: int) -> float:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{batches}\n")
            self._process.stdin.flush()
            return float(self._answer()["seconds"])

        return take

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        too_late = threading.Timer(_SECONDS_TO_ANSWER, self.close)
        too_late.start()
        try:
            for line in self._process.stdout:
                if line.startswith("{"):  # libraries talk on standard output too
                    found: dict[str, Any] = json.loads(line)
                    return found
        finally:
            too_late.cancel()
        self._process.wait()
        words = [line for line in self._log.read_text().splitlines() if line.strip()]
        raise RuntimeError(f"does not run: {words[-1].strip()[:160]}" if words else "does not run, and says nothing")

    def close(self) -> None:
        """End it and all that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
