"""`lacuna study reversal` from invented verse to a page: real shards, real training, continued after a kill."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import Here
from tests.support.command_line import refusal, succeeded
from tests.support.verse import fortune_file, invented_couplets

SMALL = [
    "model.layers=1",
    "model.width=32",
    "model.heads=2",
    "model.kv_heads=2",
    "model.ffn=48",
    "train.global_batch=8",
    "train.micro_batch=8",
]


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("poems") / "verse"
    path.write_text(fortune_file(invented_couplets(12)))
    return path


def study(here: Here, poems: Path, out: Path, *more: str) -> dict[str, object]:
    asked = ["--steps", "6", "--points", "2", "--seeds", "1", "--processes", "2", "--json"]
    found = here("study", "reversal", *SMALL, "--out", out, "--poems", poems, *asked, *more)
    return dict(json.loads(succeeded(found)))


@pytest.mark.slow
def test_a_study_and_its_continuation(poems: Path, tmp_path: Path, here: Here) -> None:
    out = tmp_path / "study"
    planned = study(here, poems, out, "--dry-run")
    assert not out.exists()
    assert planned["exact"] is False
    told = study(here, poems, out)
    table = out / "reversal.csv"
    assert told == {"files": [str(out / name) for name in ("reversal.md", "reversal.png", "reversal.csv")]}
    with open(table) as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 2 * 2 * 2 * 2  # families, points, halves, directions
    assert {(row["couplets"], row["asked"]) for row in rows} == {("unseen", "6"), ("seen", "6")}
    manifest = json.loads((out / "data" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["documents"] == 12 + 12
    assert manifest["splits"]["train"]["tokens"] == 12 * 24  # a token a character, and EOS
    config = yaml.safe_load((out / "runs" / "masked-1" / "config.yaml").read_text())
    assert config["model"]["vocabulary"] == manifest["tokenizer"]["vocabulary"]
    assert config["data"]["packing"] == "document"

    killed = tmp_path / "killed"  # as it was after the first point of the masked run
    shutil.copytree(out, killed)
    run = killed / "runs" / "masked-1"
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    (run / "scores.json").write_text(json.dumps(json.loads((run / "scores.json").read_text())[:1]))
    order = json.loads((run / "order.json").read_text())
    assert order["asked_after"] == [3, 6]
    shutil.rmtree(out)  # the runs know their data by its place
    shutil.move(killed, out)
    table.unlink()
    study(here, poems, out)
    with open(table) as source:
        assert list(csv.DictReader(source)) == rows
    attempts = json.loads((out / "runs" / "masked-1" / "run.json").read_text())["attempts"]
    assert len(attempts) == 3

    other = here("study", "reversal", *SMALL, "--out", out, "--steps", "7", "--points", "2", "--seeds", "1")
    assert "was begun with other settings: use another --out" in refusal(other)


def test_poems_without_couplets_are_refused(tmp_path: Path, here: Here) -> None:
    (tmp_path / "prose").write_text("no verse at all\n%\n")
    result = here("study", "reversal", "--out", tmp_path / "out", "--poems", tmp_path / "prose")
    assert "the poems hold 0 couplets of 5 characters a line: give others" in refusal(result)
