"""One small dataset, one recipe on it, and one run of four of its eight steps, made once."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import main
from tests.support.command_line import lacuna, succeeded

_WORDS = ["the", "sea", "fills", "every", "lacuna", "of", "an", "old", "manuscript", "with", "12", "blue", "words\n"]
Here = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def build_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lacuna data build` reads, beside its corpus of 200 short texts."""
    folder = tmp_path_factory.mktemp("corpus")
    source = random.Random(0)
    for number in range(200):
        text = " ".join(source.choices(_WORDS, k=source.randint(1, 60))) + f" {number}"
        (folder / f"{number:03d}.txt").write_text(text)
    values = {
        "sources": [{"kind": "text", "name": "words", "licence": "CC0", "glob": f"{folder}/*.txt"}],
        "tokenizer": {"kind": "train", "vocabulary": 300},
        "validation": 0.2,
        "batch_tokens": 512,
        "shard_tokens": 3000,
    }
    (folder / "build.yaml").write_text(yaml.safe_dump(values))
    return folder / "build.yaml"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, build_file: Path) -> Path:
    """A dataset that no test changes."""
    out = tmp_path_factory.mktemp("built") / "data"
    succeeded(lacuna("data", "build", "--config", build_file, "--out", out))
    return out


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return Path(shutil.copytree(built, tmp_path / "data"))


def _recipe(folder: Path, data: Path) -> Path:
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {"layers": 2, "width": 24, "heads": 3, "kv_heads": 3, "ffn": 66, "vocabulary": 300},
        "optimizer": {"lr": 0.01},
        "data": {"path": str(data)},
        "train": {"steps": 8, "global_batch": 8, "micro_batch": 4, "sequence_length": 32, "seed": 1},
        "checkpoint": {"every": 2, "keep": 3},
        "tracking": {"enabled": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "tiny.yaml"


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """A recipe of 8 steps of 8 × 32 tokens with a checkpoint every 2."""
    return _recipe(tmp_path_factory.mktemp("recipe"), built)


@pytest.fixture
def damaged_recipe(tmp_path: Path, dataset: Path) -> Path:
    """The same recipe on the dataset that a test may damage."""
    return _recipe(tmp_path, dataset)


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
