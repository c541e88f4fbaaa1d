"""Damaged checkpoints: never a silent start from scratch, never a silent step back, and nothing is ever removed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from parallel.checkpoint.manifest import content_digest
from pretrain.tracking.spool import read_metrics
from tests.support.command_line import contents, lacuna, refusal, succeeded
from tests.support.damage import flip_bit, truncate

Here = Callable[..., "CompletedProcess[str]"]
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit in the shard": lambda step: flip_bit(step / "shard-00000.safetensors", 1),
    "a cut shard": lambda step: truncate(step / "shard-00000.safetensors", 1),
    "an empty shard": lambda step: (step / "shard-00000.safetensors").write_bytes(b""),
    "a lost shard": lambda step: (step / "shard-00000.safetensors").unlink(),
    "a flipped bit in the manifest": lambda step: flip_bit(step / "MANIFEST.json", 1),
    "a lost manifest": lambda step: (step / "MANIFEST.json").unlink(),
    "an empty directory": lambda step: [path.unlink() for path in step.iterdir()],
}


def checkpoint(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:08d}"


def here_and_aside(run: Path) -> tuple[list[str], list[str]]:
    """Names of the checkpoints, and of those set aside with their shelf."""
    root = run / "checkpoints"
    aside = sorted(str(path.relative_to(root)) for path in root.glob("set-aside-*/*"))
    return sorted(path.name for path in root.glob("step-*")), aside


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_passed_over_only_on_request(here: Here, recipe: Path, run: Path, damage: str) -> None:
    DAMAGES[damage](checkpoint(run, 4))
    before = contents(run)
    line = refusal(here("train", recipe, "--run", run, "--allow-fresh"))  # looks at every byte
    assert str(checkpoint(run, 4)) in line
    assert f"the newest valid one is {checkpoint(run, 2)}: --fallback continues from it" in line
    succeeded(here("train", recipe, "--run", run, "--fallback", "--dry-run"))
    assert contents(run) == before
    succeeded(here("train", recipe, "--run", run, "--fallback", "--prepare"))
    assert here_and_aside(run) == (["step-00000002"], ["set-aside-0/step-00000004"])
    assert (run / "checkpoints/LATEST").read_text() == "step-00000002\n"
    kept = contents(run / "checkpoints/set-aside-0/step-00000004")
    assert kept == {p.rpartition("/")[2]: d for p, d in before.items() if "step-00000004/" in p}


def test_none_is_valid(here: Here, recipe: Path, run: Path) -> None:
    flip_bit(checkpoint(run, 2) / "shard-00000.safetensors", 1)
    checkpoint(run, 4).joinpath("MANIFEST.json").unlink()
    before = contents(run)
    for options in ([], ["--fallback"], ["--dry-run"]):
        line = refusal(here("train", recipe, "--run", run, *options))
        assert str(checkpoint(run, 4)) in line
        assert "no other valid one: restore one, or --allow-fresh sets all aside and starts from step 0" in line
    assert contents(run) == before
    succeeded(lacuna("train", recipe, "--run", run, "--allow-fresh", "--until", "2"))
    assert here_and_aside(run) == (["step-00000002"], ["set-aside-0/step-00000002", "set-aside-0/step-00000004"])
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]


def test_only_the_newest_is_there_and_its_values_are_damaged(recipe: Path, run: Path, tmp_path: Path) -> None:
    """The ranks find it while they load; two of them say one thing."""
    checkpoint(run, 2).rename(tmp_path / "away")
    shard = checkpoint(run, 4) / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    before = contents(run / "checkpoints")
    line = refusal(lacuna("train", recipe, "--run", run, "--processes", "2"))
    assert line.startswith(f"{shard} does not match its digest")
    assert line.endswith("no other valid one: restore one, or --allow-fresh sets all aside and starts from step 0")
    assert contents(run / "checkpoints") == before


def test_choices_change_nothing_where_nothing_is_damaged(here: Here, recipe: Path, run: Path) -> None:
    before = contents(run / "checkpoints")
    for options in (["--fallback"], ["--allow-fresh"], ["--fallback", "--allow-fresh"]):
        succeeded(here("train", recipe, "--run", run, *options, "--prepare"))
    assert contents(run / "checkpoints") == before


def test_choices_for_a_run_that_is_not_there_yet(here: Here, recipe: Path, tmp_path: Path) -> None:
    succeeded(here("train", recipe, "--run", tmp_path / "run", "--fallback", "--allow-fresh", "--prepare"))
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize("options", [[], ["--fallback"], ["--allow-fresh"], ["--fallback", "--allow-fresh"]])
def test_a_checkpoint_of_another_format_is_not_a_damaged_one(
    here: Here, recipe: Path, run: Path, options: list[str]
) -> None:
    """It would be set aside, and the work in it with it."""
    path = checkpoint(run, 4) / "MANIFEST.json"
    values = {**json.loads(path.read_text()), "version": 99}
    del values["digest"]
    path.write_text(json.dumps({**values, "digest": content_digest(values)}))
    before = contents(run)
    line = refusal(here("train", recipe, "--run", run, *options))
    assert line.startswith(f"{path} has format version 99, this code reads ")
    assert line.endswith("use the code version that wrote it")
    assert contents(run) == before


def test_shelves_get_new_numbers(here: Here, recipe: Path, run: Path) -> None:
    """Also if a person has removed the first, or put something else there."""
    root = run / "checkpoints"
    for name in ("set-aside-3", "set-aside-notes"):
        (root / name).mkdir()
    flip_bit(checkpoint(run, 4) / "shard-00000.safetensors", 1)
    succeeded(here("train", recipe, "--run", run, "--fallback", "--prepare"))
    assert here_and_aside(run)[1] == ["set-aside-4/step-00000004"]
    succeeded(here("train", recipe, "--run", run, "--prepare"))
    assert sorted(os.listdir(root)) == ["LATEST", "set-aside-3", "set-aside-4", "set-aside-notes", "step-00000002"]


@pytest.mark.parametrize("step", ["step-x", "", "step-", "-1", "٤", "step-4/../../x"])
def test_going_back_to_what_is_no_step(here: Here, recipe: Path, run: Path, step: str) -> None:
    before = contents(run)
    assert "is not step-N: see `lacuna checkpoint list" in refusal(
        here("train", recipe, "--run", run, "--resume-from", step)
    )
    assert contents(run) == before


def test_going_back(here: Here, recipe: Path, run: Path) -> None:
    before = contents(run)
    line = refusal(here("train", recipe, "--run", run, "--resume-from", "step-3"))
    assert "step-00000003 does not exist: see `lacuna checkpoint list" in line
    succeeded(here("train", recipe, "--run", run, "--resume-from", "step-2", "--dry-run"))
    assert contents(run) == before
    succeeded(here("train", recipe, "--run", run, "--resume-from", "step-2", "--prepare"))
    assert here_and_aside(run) == (["step-00000002"], ["set-aside-0/step-00000004"])
