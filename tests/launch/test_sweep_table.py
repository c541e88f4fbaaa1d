"""A sweep goes on from its table on another machine: known points are not trained again, strange lines are refused."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.manifest import DatasetManifest
from launch.pool import Job
from launch.sweep import load_sweep, run_sweep
from runtime.files import read_json, write_json
from tests.launch.conftest import Here
from tests.support.command_line import lacuna, refusal, succeeded
from tests.support.small_run import build_dataset, write_corpus

SIZES = [5000, 8000, 12000]


@pytest.fixture
def six(sweep: Path, tmp_path: Path) -> Path:
    """The file of a sweep of six points, which nobody trains."""
    values = yaml.safe_load(sweep.read_text()) | {"name": "six", "sizes": [SIZES]}
    (tmp_path / "six.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "six.yaml"


class Pool:
    """In the place of `run_jobs`: ends `most` jobs at once, with results that follow from their names."""

    def __init__(self) -> None:
        self.most = 100
        self.launched: list[str] = []
        self.look: Callable[[], None] = lambda: None

    def __call__(self, jobs: Iterable[Job], processes: int, stop: Any) -> Iterator[tuple[Job, int]]:
        self.look()
        for job in list(jobs)[: self.most]:
            self.launched.append(job.name)
            loss = 3 + sum(job.name.encode()) / 7e3
            result = {"loss": loss, "loss_se": loss / 300, "bits_per_byte": loss / 2, "bits_per_byte_se": loss / 700}
            write_json(job.root / "result.json", {**result, "order": read_json(job.root / "point.json")})
            yield job, 0
            self.look()


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    made = Pool()
    monkeypatch.setattr("launch.sweep.run_jobs", made)
    return made


def run(sweep: Path, out: Path, table: Path | None = None) -> bytes:
    return run_sweep(load_sweep(sweep, need_data=True, table=table), out, 1, tracked=False).read_bytes()


@pytest.mark.parametrize("done", range(7))
def test_a_table_at_any_moment_is_where_another_machine_goes_on(
    six: Path, pool: Pool, tmp_path: Path, done: int
) -> None:
    whole, table = run(six, tmp_path / "whole"), tmp_path / "kept" / "table.csv"
    everyone, pool.launched, pool.most = pool.launched, [], done
    lines: list[int] = []
    pool.look = lambda: lines.append(table.read_text().count("\n") - 1)
    assert run(six, tmp_path / "one", table) == table.read_bytes()
    assert lines == list(range(done + 1))
    pool.most, pool.look = 100, lambda: None
    assert run(six, tmp_path / "other", table) == table.read_bytes() == whole
    assert sorted(pool.launched) == sorted(everyone)
    assert run(six, tmp_path / "third", table) == run(six, tmp_path / "third") == whole
    assert len(pool.launched) == 6


def test_what_is_known_is_done_for_every_command(six: Path, pool: Pool, tmp_path: Path, here: Here) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "out"
    pool.most = 4
    part = run(six, tmp_path / "one", table)
    (tmp_path / "lab.yaml").write_text("name: lab\n")
    array = ["--cluster", tmp_path / "lab.yaml", "--dry-run", "--json", "--table", table]
    told = json.loads(succeeded(here("scaling", "run", six, "--out", out, *array)))
    assert len(told["points"]) == 2
    assert f"--collect --table {table}" in told["script"]
    assert not out.exists()
    collected = succeeded(here("scaling", "run", six, "--out", out, "--table", table, "--collect", "--no-track"))
    assert "4 points in" in collected
    assert (out / "points.csv").read_bytes() == table.read_bytes() == part
    assert read_json(out / "sweep.json")["name"] == "six"
    results = [read_json(path) for path in out.glob("points/*/result.json")]
    assert [result["from"] for result in results] == [str(table)] * 4


def test_what_is_done_here_stays(six: Path, pool: Pool, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    whole = run(six, tmp_path / "out", table)
    table.write_text(table.read_text().replace(",3.", ",4."))
    assert run(six, tmp_path / "out", table) == table.read_bytes() == whole


def test_a_point_of_the_table_is_not_shown_again(
    six: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run, with the curves, is where it was trained."""
    shown: list[str] = []

    class Tracking:
        def __init__(self, *_: Any) -> None: ...

        def show(self, directory: Any, result: Any) -> None:
            shown.append(directory.root.name)

        def finish(self, complete: bool) -> None:
            assert complete

    pool.most = 2
    run(six, tmp_path / "one", tmp_path / "table.csv")
    known, pool.launched, pool.most = pool.launched, [], 100
    monkeypatch.setattr("launch.sweep.SweepTracking", Tracking)
    run_sweep(load_sweep(six, need_data=True, table=tmp_path / "table.csv"), tmp_path / "other", 1)
    assert shown == pool.launched
    assert len(shown) == 4
    assert not set(shown) & set(known)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def text_of(rows: list[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def changed(**values: str) -> Callable[[str], str]:
    """A table whose third point has other values."""

    def change(text: str) -> str:
        rows = rows_of(text)
        rows[2] |= values
        return text_of(rows)

    return change


def without(column: str) -> Callable[[str], str]:
    return lambda text: text_of([{k: v for k, v in row.items() if k != column} for row in rows_of(text)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(config_digest="0" * 32), "was trained or validated by another configuration: remove its line"),
        (changed(data_digest="0" * 32), "was trained on other data than"),
        (changed(config_digest=""), "has no config_digest or data_digest, as a sweep writes them"),
        (changed(name="masked-of-others"), "'masked-of-others' is no point of the sweep six: remove its line"),
        (changed(name='a "quoted",\nname'), "is no point of the sweep six"),
        (changed(name=""), "'' is no point of the sweep six"),
        (changed(loss="nan"), "line 4, loss: 'nan' is no positive finite number"),
        (changed(loss=""), "line 4: loss is empty"),
        (lambda text: text + text.splitlines()[3] + "\n", "stands twice: keep one of its lines"),
        (lambda text: text.replace("config_digest", "digest"), "has no config_digest or data_digest"),
        (without("data_digest"), "has no config_digest or data_digest"),
        (without("name"), "'' is no point of the sweep six"),
        (without("flops"), "has no column 'flops'"),
        (lambda text: text + '"masked', "unexpected end of data"),
        (lambda text: text[:-50], "has no config_digest or data_digest"),  # cut short
        (lambda text: "family,parameters,tokens,flops,loss\nmasked,1,1,1,1\n", "'' is no point of the sweep six"),
        (lambda text: "", "has no column 'family'"),
    ],
)
def test_lines_that_are_no_points_of_the_sweep_are_refused(
    six: Path, pool: Pool, tmp_path: Path, here: Here, change: Callable[[str], str], message: str
) -> None:
    table = tmp_path / "table.csv"
    run(six, tmp_path / "one", table)
    text = change(table.read_text())
    table.write_text(text)
    pool.launched.clear()
    for more in ([], ["--dry-run"], ["--collect"]):
        line = refusal(here("scaling", "run", six, "--out", tmp_path / "other", "--table", table, *more))
        assert message in line
        assert line.startswith(str(table))
    assert table.read_text() == text
    assert not pool.launched
    assert not (tmp_path / "other").exists()


def test_a_sweep_that_has_changed_names_the_point(six: Path, pool: Pool, tmp_path: Path, here: Here) -> None:
    table = tmp_path / "table.csv"
    run(six, tmp_path / "one", table)
    values = yaml.safe_load(six.read_text())
    for key, other in (("evaluation", {"windows": 9}), ("rule", {"kind": "fixed", "batch_tokens": 512, "lr": 0.02})):
        six.write_text(yaml.safe_dump(values | {key: other}))
        line = refusal(here("scaling", "run", six, "--out", tmp_path / "other", "--table", table))
        assert "' was trained or validated by another configuration" in line
    six.write_text(yaml.safe_dump(values | {"sizes": [SIZES[:2]]}))
    line = refusal(here("scaling", "run", six, "--out", tmp_path / "other", "--table", table))
    assert "is no point of the sweep six" in line


def test_a_table_that_cannot_be_written_stops_before_anything_is_trained(
    six: Path, pool: Pool, tmp_path: Path, here: Here
) -> None:
    (tmp_path / "file").write_text("")
    table = tmp_path / "file" / "table.csv"
    line = refusal(here("scaling", "run", six, "--out", tmp_path / "out", "--table", table, "--no-track"))
    assert f"{table} cannot be written" in line
    assert "cannot be read" in refusal(here("scaling", "run", six, "--out", tmp_path / "out", "--table", tmp_path))
    assert not pool.launched


def test_the_same_text_is_the_same_data_anywhere(tmp_path: Path, built: Path) -> None:
    """Other folders, another number of processes, another time."""
    folder = tmp_path / "other place"
    folder.mkdir()
    again = folder / "data"
    succeeded(lacuna("data", "build", "--config", write_corpus(folder), "--out", again, "--processes", "3"))
    assert DatasetManifest.load(again).stream_digest == DatasetManifest.load(built).stream_digest


def test_half_a_sweep_goes_on_elsewhere_to_the_table_of_one_machine(
    sweep: Path, finished: Path, build_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real training in another working directory, on a dataset built anew there."""
    monkeypatch.chdir(tmp_path)
    build_dataset(build_file, Path("rebuilt"))
    Path("sweep.yaml").write_text(yaml.safe_dump(yaml.safe_load(sweep.read_text()) | {"data": "rebuilt"}))
    whole = (finished / "points.csv").read_bytes()
    head, first, second = whole.splitlines(keepends=True)
    table = Path("table.csv")
    table.write_bytes(head + second)
    arguments = ["scaling", "run", "sweep.yaml", "--out", "out", "--table", table, "--no-track", "--processes", "2"]
    succeeded(lacuna(*arguments))
    assert table.read_bytes() == Path("out/points.csv").read_bytes() == whole
    trained = [path.parent.name for path in Path("out").glob("points/*/config.yaml")]
    assert [name.encode() for name in trained] == [rows_of((head + first).decode())[0]["name"].encode()]
    shutil.rmtree("out")
    succeeded(lacuna(*arguments))
    assert not list(Path("out").glob("points/*/config.yaml"))
    assert table.read_bytes() == whole
