"""A real `mlflow server` on a sqlite file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_ports

_SECONDS = 180.0


@contextmanager
def serving(
    database: Path, artifacts: Path | None = None, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[str]:
    """The URI of a server of `database`, which it sets up; `meanwhile` is done while it starts.

    `artifacts`: where the server itself keeps files; else runs name their own places. Raises AssertionError with the
    server's words if it does not come up.
    """
    port = free_ports()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri=sqlite:///{database}"]
    command += [] if artifacts is None else [f"--artifacts-destination={artifacts}"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = database.with_suffix(".log")
    with open(log, "wb") as out:
        server = subprocess.Popen(
            command, cwd=database.parent, env=os.environ | quiet, stdout=out, stderr=out, start_new_session=True
        )
    try:
        meanwhile()
        give_up = time.monotonic() + _SECONDS
        while not _answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server and its worker
        server.wait(timeout=30)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
