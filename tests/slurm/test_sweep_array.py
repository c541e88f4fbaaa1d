"""A sweep as an array on a real Slurm, and what its script looks like."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.slurm.cluster import ClusterConfig
from launch.slurm.sweep_array import render_array
from tests.support.command_line import lacuna, refusal, succeeded
from tests.support.slurm_lab import SlurmLab, wait_for

pytestmark = pytest.mark.timeout(900)
CPU = ClusterConfig.parse({"name": "lab", "gpus": "none", "memory": "2G", "time": "00:10:00", "grace": 60}, "lab")


@pytest.fixture
def sweep(small_recipe: Path, tmp_path: Path) -> Path:
    """Two points of some dozens of steps."""
    recipe = yaml.safe_load(small_recipe.read_text())
    values = {
        "name": "array",
        "recipe": str(small_recipe),
        "data": recipe["data"]["path"],
        "budgets": [2.0e9],
        "sizes": [[5000]],
        "rule": {"kind": "fixed", "batch_tokens": 256, "lr": 0.01},
        "evaluation": {"windows": 4, "draws": 4},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "sweep.yaml"


@pytest.mark.slow
def test_every_point_is_a_task_and_the_table_is_that_of_a_pool(lab: SlurmLab, sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(CPU.model_dump(mode="json", exclude_defaults=True)))
    out = tmp_path / "it's out"
    array = ["scaling", "run", sweep, "--out", out, "--cluster", tmp_path / "lab.yaml", "--json"]
    told = json.loads(succeeded(lab.lacuna(*array)))
    assert len(told["points"]) == 2
    line = refusal(lab.lacuna(*array))
    assert "has jobs in the queue already" in line
    wait_for("both points", lambda: not lab.run("squeue", "--noheader", f"--jobs={told['job']}", check=False), 400)
    here = tmp_path / "here"
    succeeded(lacuna("scaling", "run", sweep, "--out", here, "--processes", "2", "--no-track"))
    assert (out / "points.csv").read_text() == (here / "points.csv").read_text()
    assert "points in" in refusal(lab.lacuna(*array))


@given(st.text(st.characters(exclude_characters="%\\", exclude_categories=("C", "Z")), min_size=1), st.text())
def test_names_never_reach_the_shell_unquoted(folder: str, name: str) -> None:
    path = Path("/runs") / folder.replace("/", "-")
    script = render_array(name, path / "sweep.yaml", path, ["a", "b"], CPU, None, "/opt/python", path / "table.csv")
    head, _, rest = script.partition("\n\n")
    assert all(line.startswith("#") for line in head.splitlines())
    assigned = rest.splitlines()[0]
    assert shlex.split(assigned) == [f"out={path}"]
    collected = next(line for line in rest.splitlines() if line.startswith("flock"))
    assert shlex.split(collected)[-2:] == ["--table", str(path / "table.csv")]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_script_asks_for_what_the_cluster_file_says() -> None:
    gpu = ClusterConfig.parse({"name": "site", "partition": "batch", "modules": ["cuda/12.4"]}, "site")
    script = render_array("s", Path("/s.yaml"), Path("/runs/s"), ["a", "b", "c"], gpu, 2, "/opt/python")
    for line in (
        "#SBATCH --array=0-2%2",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --partition=batch",
        "#SBATCH --requeue",
    ):
        assert line in script.splitlines()
    assert "module load cuda/12.4" in script
    # no id of the script's process: python's parent may be a container's
    assert 'attend "${python[@]}" -m launch.sweep_point "$point"' in script.splitlines()
