"""`lacuna data audit`, changes of the data of a run, and damaged batches, on real runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader, TokenDataset
from pretrain.audit import _Walk
from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.session import build_objective
from pretrain.tracking.spool import read_metrics
from runtime.progress import ProgressBar
from runtime.settings import read_yaml
from tests.support.command_line import contents, lacuna, refusal, succeeded

Here = Callable[..., "CompletedProcess[str]"]


def audited(here: Here, run: Path, *options: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(succeeded(here("data", "audit", run, "--json", *options)))
    assert values["contradiction"] is None
    return values


def digests(run: Path) -> list[str]:
    return [line["data/batch_digest"] for line in read_metrics(run / "metrics.jsonl")]


def edited(run: Path, step: int, key: str, value: object) -> None:
    """Another value in a line of the metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    entry = json.loads(lines[step - 1])
    lines[step - 1] = json.dumps({**entry, key: value})
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_a_run_is_accounted_for(here: Here, run: Path, built: Path) -> None:
    windows = TokenDataset(built).windows(32)
    before = contents(run)
    values = audited(here, run)
    assert (values["steps"], values["samples"], values["steps_logged"], values["steps_read"]) == (4, 32, 4, 4)
    (source,) = values["sources"]
    assert source == {
        "path": str(built),
        "samples": 32,
        "windows": windows,
        "epochs": 32 / windows,
        "complete_epochs": 0,
        "quarantined": 0,
    }
    assert values["segments"] == [
        {"from_sample": 0, "to_sample": 32, "weights": {str(built): 1.0}, "samples": {str(built): 32}}
    ]
    assert audited(here, run, "--steps", "2")["steps_read"] == 2
    assert "32 samples of 4 steps, no window twice in an epoch; 4 batch digests of 4" in succeeded(
        here("data", "audit", run)
    )
    assert contents(run) == before


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("data/batch_digest", "0" * 32, f"step 3 is logged with batch digest {'0' * 32}, the plan gives "),
        ("tokens", 769, "step 3 is logged with 769 tokens, the plan gives 768"),
        ("data/quarantined", "17", "step 3 is logged with batch digest "),
        ("data/quarantined", "99", "sample 99 is said to be left out, and was never reached"),
    ],
)
def test_a_contradiction_is_named(here: Here, run: Path, key: str, value: object, line: str) -> None:
    edited(run, 3, key, value)
    assert refusal(here("data", "audit", run, "--json"), code=3).startswith(f"{run}: {line}")
    result = here("data", "audit", run, "--json")
    assert result.returncode == 3
    assert line in json.loads(result.stdout)["contradiction"]


def test_a_plan_that_is_not_the_runs_own(here: Here, run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("unique_tokens: null", "unique_tokens: 640"))
    line = refusal(here("data", "audit", run, "--json"), code=3)
    assert line == f"{run}: step-00000004 was trained on other data or weights than config.yaml says"


def test_what_cannot_be_audited(here: Here, run: Path, tmp_path: Path) -> None:
    assert "config.yaml cannot be read" in refusal(here("data", "audit", tmp_path))
    edited(run, 2, "data/quarantined", "1,x")
    assert "the line of step 2 lacks tokens, data/batch_digest" in refusal(here("data", "audit", run))
    (run / "metrics.jsonl").write_text("")
    assert "has no step yet" in refusal(here("data", "audit", run))


