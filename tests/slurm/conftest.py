"""A lab with a real Slurm for all tests of this folder, and a recipe that takes seconds."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.command_line import lacuna, succeeded
from tests.support.slurm_lab import SlurmLab, missing

_WORDS = ["the", "sea", "fills", "every", "lacuna", "of", "an", "old", "manuscript", "with", "12", "blue", "words\n"]


def build_small_data(folder: Path) -> Path:
    """A dataset of 200 short texts."""
    source = random.Random(0)
    corpus = "\n%\n".join(" ".join(source.choices(_WORDS, k=source.randint(1, 60))) + f" {n}" for n in range(200))
    (folder / "corpus.txt").write_text(corpus)
    build = {
        "sources": [
            {"kind": "text", "name": "words", "licence": "CC0", "glob": f"{folder}/corpus.txt", "split": "fortune"}
        ],
        "tokenizer": {"kind": "train", "vocabulary": 300},
        "validation": 0.2,
    }
    (folder / "build.yaml").write_text(yaml.safe_dump(build))
    succeeded(lacuna("data", "build", "--config", folder / "build.yaml", "--out", folder / "data"))
    return folder / "data"


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, made once."""
    return build_small_data(tmp_path_factory.mktemp("slurm-data"))


@pytest.fixture(scope="session")
def small_recipe(small_data: Path) -> Path:
    """A recipe of 8 steps of 8 × 32 tokens with a checkpoint every 2."""
    values = {
        "name": "small",
        "model": {"layers": 2, "width": 24, "heads": 3, "kv_heads": 3, "ffn": 66, "vocabulary": 300},
        "optimizer": {"lr": 0.01},
        "data": {"path": str(small_data)},
        "train": {"steps": 8, "global_batch": 8, "micro_batch": 4, "sequence_length": 32, "seed": 1},
        "checkpoint": {"every": 2, "keep": 3},
        "tracking": {"enabled": False},
    }
    path = small_data.parent / "small.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def running_lab() -> Iterator[SlurmLab]:
    """Slurm with three nodes; skipped with the reason where it cannot be."""
    reason = missing()
    if reason:
        pytest.skip(f"no Slurm lab: {reason}")
    with SlurmLab(Path(tempfile.mkdtemp(prefix="lacuna-lab-", dir="/tmp"))) as lab:
        yield lab


@pytest.fixture
def lab(running_lab: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmLab]:
    """The lab with an empty queue, and its Slurm the one that commands find."""
    monkeypatch.setenv("SLURM_CONF", str(running_lab.conf))
    yield running_lab
    running_lab.cancel_all()
