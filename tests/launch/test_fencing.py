"""Two attempts on one run directory, orphans of killed and sleeping launchers, and stops that one rank is told."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest

from parallel.checkpoint.catalogue import list_checkpoints
from pretrain.tracking.spool import read_metrics
from tests.support.command_line import ENVIRONMENT, contents, lacuna, refusal, succeeded
from tests.support.launched import Launched

Here = Callable[..., "CompletedProcess[str]"]


def _steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run / "metrics.jsonl")]


def _saved(run: Path) -> list[int]:
    entries = list_checkpoints(run / "checkpoints")
    assert all(entry.valid for entry in entries)
    return [entry.step for entry in entries]


def _outcomes(run: Path) -> list[str | None]:
    return [attempt.get("outcome") for attempt in json.loads((run / "run.json").read_text())["attempts"]]


def _lease(run: Path) -> dict[str, object]:
    (path,) = (run / "lease").glob("*.json")
    said: dict[str, object] = json.loads(path.read_text())
    return said


def _signal_tree(launched: Launched, number: signal.Signals) -> None:
    for process in [psutil.Process(launched.process.pid), *launched.workers().values()]:
        process.send_signal(number)


def test_a_rank_started_by_hand_is_refused_while_a_launcher_trains(here: Here, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched = Launched(recipe, run, "--processes", "2")
    rank_zero = launched.workers()[0]
    assert _lease(run)["pid"] == rank_zero.pid
    line = refusal(here("train", recipe, "--run", run))
    assert line.startswith(f"{run} is being trained by another process (process {rank_zero.pid} on ")
    before = contents(run / "checkpoints")
    command = [sys.executable, "-m", "launch.worker", str(run)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=ENVIRONMENT)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"lacuna: {line.rpartition(', last')[0]}")
    assert contents(run / "checkpoints") == before
    launched.process.send_signal(signal.SIGTERM)
    assert launched.end().returncode == 75
    assert _lease(run)["released"] is True


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_orphan_that_wakes_after_its_job_was_requeued(recipe: Path, tmp_path: Path, processes: int) -> None:
    """Its ranks sleep while the job's next start trains to the end; then they wake and write nothing."""
    run = tmp_path / "run"
    orphan = Launched(recipe, run, "--processes", str(processes), SLURM_JOB_ID="7")
    _signal_tree(orphan, signal.SIGSTOP)
    succeeded(lacuna("train", recipe, "--run", run, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1"))
    assert _steps(run) == list(range(1, 9))
    before = {path: digest for path, digest in contents(run).items() if not path.startswith("logs/0/")}
    _signal_tree(orphan, signal.SIGCONT)
    result = orphan.end()
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"lacuna: {run} was taken over by a later attempt (job 7 restart 1, process ")
    assert line.endswith(": this one writes nothing more")
    assert "Traceback" not in result.stderr
    assert {path: digest for path, digest in contents(run).items() if not path.startswith("logs/0/")} == before
    assert _outcomes(run) == [None, "finished"]


def _shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def test_a_killed_launcher_takes_its_workers_along_and_is_followed_at_once(recipe: Path, tmp_path: Path) -> None:
    run, shared = tmp_path / "run", _shared_memory()
    launched = Launched(recipe, run, "--processes", "2")
    workers = list(launched.workers().values())
    launched.process.kill()
    launched.process.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert _shared_memory() <= shared
    result = lacuna("train", recipe, "--run", run)
    succeeded(result)
    assert "the run's last attempt is gone without a word: process " in result.stderr
    assert _steps(run) == list(range(1, 9))
    assert _saved(run) == [4, 6, 8]
    assert _outcomes(run) == [None, "finished"]
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGUSR2), (1, signal.SIGTERM)])
def test_a_signal_to_one_rank_stops_all_at_one_step(
    recipe: Path, tmp_path: Path, rank: int, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    launched = Launched(recipe, run, "--processes", "2")
    launched.workers()[rank].send_signal(number)
    result = launched.end()
    assert result.returncode == 75, result.stderr
    last = _steps(run)[-1]
    line = f"lacuna: stopped at step {last} of 1000000 on request; start again with the same --run to continue"
    assert result.stderr.splitlines()[-1] == line
    assert _saved(run) == [last]
    assert _outcomes(run) == ["stopped"]


@pytest.mark.slow
def test_a_time_limit_stops_and_saves_without_any_signal(recipe: Path, tmp_path: Path) -> None:
    run, endless = tmp_path / "run", ["train.steps=1000000", "checkpoint.every=1000000", "train.time_reserve=1"]
    began = time.monotonic()
    succeeded(lacuna("train", recipe, "--run", run, "--until", "1", *endless))
    seconds = round(2 * (time.monotonic() - began)) + 4
    for _ in range(3):  # on a machine that has become slower meanwhile there may be no time for a step
        result = lacuna("train", recipe, "--run", run, *endless, "--time-limit", f"{seconds}s", timeout=1000)
        if "leaves no time" not in result.stderr:
            break
        seconds *= 3
    assert result.returncode == 75, result.stderr
    last = _steps(run)[-1]
    line = (
        f"lacuna: stopped at step {last} of 1000000 before the time limit; start again with the same --run to continue"
    )
    assert result.stderr.splitlines()[-1] == line
    assert _saved(run) == [1, last]
    assert _outcomes(run)[-1] == "stopped"


def test_a_time_limit_that_leaves_no_time(recipe: Path, run: Path) -> None:
    before = contents(run / "checkpoints")
    result = lacuna("train", recipe, "--run", run, "--processes", "2", SLURM_JOB_END_TIME=f"{time.time() + 30:.0f}")
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("lacuna: stopped at step 4 of 8: the time limit leaves no time for a step and a save: ")
    assert contents(run / "checkpoints") == before


def test_a_time_limit_that_is_none(here: Here, recipe: Path, tmp_path: Path) -> None:
    line = refusal(here("train", recipe, "--run", tmp_path / "run", "--time-limit", "soon"))
    assert "train.time_limit: 'soon' is not a time: give seconds or for instance 3h55m" in line
    assert list(tmp_path.iterdir()) == []
