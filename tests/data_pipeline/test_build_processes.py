"""The same bytes from any number of processes, from any cut of the work, and after kills."""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build import Means, build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.manifest import DatasetManifest
from runtime.errors import UserError
from tests.prove.build import (
    configuration,
    contents,
    everything,
    finish,
    finished_units,
    kill_and_repeat,
    leftovers,
    prove,
    start,
)

Whole = tuple[dict[str, Any], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A configuration with every stage and tables, and its build in this process, in one part."""
    work = tmp_path_factory.mktemp("whole")
    config = everything(work)
    build_dataset(BuildConfig.parse(config, "build"), work / "out", means=Means(processes=1, show_progress=False))
    return config, work / "out"


def test_every_stage_has_something_to_do(whole: Whole) -> None:
    prose = DatasetManifest.load(whole[1]).sources[1]
    assert (prose.duplicates, prose.near_duplicates) == (24, 24)
    assert prose.filtered == {"contaminated": 10}
    assert prose.documents == 480 - 24 - 24 - 10


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_change_nothing(whole: Whole, tmp_path: Path, processes: int) -> None:
    config, built = whole
    finish(start(config, tmp_path / "out", processes))
    assert contents(tmp_path / "out") == contents(built)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("part_bytes", [1, 10_000])
def test_the_cut_of_the_work_changes_nothing(tmp_path: Path, part_bytes: int) -> None:
    values = configuration()
    values["sources"][0]["max_bytes"] = 100_000
    config = BuildConfig.parse(values | {"tokenizer": {"kind": "train", "vocabulary": 450}}, "build")
    build_dataset(config, tmp_path / "whole", show_progress=False)
    means = Means(processes=1, part_bytes=part_bytes, show_progress=False)
    build_dataset(config, tmp_path / "parts", means=means)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_builds_go_on_where_they_were(tmp_path: Path) -> None:
    kills = list(prove(3, tmp_path, seed=3))
    assert all(kill.identical for kill in kills)
    assert not any(kill.workers_left for kill in kills)


def test_finished_units_are_not_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A build that stops in the middle of things leaves units, and the next one takes them."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    source = {"kind": "jsonl", "name": "a", "licence": "x", "glob": str(tmp_path / "a.jsonl")}
    config = BuildConfig.parse(configuration() | {"sources": [source]}, "build")
    for _ in range(2):
        with pytest.raises(UserError, match="does not fit the text"):
            build_dataset(config, tmp_path / "out")
    errors = capfd.readouterr().err
    assert errors.count("read: 1/1 found finished") == 1
    assert (tmp_path / ".out.building").is_dir()
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n')
    with pytest.raises(UserError, match="does not fit the text"):
        build_dataset(config, tmp_path / "out")
    assert "read: 1/1 found finished" not in capfd.readouterr().err


@pytest.mark.parametrize("place", ["data_pipeline.passes.workshop.remove_tree", "runtime.files.shutil.rmtree"])
def test_a_kill_when_all_is_published_but_the_work_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    class Killed(BaseException):
        pass

    def killed(path: Path, **_: bool) -> None:
        if ".building" in path.name:
            raise Killed

    config, out = BuildConfig.parse(configuration(), "build"), tmp_path / "out"
    with monkeypatch.context() as patches:
        patches.setattr(place, killed)
        with pytest.raises(Killed):
            build_dataset(config, out, show_progress=False)
    before = contents(out)
    other = BuildConfig.parse(configuration(shard_tokens=16_000), "build")
    with pytest.raises(UserError, match="exists already"):
        build_dataset(other, out, show_progress=False)
    assert leftovers(out)  # it may be another's
    assert build_dataset(config, out, show_progress=False) == DatasetManifest.load(out)
    assert contents(out) == before
    assert not leftovers(out)
    with pytest.raises(UserError, match="exists already"):
        build_dataset(config, out, show_progress=False)


def test_a_build_under_way_is_not_disturbed(tmp_path: Path) -> None:
    with start(configuration(), tmp_path / "out", 1) as build:
        while not finished_units(tmp_path / "out"):
            assert build.poll() is None
        with pytest.raises(UserError, match="is being built by another process"):
            build_dataset(BuildConfig.parse(configuration(), "build"), tmp_path / "out", show_progress=False)
        finish(build)


def test_a_kill_at_the_very_end(whole: Whole, tmp_path: Path) -> None:
    config, built = whole
    kill_and_repeat(config, tmp_path / "out", 1, units=10**6, delay=0)
    assert contents(tmp_path / "out") == contents(built)
