"""A lab with a real Slurm for all tests of this folder, and a recipe that takes seconds."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_lab import SlurmLab, missing
from tests.support.small_recipe import write_small_recipe


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of 8 steps of 8 × 32 tokens with a checkpoint every 2, and its data beside it."""
    return write_small_recipe(tmp_path_factory.mktemp("small"))


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
    running_lab.run("scontrol", "update", "NodeName=ALL", "State=RESUME", check=False)
    running_lab.cancel_all()
