"""`lacuna checkpoint diff | reshard | export | import` on trained runs, as users call them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from tests.support.command_line import contents, lacuna, refusal, succeeded
from tests.support.damage import flip_bit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Here = Callable[..., "CompletedProcess[str]"]
NEWEST = "checkpoints/step-00000004"


def _json(result: "CompletedProcess[str]", code: int = 0) -> Any:
    assert result.returncode == code, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """Two steps of the autoregressive baseline on the same data."""
    run = tmp_path_factory.mktemp("baseline") / "run"
    succeeded(lacuna("train", recipe, "--run", run, "--until", "2", "objective.kind=autoregressive"))
    return run


def test_diff_tells_equal_from_different(here: Here, half_run: Path, tmp_path: Path) -> None:
    newest = half_run / NEWEST
    same = _json(here("checkpoint", "diff", half_run, newest, "--json"))
    assert (same["equal"], same["manifest"]) == (True, {})
    assert {tensor["state"] for tensor in same["tensors"]} == {"equal"}
    older = half_run / "checkpoints" / "step-00000002"
    differs = _json(here("checkpoint", "diff", older, newest, "--json"), code=1)
    assert not differs["equal"]
    assert differs["manifest"]["step"] == {"a": 2, "b": 4}
    relative = {tensor["name"]: tensor["relative"] for tensor in differs["tensors"] if tensor["kind"] == "weight"}
    assert 0 < relative["head"] < 1
    table = here("checkpoint", "diff", older, newest)
    assert table.returncode == 1
    assert "0 of 63 tensors are equal" in table.stdout
    assert here("checkpoint", "diff", older, newest, "--tolerance", "1000").returncode == 0
    assert "does not exist" in refusal(here("checkpoint", "diff", newest, tmp_path / "step-00000009"))
    assert "has no checkpoint" in refusal(here("checkpoint", "diff", newest, tmp_path / "none"))


def test_reshard_even_files(here: Here, half_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    would = _json(here("checkpoint", "reshard", half_run, "--out", out, "--files", "3", "--dry-run", "--json"))
    assert (would["files"], would["dry_run"]) == (3, True)
    assert not out.exists()
    done = _json(here("checkpoint", "reshard", half_run, "--out", out, "--files", "3", "--json"))
    assert done == would | {"dry_run": False}
    assert max(done["file_bytes"]) - min(done["file_bytes"]) <= 4
    assert done["path"] == str(out / "step-00000004")
    assert _json(here("checkpoint", "verify", done["path"], "--json"))["files"] == 3
    assert _json(here("checkpoint", "diff", half_run, out, "--json"))["equal"]
    assert "exists already" in refusal(here("checkpoint", "reshard", half_run, "--out", out, "--files", "2"))
    wrong = tmp_path / "step-00000005"
    assert "use step-00000004" in refusal(here("checkpoint", "reshard", half_run, "--out", wrong, "--files", "2"))


def test_a_run_goes_on_from_files_of_another_layout(half_run: Path, run: Path, recipe: Path, tmp_path: Path) -> None:
    """A file a rank: two pipeline stages of two data ranks. The next steps are those of the run itself."""
    shutil.rmtree(run / NEWEST)
    layout = ["--layout", "pipeline=2", "processes=4"]
    succeeded(lacuna("checkpoint", "reshard", half_run, "--out", run / "checkpoints", *layout))
    assert len(list((run / NEWEST).glob("*.safetensors"))) == 4
    whole = Path(shutil.copytree(half_run, tmp_path / "whole"))
    for directory in (run, whole):
        succeeded(lacuna("train", recipe, "--run", directory))
    last = [directory / "checkpoints" / "step-00000008" for directory in (run, whole)]
    assert _json(lacuna("checkpoint", "diff", *last, "--json"))["equal"]


def test_reshard_names_what_is_wrong(here: Here, half_run: Path, tmp_path: Path) -> None:
    def refused(*options: str) -> str:
        line = refusal(here("checkpoint", "reshard", half_run, "--out", tmp_path / "out", *options))
        assert not (tmp_path / "out").exists()
        return line

    assert "give one of --files N and --layout" in refused()
    assert "give one of --files N and --layout" in refused("--files", "2", "--layout", "tensor=3")
    assert "is more than the checkpoint's" in refused("--files", "99999999")
    assert "'tensor' is not key=value" in refused("--layout", "tensor")
    assert "unknown key 'tensr' (did you mean 'tensor'?)" in refused("--layout", "tensr=3")
    assert "processes='x' is no number" in refused("--layout", "tensor=3", "processes=x")
    assert "parallel.tensor=2 does not divide model.heads=3" in refused("--layout", "tensor=2")
    assert "does not divide the world of 4" in refused("--layout", "tensor=3,processes=4")


def test_list_and_verify_of_a_run(here: Here, run: Path) -> None:
    verified = _json(here("checkpoint", "verify", run, "--json"))
    assert verified["valid"]
    assert [entry["step"] for entry in verified["checkpoints"]] == [2, 4]
    assert "2 checkpoints" in succeeded(here("checkpoint", "verify", run / "checkpoints"))
    shard = run / NEWEST / "shard-00000.safetensors"
    flip_bit(shard, seed=2)
    quick = _json(here("checkpoint", "list", run, "--quick", "--json"))
    assert [entry["valid"] for entry in quick] == [True, True]  # a flipped bit changes no length
    damaged = here("checkpoint", "verify", run, "--json")
    assert [entry["valid"] for entry in _json(damaged, code=2)["checkpoints"]] == [True, False]
    assert str(shard) in refusal(damaged)
    shard.write_bytes(shard.read_bytes()[:-1])
    quick = _json(here("checkpoint", "list", run, "--quick", "--json"))
    assert [entry["valid"] for entry in quick] == [True, False]
    assert str(shard) in quick[1]["fault"]


def test_prune_leaves_what_the_run_keeps_for_ever(here: Here, run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("permanent_every: null", "permanent_every: 2"))
    assert "permanent_every: 2" in config.read_text()
    assert _json(here("checkpoint", "prune", run, "--keep", "1", "--json"))["removed"] == []
    config.write_text(config.read_text().replace("permanent_every: 2", "permanent_every: 4"))
    removed = _json(here("checkpoint", "prune", run, "--keep", "1", "--json"))["removed"]
    assert removed == [str(run / "checkpoints" / "step-00000002")]


def test_verify_of_a_run_without_checkpoints(here: Here, tmp_path: Path) -> None:
    assert "has no checkpoints" in refusal(here("checkpoint", "verify", tmp_path))


def test_the_baseline_is_read_by_transformers(here: Here, baseline: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inference.trained_model import load_trained

    out = tmp_path / "hf"
    would = _json(here("checkpoint", "export", baseline, "--out", out, "--dry-run", "--json"))
    assert (would["format"], would["tensors"], would["dry_run"]) == ("llama", 21, True)
    assert not out.exists()
    options = ["--shard-bytes", "30000", "--format", "llama"]
    assert _json(here("checkpoint", "export", baseline, "--out", out, *options, "--json"))["shards"] > 1
    ours, theirs = load_trained(baseline), AutoModelForCausalLM.from_pretrained(out)
    text = "the sea fills every lacuna\n"
    ids = AutoTokenizer.from_pretrained(out)(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [ours.tokenizer.bos_id, *ours.tokenizer.encode(text)]
    with torch.no_grad():
        assert (theirs(ids).logits - ours.predict(ids)).abs().max() <= 1e-5


def test_export_and_import_return_every_bit_and_training_goes_on(
    here: Here, half_run: Path, recipe: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "hf", tmp_path / "run"
    succeeded(here("checkpoint", "export", half_run, "--out", out))
    assert json.loads((out / "config.json").read_text())["model_type"] == "llada"
    arguments = ["checkpoint", "import", out, "--recipe", recipe, "--run", run]
    would = _json(here(*arguments, "--dry-run", "--json"))
    assert would["tokenizer_compared"]
    assert not run.exists()
    assert "wrote" in succeeded(here(*arguments))
    found = _json(here("checkpoint", "diff", half_run, run, "--json"), code=1)
    assert {t["state"] for t in found["tensors"] if t["kind"] == "weight"} == {"equal"}
    assert {t["state"] for t in found["tensors"] if t["kind"] != "weight"} == {"different"}
    succeeded(here("evaluate", run, "--windows", "2", "--draws", "2"))
    assert "has step-00000000 already" in refusal(here(*arguments))
    before = contents(run / "checkpoints")
    succeeded(lacuna("train", recipe, "--run", run, "--until", "2"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    fresh = [json.loads(line) for line in (half_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["data/batch_digest"] == fresh[0]["data/batch_digest"]
    assert lines[0]["train/loss"] < fresh[0]["train/loss"]  # four steps of training are in the weights
    assert before.items() <= contents(run / "checkpoints").items()


def test_the_baseline_becomes_a_masked_model(here: Here, baseline: Path, recipe: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "hf", tmp_path / "run"
    succeeded(here("checkpoint", "export", baseline, "--out", out))
    succeeded(here("checkpoint", "import", out, "--recipe", recipe, "--run", run))
    succeeded(lacuna("train", recipe, "--run", run, "--until", "1"))
    assert json.loads((run / "metrics.jsonl").read_text())["step"] == 1
    longer = ["model.vocabulary=304", "--new-rows", "mean"]
    noted = succeeded(here("checkpoint", "import", out, "--recipe", recipe, "--run", tmp_path / "more", *longer))
    assert "4 new rows of the embedding and the head begin as the mean of the others" in noted


def test_export_and_import_name_what_is_wrong(here: Here, half_run: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    export = ["checkpoint", "export", half_run, "--out", out]
    assert "use --format llada" in refusal(here(*export, "--format", "llama"))
    alone = Path(shutil.copytree(half_run / NEWEST, tmp_path / "elsewhere" / "step-00000004"))
    assert "give it with --tokenizer" in refusal(here("checkpoint", "export", alone, "--out", out))
    assert not out.exists()
    succeeded(here(*export))
    assert "exists already" in refusal(here(*export))
    back = ["checkpoint", "import", out, "--recipe", recipe, "--run", tmp_path / "run"]
    assert "set model.layers=2" in refusal(here(*back, "model.layers=3"))
    assert "is no directory" in refusal(here("checkpoint", "import", tmp_path / "none", *back[3:]))
    assert not (tmp_path / "run").exists()
