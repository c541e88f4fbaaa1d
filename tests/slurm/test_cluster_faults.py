"""Faults that a cluster really has, each on a real Slurm of its own; `make prove-slurm` writes what is seen down."""

from pathlib import Path

import pytest

from tests.prove.slurm import SCENARIOS, prove
from tests.support.slurm_lab import missing

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=f"no Slurm lab: {missing()}")
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_goes_on_after(name: str, small_recipe: Path, tmp_path: Path) -> None:
    assert "once" in prove(name, tmp_path, small_recipe)
