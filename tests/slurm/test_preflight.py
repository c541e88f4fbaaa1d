"""What is known before a job waits."""

from pathlib import Path

import pytest

from launch.recipe import load_recipe
from launch.slurm.cluster import ClusterConfig, load_cluster, shipped_clusters
from launch.slurm.preflight import check_memory, check_room, seconds
from launch.slurm.submit import check_syntax
from runtime.errors import PreflightError, UserError
from tests.support.command_line import lacuna, refusal, succeeded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 1800), ("30:15", 1815), ("1:30:15", 5415), ("2-12", 216000), ("2-12:30", 217800),
        ("2-12:30:15", 217815), ("infinite", float("inf")), ("UNLIMITED", float("inf")),
    ],
)  # fmt: skip
def test_times_as_slurm_writes_them(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "1h", "-3", "1:2:3:4", "1-"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        seconds(text)


def test_shipped_clusters_are_valid_and_named_as_their_files() -> None:
    assert {name: load_cluster(name).name for name in shipped_clusters()} == {
        n: n for n in ("cpu", "gpu", "gpu-container")
    }
    with pytest.raises(UserError, match=r"neither a file nor one of .*did you mean 'cpu'"):
        load_cluster("cpuu")


def test_a_layout_that_does_not_fit_is_refused_with_one_that_does() -> None:
    config = load_recipe("llada-8b", ["parallel.tensor=1", "parallel.sequence=false", "data.path=x"])
    cluster = load_cluster("gpu").model_copy(update={"device": "h100"})
    with pytest.raises(UserError, match=r"needs about .*B a rank, h100 has 80 GB: take "):
        check_memory(config, cluster, 8)
    assert check_memory(config, ClusterConfig(name="cpu", gpus="none"), 8)["world"] == 8


def test_no_room_for_two_checkpoints(tmp_path: Path) -> None:
    check_room(tmp_path / "not/there/yet", 1000.0)
    with pytest.raises(PreflightError, match="two checkpoints take 2 EB: free some room"):
        check_room(tmp_path / "run", 1e18)


def test_setup_lines_that_are_no_whole_commands() -> None:
    check_syntax("echo a")
    with pytest.raises(UserError, match="the setup lines of the cluster file are no whole shell commands"):
        check_syntax("if true; then\n")


def test_a_dry_run_prints_the_script_writes_nothing_and_shows_no_secret(small_recipe: Path, tmp_path: Path) -> None:
    options = ["--nodes", "1", "--gpus-per-node", "2", "--cluster", "cpu", "--run", tmp_path / "run", "--dry-run"]
    secret = ["tracking.enabled=true", "tracking.uri=http://me:hunter2@mlflow.example/?token=hunter2"]
    result = lacuna("submit", small_recipe, *options, *secret)
    script = succeeded(result)
    assert script.startswith("#!/bin/bash\n# 1 node(s) with 2 rank(s) each: megatron dp2 zero1\n")
    assert "launch.slurm.show" in script
    assert "hunter2" not in script + result.stderr
    assert list(tmp_path.iterdir()) == []
    assert "--time 1 is not longer than the 120 s" in refusal(lacuna("submit", small_recipe, *options, "--time", "1"))
    assert "--time: time: String should match" in refusal(lacuna("submit", small_recipe, *options, "--time", "1;ls"))
    assert "Slurm cannot work with" in refusal(lacuna("submit", small_recipe, *options[:-2], "a%jb", "--dry-run"))