def test_a_window_that_a_past_epoch_lacks_is_named(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One window of epoch 0 is given in epoch 2 instead: no window comes twice, and counts are those of the weights."""
    copy = shutil.copytree(built, tmp_path / "copy")
    reader = SampleReader(DataConfig(mixture={str(built): 1, str(copy): 1}), 32, 1)
    samples = 2 * (2 * reader.windows[0] + reader.windows[0] // 2) // 1024 * 1024
    bar = ProgressBar("audit", 1, False)
    assert _Walk(reader, samples).contradiction(bar) is None
    sources, epochs, windows = (values.copy() for values in reader.places(0, samples))
    assert epochs.max() >= 2
    free = np.setdiff1d(windows[sources == 0], windows[(sources == 0) & (epochs == 2)])
    moved = np.flatnonzero((sources == 0) & (epochs == 0) & np.isin(windows, free))[0]
    epochs[moved] = 2
    monkeypatch.setattr(
        reader, "places", lambda begin, end: (sources[begin:end], epochs[begin:end], windows[begin:end])
    )
    count = reader.windows[0]
    expected = f"epoch 0 of {built} has {count - 1} windows, the plan gives {count}"
    assert _Walk(reader, samples).contradiction(bar) == expected


@pytest.mark.slow
def test_a_segment_added_to_a_run_that_is_continued(
    here: Here, recipe: Path, run: Path, built: Path, tmp_path: Path
) -> None:
    """The past may not be rewritten; the future may, and two ranks go on with it."""
    copy = shutil.copytree(built, tmp_path / "copy")

    def change(start: str) -> str:
        return f"data.segments=[{{{start}, mixture: {{{built}: 1, {copy}: 3}}}}]"

    before = contents(run)
    for start in ("from_step: 3", "from_sample: 31"):
        line = refusal(here("train", recipe, "--run", run, change(start)))
        assert "step-00000004 is a checkpoint of another run (data and weights of its samples differ)" in line
        assert line.endswith("data.segments with from_step=4 or later")
        assert contents(run) == before
    options = ["--run", run, "--processes", "2", change("from_sample: 43")]  # in the middle of a step
    succeeded(lacuna("train", recipe, *options))
    assert "data and weights of its samples differ" in refusal(here("train", recipe, "--run", run, "train.steps=9"))
    values = audited(here, run)
    first, second = values["segments"]
    assert (first["to_sample"], first["samples"]) == (43, {str(built): 43})
    assert (second["from_sample"], second["to_sample"]) == (43, 64)
    assert second["weights"] == {str(built): 1.0, str(copy): 3.0}
    assert sum(second["samples"].values()) == 21
    assert [s["samples"] for s in values["sources"]] == [
        43 + second["samples"][str(built)],
        second["samples"][str(copy)],
    ]


def test_sources_that_do_not_last_are_refused_before_anything_starts(here: Here, recipe: Path, tmp_path: Path) -> None:
    line = refusal(here("train", recipe, "--run", tmp_path / "run", "data.max_epochs=0.25", "train.steps=1000"))
    assert "data.max_epochs: no source is left after sample" in line
    assert list(tmp_path.iterdir()) == []


def damage(dataset: Path) -> tuple[Path, int]:
    """Flip a token in a batch; returns the shard and the batch."""
    shard = dataset / "train-00001.arrow"
    tokens = TokenDataset(dataset).shards[1].batch(2).tobytes()
    whole = shard.read_bytes()
    place = whole.index(tokens) + 100
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    return shard, 2


def undamaged_digests(run: Path, built: Path) -> list[str]:
    """What the batch digests of the run's steps would be."""
    config = RunConfig.parse(read_yaml(run / "config.yaml"), "config.yaml")
    reader = SampleReader(DataConfig(path=str(built)), 32, config.train.seed)
    feed = Feed(reader, build_objective(config, reader.manifests[0].tokenizer), 8, 8, 0, 1)
    return ["{:016x}{:016x}".format(*reversed(feed.step(step).digest)) for step in range(config.train.steps)]


@pytest.mark.slow
def test_a_damaged_batch_stops_the_run_or_is_left_out(
    here: Here, damaged_recipe: Path, dataset: Path, built: Path, tmp_path: Path
) -> None:
    whole = (dataset / "train-00001.arrow").read_bytes()
    shard, batch = damage(dataset)
    line = refusal(lacuna("train", damaged_recipe, "--run", tmp_path / "stopped"))
    assert line.startswith(f"{shard}: record batch {batch} is damaged (its digest does not fit)")
    run = tmp_path / "quarantined"
    quarantine = "data.on_corrupt=quarantine"
    result = lacuna("train", damaged_recipe, "--run", run, "--processes", "2", quarantine)
    succeeded(result)
    lines = read_metrics(run / "metrics.jsonl")
    left_out = [int(s) for line in lines for s in str(line.get("data/quarantined", "")).split(",") if s]
    assert left_out
    assert sum(line.get("data/quarantined_samples", 0) for line in lines) == len(left_out)
    touched = {sample // 8 for sample in left_out}
    pairs = enumerate(zip(undamaged_digests(run, built), digests(run), strict=True))
    assert {step for step, (a, b) in pairs if a != b} == touched  # no other sample moved
    values = audited(here, run)
    assert [place["sample"] for place in values["quarantined"]] == left_out
    assert values["sources"][0]["quarantined"] == len(left_out)
    assert values["sources"][0]["samples"] == 64
    shard.write_bytes(whole)
    assert audited(here, run) == values  # what was left out stays so, also where it could be read now
    log = [json.loads(entry)["message"] for entry in (run / "logs/0/rank-00000.jsonl").read_text().splitlines()]
    assert any(f"is left out, as are others of its batch: {shard}: record batch {batch}" in entry for entry in log)


def test_windows_are_packed_by_a_command(here: Here, recipe: Path, dataset: Path, tmp_path: Path) -> None:
    values = json.loads(succeeded(here("data", "pack", dataset, "--length", "32", "--json")))
    assert values["path"] == str(dataset / "best_fit-32.windows.json")
    assert values["splits"]["train"]["tokens"] == TokenDataset(dataset).tokens
    assert "% filled" in succeeded(here("data", "pack", dataset, "--length", "32", "--packing", "document"))
    succeeded(here("data", "verify", dataset))
    line = refusal(here("data", "pack", tmp_path / "nowhere", "--length", "32"))
    assert "does not exist" in line
