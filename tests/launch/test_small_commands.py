"""Commands that look at data, checkpoints and trained runs: they end with 0 and `--json` is one JSON value."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from data_pipeline.manifest import DatasetManifest
from launch.commands.data import _print_summary
from tests.support.command_line import contents, refusal, succeeded
from tests.support.damage import flip_bit

Here = Callable[..., "CompletedProcess[str]"]
STEPS = ["step-00000002", "step-00000004"]


def _one(result: "CompletedProcess[str]") -> Any:
    """The JSON value that alone stands on standard output, with nothing on the other stream."""
    text = succeeded(result)
    assert text.count("\n") == 1
    assert result.stderr == ""
    return json.loads(text)


def test_data_build_verify_stats(here: Here, build_file: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert _one(here("data", "build", "--config", build_file, "--out", out, "--dry-run", "--json"))["seed"] == 0
    assert not out.exists()
    report = _one(here("data", "build", "--config", build_file, "--out", out, "--json"))
    assert contents(out) == contents(built)
    verified = _one(here("data", "verify", out, "--json"))
    assert verified == {"path": str(out), "valid": True, "problems": []}
    assert "every digest matches" in succeeded(here("data", "verify", out))
    stats = _one(here("data", "stats", out, "--json"))
    assert stats["splits"]["train"]["tokens"] == report["splits"]["train"]["tokens"]
    assert stats["documents"] == 200
    assert "words" in succeeded(here("data", "stats", out))
    assert refusal(here("data", "build", "--config", build_file, "--out", out)).startswith(f"{out} exists already")


def test_data_append_merge_split_and_tokenizer_evaluate(
    here: Here, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "words of another source"}\n{broken\n{"txt": "a"}\n')
    source = {"kind": "jsonl", "name": "more", "licence": "MIT", "glob": str(tmp_path / "more.jsonl")}
    batch = json.loads((dataset / "manifest.json").read_text())["batch_tokens"]
    config = {"sources": [source], "tokenizer": {"kind": "existing", "path": str(dataset)}, "batch_tokens": batch}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(config))
    before = _one(here("data", "stats", dataset, "--json"))["documents"]
    report = _one(here("data", "append", dataset, "--config", tmp_path / "more.yaml", "--json"))
    assert report["sources"]["more"] == {"documents": 1, "undecodable": 1, "without_text": 1}
    _print_summary(dataset, DatasetManifest.load(dataset), json=False)
    assert capfd.readouterr().out.splitlines()[-1] == "more: documents 1, undecodable 1, without text 1"
    stats = _one(here("data", "stats", dataset, "--plot", tmp_path / "lengths.png", "--json"))
    assert stats["documents"] == before + 1
    assert (tmp_path / "lengths.png").stat().st_size > 1000
    assert _one(here("data", "split", dataset, "--out", tmp_path / "apart", "--json"))["path"] == str(
        tmp_path / "apart"
    )
    parts = sorted((tmp_path / "apart").iterdir())
    merged = _one(here("data", "merge", *parts, "--out", tmp_path / "joined", "--json"))
    assert merged["splits"]["train"]["tokens"] == stats["splits"]["train"]["tokens"]
    found = _one(here("tokenizer", "evaluate", dataset, "--documents", "5", "--json"))
    assert (found["not_exact"], found["sources"]["more"]["documents"]) == (0, 1)
    assert "bytes per token" in succeeded(here("tokenizer", "evaluate", dataset, "--documents", "5"))


def test_data_verify_names_the_bad_shard(here: Here, dataset: Path) -> None:
    flip_bit(dataset / "train-00000.arrow", seed=1)
    result = here("data", "verify", dataset, "--json")
    assert json.loads(result.stdout)["valid"] is False
    assert "train-00000.arrow" in refusal(result)


def test_checkpoint_list_and_verify(here: Here, run: Path) -> None:
    listed = _one(here("checkpoint", "list", run, "--json"))
    paths = [run / "checkpoints" / name for name in STEPS]
    assert [(e["step"], e["path"], e["valid"]) for e in listed] == [(2, str(paths[0]), True), (4, str(paths[1]), True)]
    assert "valid" in succeeded(here("checkpoint", "list", run / "checkpoints"))
    assert _one(here("checkpoint", "verify", paths[1], "--json"))["step"] == 4
    shard = paths[1] / "shard-00000.safetensors"
    flip_bit(shard, seed=2)
    assert refusal(here("checkpoint", "verify", paths[1], "--json")).startswith(f"{shard} does not match its digest")
    assert [entry["valid"] for entry in _one(here("checkpoint", "list", run, "--json"))] == [True, False]


def test_checkpoint_prune(here: Here, run: Path) -> None:
    before = contents(run)
    older = str(run / "checkpoints" / STEPS[0])
    would = _one(here("checkpoint", "prune", run, "--keep", "1", "--dry-run", "--json"))
    assert would == {"removed": [older], "dry_run": True}
    assert contents(run) == before
    shutil.copytree(run, run.with_name("damaged"))
    flip_bit(run.with_name("damaged") / "checkpoints" / STEPS[1] / "shard-00000.safetensors", seed=3)
    assert "does not match its digest" in refusal(here("checkpoint", "prune", run.with_name("damaged"), "--keep", "1"))
    assert (run.with_name("damaged") / "checkpoints" / STEPS[0]).is_dir()  # the only good one stays
    assert _one(here("checkpoint", "prune", run, "--keep", "1", "--json"))["removed"] == [older]
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == STEPS[1:]


@pytest.mark.parametrize("command", [["list"], ["verify"], ["prune", "--keep", "1"]])
def test_checkpoint_commands_name_a_missing_place(here: Here, tmp_path: Path, command: list[str]) -> None:
    assert str(tmp_path / "none") in refusal(here("checkpoint", command[0], tmp_path / "none", *command[1:]))


def test_config_show_validate_schema(here: Here, recipe: Path) -> None:
    shown = _one(here("config", "show", recipe, "train.steps=9", "--json"))
    assert shown["train"]["steps"] == 9
    assert yaml.safe_load(succeeded(here("config", "show", recipe, "train.steps=9"))) == shown
    assert "is valid: " in succeeded(here("config", "validate", recipe))
    assert "unknown key" in refusal(here("config", "validate", recipe, "train.stepz=9"))
    schema = _one(here("config", "schema"))
    assert set(schema["properties"]) == set(shown)


def test_sample(here: Here, half_run: Path) -> None:
    options = ["--prompt", "the sea", "--length", "8", "--seed", "3"]
    sampled = _one(here("sample", half_run, *options, "--json"))
    assert sampled["forwards"] == 8
    assert len(sampled["revealed_at"]) == 8
    assert _one(here("sample", half_run, *options, "--json")) == sampled
    assert _one(here("sample", half_run / "checkpoints" / STEPS[1], *options, "--json")) == sampled
    assert len(succeeded(here("sample", half_run, *options, "--frames", "3")).splitlines()) >= 3


def test_evaluate(here: Here, half_run: Path) -> None:
    options = ["--windows", "4", "--draws", "4"]
    score = _one(here("evaluate", half_run, *options, "--json"))
    assert (score["kind"], score["windows"], score["tokens"], score["draws"]) == ("upper bound", 4, 128, 4)
    assert 1 < score["bits_per_byte"] < 20
    assert "bits per byte (upper bound, 4 windows, 4 draws each)" in succeeded(here("evaluate", half_run, *options))


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_without_a_sound_checkpoint_nothing_is_guessed(here: Here, command: str, run: Path, tmp_path: Path) -> None:
    assert "has no checkpoint" in refusal(here(command, tmp_path / "none"))
    shard = run / "checkpoints" / STEPS[1] / "shard-00000.safetensors"
    flip_bit(shard, seed=4)
    assert refusal(here(command, run)).startswith(str(shard))
