"""Segments, caps and their refusals, on datasets."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from runtime.errors import UserError

LENGTH = 64


@pytest.fixture(scope="module")
def paths(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets; the windows of the second are those of the first."""
    return str(built), str(shutil.copytree(built, tmp_path_factory.mktemp("other") / "copy"))


def reader(values: dict[str, Any], global_batch: int | None = 8) -> SampleReader:
    return SampleReader(DataConfig.parse(values, "recipe.yaml"), LENGTH, 3, global_batch=global_batch)


def test_sources_come_and_go(paths: tuple[str, str]) -> None:
    a, b = paths
    segments = [{"from_step": 100, "mixture": {a: 1, b: 3}}, {"from_sample": 2000, "mixture": {b: 1}}]
    found = reader({"path": a, "segments": segments})
    places = [found.locate(i) for i in range(2200)]
    assert {name for name, _, _ in places[:800]} == {a}
    assert abs(Counter(name for name, _, _ in places[800:1824])[b] - 768) <= 1
    assert {name for name, _, _ in places[2000:]} == {b}
    for name in paths:  # epochs go on over the segments, each window once in each
        counts = Counter((epoch, window) for n, epoch, window in places if n == name)
        assert set(counts.values()) == {1}
    assert reader({"path": a}).digest_before(800) == found.digest_before(800) != found.digest_before(801)


def test_a_cap_gives_each_window_that_often(paths: tuple[str, str]) -> None:
    a, b = paths
    found = reader({"mixture": {a: 5, b: 1}, "max_epochs": {a: 2}})
    windows = found.windows[0]
    counts = Counter(window for name, _, window in map(found.locate, range(6 * windows)) if name == a)
    assert counts == dict.fromkeys(range(windows), 2)
    half = reader({"path": a, "max_epochs": 0.5})
    assert half.plan.end == windows // 2
    half.require(windows // 2)
    with pytest.raises(UserError, match=rf"no source is left after sample {windows // 2}, the run takes 99999"):
        half.require(99999)
    with pytest.raises(UserError, match="no source is left"):
        half.tokens(windows // 2)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"max_epochs": 0}, "data.max_epochs: 0.0 is no number of epochs: give one above 0"),
        ({"max_epochs": {"A": -1.0}}, "data.max_epochs: -1.0 is no number of epochs"),
        ({"max_epochs": {"elsewhere": 1}}, "data.max_epochs: 'elsewhere' is no source of the run"),
        ({"max_epochs": 1e-9}, "data.max_epochs: 1e-09 epochs of A are less than a sample: raise it"),
        ({"max_epochs": True}, "max_epochs is true, give a number"),
        (
            {"segments": [{"from_step": 1, "from_sample": 2, "mixture": {"A": 1}}]},
            "exactly one of from_step and from_s",
        ),
        ({"segments": [{"mixture": {"A": 1}}]}, "exactly one of from_step and from_sample"),
        ({"segments": [{"from_step": 0, "mixture": {"A": 1}}]}, "segments.0.from_step: Input should be greater than 0"),
        ({"segments": [{"from_step": 1, "mixture": {}}]}, "segments.0.mixture: Dictionary should have at least 1 item"),
        ({"segments": [{"from_step": 1, "mixture": {"A": 0}}]}, "data.segments.0.mixture: the weight of 'A' is 0.0"),
        (
            {"segments": [{"from_step": 2, "mixture": {"A": 1}}, {"from_sample": 16, "mixture": {"A": 1}}]},
            "data.segments.1: begins at sample 16, not after 16: put them in order",
        ),
        ({"segments": [{"from_step": 2, "mixture": {"/no/where": 1}}]}, "/no/where does not exist"),
        ({"segments": [{"from_step": 2, "mixtur": {"A": 1}}]}, "unknown key 'segments.0.mixtur'"),
        ({"segments": [{"from_step": 2, "mixture": {"A": 1}}], "unique_tokens": 999}, "unique_tokens is for a single"),
        ({"packing": "best-fit"}, "packing: Input should be 'stream', 'document' or 'best_fit'"),
        ({"on_corrupt": "skip"}, "on_corrupt: Input should be 'stop' or 'quarantine'"),
    ],
)
def test_refusals(paths: tuple[str, str], values: dict[str, Any], line: str) -> None:
    def real(value: Any) -> Any:
        if isinstance(value, dict):
            return {paths[0] if key == "A" else key: real(below) for key, below in value.items()}
        return [real(below) for below in value] if isinstance(value, list) else value

    with pytest.raises(UserError) as refusal:
        reader({"path": paths[0], **real(values)})
    assert line in str(refusal.value).replace(paths[0], "A")


def test_a_step_needs_a_run_with_steps(paths: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="from_step needs a run with steps: use from_sample"):
        reader({"path": paths[0], "segments": [{"from_step": 2, "mixture": {paths[1]: 1}}]}, None)


def test_paths_change_everywhere(paths: tuple[str, str]) -> None:
    values = {"mixture": {"a": 1}, "max_epochs": {"b": 2}, "segments": [{"from_step": 2, "mixture": {"b": 1}}]}
    changed = DataConfig.parse(values, "x").with_paths(lambda path: f"/data/{path}")
    assert changed.paths() == ["/data/a", "/data/b"]
    assert changed.cap_of("/data/b") == 2
    assert DataConfig.parse(changed.model_dump(), "x") == changed
