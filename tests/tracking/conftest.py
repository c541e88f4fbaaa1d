"""One MLflow store for all tests: a sqlite file, and a real server on top of it."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.mlflow_server import serving


class Store(NamedTuple):
    """The same store by two ways: through a server process, and as a database file."""

    server: str
    database: str


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Start the server, which sets the database up, and import MLflow here meanwhile, which takes as long."""
    folder = tmp_path_factory.mktemp("mlflow store")
    database = folder / "runs.db"
    with serving(database, folder / "served", lambda: import_module("mlflow.tracking")) as server:
        yield Store(server, f"sqlite:///{database}")


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run directory; the test stands in a folder of its own, where nothing may appear."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    directory = tmp_path / "run"
    directory.mkdir()
    return directory
