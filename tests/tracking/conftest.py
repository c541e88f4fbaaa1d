"""One MLflow store for all tests: a sqlite file, and a real server on top of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Store(NamedTuple):
    """The same store by two ways: through a server process, and as a database file."""

    server: str
    database: str


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Start the server, which sets the database up, and import MLflow here meanwhile."""
    folder = tmp_path_factory.mktemp("mlflow store")
    database = f"sqlite:///{folder / 'runs.db'}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [f"--backend-store-uri={database}", f"--artifacts-destination={folder / 'served'}"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(folder / "server.log", "wb") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | quiet, stdout=out, stderr=out, start_new_session=True
        )
    try:
        import mlflow.tracking  # noqa: F401 - takes as long as the server's start

        give_up = time.monotonic() + 150
        while not _answers(port):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < give_up, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield Store(f"http://127.0.0.1:{port}", database)
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server and its worker
        server.wait(timeout=30)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run directory; the test stands in a folder of its own, where nothing may appear."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    directory = tmp_path / "run"
    directory.mkdir()
    return directory
