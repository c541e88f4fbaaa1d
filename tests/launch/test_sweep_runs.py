"""Sweeps that run to their end, are stopped, or are killed and continued: real training, real processes."""

import dataclasses
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launch.sweep import collect_sweep, load_sweep, open_sweep
from runtime.errors import UserError
from tests.launch.conftest import Here
from tests.support.command_line import ENVIRONMENT, LACUNA, lacuna, refusal, succeeded


@contextmanager
def launched(sweep: Path, out: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [*LACUNA, "scaling", "run", str(sweep), "--out", str(out), "--processes", "2", "--no-track"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Any, process: "subprocess.Popen[str] | None" = None, seconds: float = 200) -> None:
    """Until `condition` holds, or `process` has ended without it, which fails with what it said."""
    give_up = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"it ended with code {process.returncode}: {process.communicate()[1]}")
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_a_killed_sweep_continues_to_the_very_points_of_one_that_was_not(
    sweep: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with launched(sweep, out) as process:
        wait_for(lambda: any(out.glob("points/masked*/checkpoints/step-*")), process)
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        children[0].kill()
        process.kill()  # its other point is an orphan now
        process.wait()
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    assert not any(out.glob("points/*/result.json"))
    succeeded(lacuna("scaling", "run", sweep, "--out", out, "--processes", "2", "--no-track"))
    assert (out / "points.csv").read_bytes() == (finished / "points.csv").read_bytes()
    attempts = [json.loads(path.read_text())["attempts"] for path in out.glob("points/*/run.json")]
    assert max(map(len, attempts)) > 1


def test_a_finished_sweep_is_left_as_it_is(sweep: Path, finished: Path, here: Here) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.glob("points/*/*")}
    assert times
    shown = succeeded(here("scaling", "run", sweep, "--out", finished, "--no-track"))
    assert "2 points in" in shown
    assert {path: path.stat().st_mtime_ns for path in finished.glob("points/*/*")} == times


def test_points_are_ordinary_runs_with_a_validation(finished: Path) -> None:
    table = (finished / "points.csv").read_text().splitlines()
    assert len(table) == 3
    for folder in finished.glob("points/*"):
        result = json.loads((folder / "result.json").read_text())
        assert (folder / "metrics.jsonl").exists()
        assert (folder / "config.yaml").exists()
        assert result["kind"] == ("upper bound" if folder.name.startswith("masked") else "exact")
        assert 0 < result["loss"] < 6
        assert 0 < result["loss_se"] < 1
        assert f"{result['loss']!r}" in "\n".join(table)
    assert json.loads((finished / "sweep.json").read_text())["convention"] == "computed"


def test_another_sweep_does_not_take_over_finished_points(
    sweep: Path, finished: Path, tmp_path: Path, here: Here
) -> None:
    values = yaml.safe_load(sweep.read_text())
    values["evaluation"]["draws"] = 5
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values))
    line = refusal(here("scaling", "run", tmp_path / "other.yaml", "--out", finished, "--no-track"))
    assert "was run with another sweep file, data or code: use another --out" in line


def test_points_on_other_data_are_not_mixed_in(sweep: Path, finished: Path) -> None:
    loaded = load_sweep(sweep, need_data=True)
    directory, waiting = open_sweep(loaded, finished)
    assert (directory.root, waiting) == (finished, [])
    with pytest.raises(UserError, match="was run with another sweep file, data or code"):
        open_sweep(dataclasses.replace(loaded, data_digest="0" * 32), finished)


def test_results_alone_are_enough_to_go_on(sweep: Path, finished: Path, tmp_path: Path) -> None:
    """What another machine needs of the points that are done."""
    out = tmp_path / "out"
    for path in finished.glob("points/*/result.json"):
        (out / path.relative_to(finished)).parent.mkdir(parents=True)
        result = json.loads(path.read_text())
        del result["order"]["config"]["train"]["compile"]  # as if the key were newer than the result
        (out / path.relative_to(finished)).write_text(json.dumps(result))
    loaded = load_sweep(sweep, need_data=True)
    assert open_sweep(loaded, out)[1] == []
    assert collect_sweep(loaded, out, tracked=False) == 2
    assert (out / "points.csv").read_bytes() == (finished / "points.csv").read_bytes()
    one = next(out.glob("points/*/result.json"))
    for order in (
        {},
        None,
        {**result["order"], "evaluation": {"windows": 9}},
        {**result["order"], "config": {"nme": 1}},
    ):
        one.write_text(json.dumps({**result, "order": order}))
        with pytest.raises(UserError, match="was run with another sweep file, data or code"):
            open_sweep(loaded, out)


def test_a_stop_ends_the_points_and_names_the_way_on(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with launched(sweep, out) as process:
        wait_for(lambda: len(list(out.glob("points/*/point.log"))) == 2, process)
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 75
    assert said.splitlines()[-1] == "lacuna: stopped with 0 of 2 points done; the same command continues"
    assert not any(child.is_running() for child in children)


def test_a_point_that_fails_is_named_with_its_reason(sweep: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(sweep.read_text())
    values["families"] = {"masked": "llada"}
    values["overrides"].append("model.vocabulary=200")  # less than the tokenizer has
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    result = lacuna("scaling", "run", tmp_path / "bad.yaml", "--out", tmp_path / "out", "--no-track")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert "1 points failed, the first was masked-" in line
    assert "model.vocabulary=200 is less than the tokenizer's 300 ids" in line


def test_plan_and_dry_run_start_nothing(sweep: Path, tmp_path: Path, here: Here) -> None:
    planned = json.loads(succeeded(here("scaling", "plan", sweep, "--json")))
    assert [row["family"] for row in planned["points"]] in (
        ["masked", "autoregressive"],
        ["autoregressive", "masked"],
    )
    whole = planned["training_flops"] + planned["evaluation_flops"]
    assert planned["process_hours"] == pytest.approx(whole / 1e9 / 3600)
    shown = succeeded(here("scaling", "run", sweep, "--out", tmp_path / "out", "--dry-run"))
    assert "2 points:" in shown
    assert "FLOPs of training by the convention computed" in shown
    assert not (tmp_path / "out").exists()


def test_missing_data_is_refused_by_run_and_said_by_plan(sweep: Path, tmp_path: Path, here: Here) -> None:
    values = yaml.safe_load(sweep.read_text()) | {"data": str(tmp_path / "none")}
    (tmp_path / "no-data.yaml").write_text(yaml.safe_dump(values))
    assert "the data is not there yet" in succeeded(here("scaling", "plan", tmp_path / "no-data.yaml"))
    line = refusal(here("scaling", "run", tmp_path / "no-data.yaml", "--out", tmp_path / "out"))
    assert str(tmp_path / "none") in line


def test_shapes_by_name_and_size(here: Here) -> None:
    shown = json.loads(succeeded(here("scaling", "shape", "llada", "8B", "--json")))
    assert (shown["layers"], shown["width"], shown["ffn"], shown["kv_heads"]) == (32, 4096, 12288, 32)
    assert "layers: 22" in succeeded(here("scaling", "shape", "ar", "1b"))
    assert "size '9B' is neither one of 1B, 8B" in refusal(here("scaling", "shape", "llada", "9B"))
