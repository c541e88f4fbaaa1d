"""One small dataset, one recipe on it, and one run of four of its eight steps, made once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

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


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """One point of each family, about 150 steps with a checkpoint every 50."""
    values = {
        "name": "small",
        "data": str(built),
        "overrides": ["train.sequence_length=32", "model.vocabulary=300", "train.seed=3"],
        "budgets": [8.0e9],
        "sizes": [[5000]],
        "rule": {"kind": "fixed", "batch_tokens": 512, "lr": 0.01},
        "evaluation": {"windows": 8, "draws": 4},
        "expected_rate": 1e9,
    }
    path = tmp_path_factory.mktemp("sweep") / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def finished(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep, run without a break, that no test changes."""
    out = tmp_path_factory.mktemp("finished") / "out"
    told = json.loads(
        succeeded(lacuna("scaling", "run", sweep, "--out", out, "--processes", "2", "--no-track", "--json"))
    )
    assert told == {"points": 2, "table": str(out / "points.csv")}
    return out


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
