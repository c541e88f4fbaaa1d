"""One small dataset, one recipe on it, and one run of four of its eight steps, made once."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main
from tests.support.command_line import lacuna, succeeded
from tests.support.small_run import build_dataset, write_corpus, write_recipe

Here = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def build_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lacuna data build` reads, beside its corpus of 200 short texts."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, build_file: Path) -> Path:
    """A dataset that no test changes."""
    return build_dataset(build_file, tmp_path_factory.mktemp("built") / "data")


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "data"))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """A recipe of 8 steps of 8 × 32 tokens with a checkpoint every 2."""
    return write_recipe(tmp_path_factory.mktemp("recipe"), built)


@pytest.fixture
def damaged_recipe(tmp_path: Path, dataset: Path) -> Path:
    """The same recipe on the dataset that a test may damage."""
    return write_recipe(tmp_path, dataset)


@pytest.fixture(scope="session")
def half_run(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A run stopped after step 4, with checkpoints of steps 2 and 4, that no test changes."""
    run = tmp_path_factory.mktemp("half") / "run"
    succeeded(lacuna("train", recipe, "--run", run, "--until", "4"))
    return run


@pytest.fixture
def run(half_run: Path, tmp_path: Path) -> Path:
    """A copy of the half run that a test may continue or damage."""
    return Path(shutil.copytree(half_run, tmp_path / "run"))


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process, for commands that start no training: torch is imported only once."""

    def call(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        monkeypatch.setattr(sys, "argv", ["lacuna", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(sys.argv, ended.value.code, *capfd.readouterr())

    return call
