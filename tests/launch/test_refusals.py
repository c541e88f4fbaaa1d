"""Bad input is refused before anything starts, in one line, and nothing on disk is changed."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.command_line import contents, refusal, succeeded
from tests.support.damage import truncate

Here = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("processes", "overrides", "line"),
    [
        (1, ["train.stepz=3"], "unknown key 'train.stepz' (did you mean 'train.steps'?)"),
        (1, ["data.path=/no/where"], "/no/where does not exist: give a directory that `lacuna data build` made"),
        (1, ["data.path=~/no-where"], "no-where does not exist"),
        (1, ["data.path="], "data.path and data.mixture: neither of them set"),
        (1, ["train.sequence_length=100000"], "less than one sample of 100000: lower train.sequence_length"),
        (1, ["model.vocabulary=200"], "model.vocabulary=200 is less than the tokenizer's 300 ids"),
        (2, ["parallel.tensor=3"], "parallel.tensor=3 does not divide the world of 2 processes: set parallel.tensor=1"),
        (2, ["parallel.tensor=2"], "parallel.tensor=2 does not divide model.heads=3: set parallel.tensor=1"),
        (1, ["model.heads=5"], "heads: 5 do not divide width 24"),
        (1, ["model.kv_heads=2"], "kv_heads: 2 do not divide 3 heads: use "),
        (3, [], "train.global_batch=8 is not a multiple of 3 data-parallel ranks × train.micro_batch=4: "),
        (
            1,
            ["train.micro_batch=3"],
            "train.micro_batch=3 does not divide train.global_batch=8: set train.micro_batch=",
        ),
        (
            1,
            ["parallel.engine=megatron", "parallel.zero=3"],
            "parallel.zero=3 is not offered by parallel.engine=megatron",
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_new_run_that_cannot_be(
    here: Here, recipe: Path, tmp_path: Path, processes: int, overrides: list[str], line: str, dry_run: bool
) -> None:
    options = ["--run", tmp_path / "run", "--processes", str(processes), *(["--dry-run"] if dry_run else [])]
    assert line in refusal(here("train", recipe, *options, *overrides))
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_recipe(here: Here, tmp_path: Path) -> None:
    assert "(did you mean 'demo'?)" in refusal(here("train", "dmeo", "--run", tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.width=48"], "step-00000004 is a checkpoint of another model or run (model.width is 24, here 48): "),
        (["train.seed=2"], "step-00000004 is a checkpoint of another model or run (train.seed is 1, here 2): "),
        (["objective.kind=autoregressive"], "(objective.kind is 'masked', here 'autoregressive')"),
        (["train.global_batch=16"], "(train.global_batch is 8, here 16)"),
        (["train.steps=3"], "step-00000004 is past train.steps=3: raise train.steps"),
    ],
)
def test_a_run_is_not_continued_as_another(
    here: Here, recipe: Path, run: Path, overrides: list[str], line: str
) -> None:
    before = contents(run)
    assert line in refusal(here("train", recipe, "--run", run, *overrides))
    assert contents(run) == before


@pytest.mark.parametrize("damage", ["torn", "gone", "edited"])
def test_a_damaged_manifest_names_the_way_out(here: Here, recipe: Path, run: Path, damage: str) -> None:
    manifest = run / "checkpoints/step-00000004/MANIFEST.json"
    if damage == "torn":
        truncate(manifest, seed=1)
    elif damage == "gone":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"step": 4', '"step": 2'))
    before = contents(run)
    line = refusal(here("train", recipe, "--run", run))
    assert line.startswith(str(manifest))
    assert line.endswith("step-00000002: --fallback continues from it")
    assert contents(run) == before


def test_a_missing_a_short_and_a_foreign_file_of_the_data(
    here: Here, damaged_recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    def line() -> str:
        return refusal(here("train", damaged_recipe, "--run", tmp_path / "run"))

    shard = dataset / "train-00001.arrow"
    whole = shard.read_bytes()
    shard.unlink()
    assert line().startswith(f"{shard} cannot be read (No such file or directory)")
    shard.write_bytes(whole[:-1])
    assert line().startswith(f"{shard} is {len(whole) - 1} bytes long, not {len(whole)}")
    shard.write_bytes(whole)
    tokenizer = dataset / "tokenizer.model"
    model = tokenizer.read_bytes()
    tokenizer.write_bytes(model + b"\0")
    assert line().startswith(f"{tokenizer} is a tokenizer that is not the shards' own: restore the file")
    tokenizer.write_bytes(model)
    manifest = dataset / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"words"', '"sword"', 1))
    assert line().startswith(f"{manifest} was edited or damaged")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"name": "tiny"}', '{"attempts": 3}'])
def test_a_broken_run_file_is_named(here: Here, recipe: Path, run: Path, content: str) -> None:
    (run / "run.json").write_text(content)
    before = contents(run)
    assert refusal(here("train", recipe, "--run", run)).startswith(str(run / "run.json"))
    assert contents(run) == before


def test_a_place_where_no_run_can_be(here: Here, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        assert f"{place} cannot be written (" in refusal(here("train", recipe, "--run", place))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_dry_run_changes_nothing(here: Here, recipe: Path, run: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    plan = json.loads(succeeded(here("train", recipe, "--run", run, "--dry-run", "--json", "--processes", "2")))
    assert plan["run"] == str(run)
    assert plan["layout"] == "megatron dp2 zero1"
    assert contents(tmp_path) == before
