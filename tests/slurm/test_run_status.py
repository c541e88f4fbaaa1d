"""What is told of a run from its directory alone, and of one that trains in another terminal."""

import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from launch.commands.status import duration
from launch.run_log import job_log, rank_log
from launch.slurm.record import Submission, write_submission
from launch.status import last_lines, run_statuses
from pretrain.goodput import Accounts
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.files import write_json
from tests.support.command_line import ENVIRONMENT, LACUNA, lacuna, refusal, succeeded
from tests.support.slurm_lab import SlurmLab, wait_for


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stopped run of 100 steps of 8 × 32 tokens that has come to step 40."""
    (tmp_path / "checkpoints/step-00000030").mkdir(parents=True)
    (tmp_path / "logs/0").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("train: {steps: 100, global_batch: 8, sequence_length: 32}\n")
    attempts = [{"outcome": "failed", "exit_code": 1}, {"outcome": "stopped", "exit_code": 75, "reason": "asked"}]
    write_json(tmp_path / "run.json", {"name": "x", "attempts": attempts})
    lines = [
        {"step": n, "time": time.time() - 50, "tokens": n * 256, "train/loss": 4.0, "perf/tokens_per_second": 128.0,
         "perf/mfu": 0.4, "health/slow": "rank 3 on node2 (1.30 times)",
         **Accounts(productive=4.0 * n, restart=40.0).metrics()}
        for n in range(1, 41)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "to')
    entry = {"time": 0.0, "rank": 0, "level": "info", "message": "first"}
    (tmp_path / "logs/0/rank-00000.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "logs/1").mkdir()
    second = entry | {"message": "second", "traceback": "Traceback\nboom"}
    (tmp_path / "logs/1/rank-00000.jsonl").write_text(json.dumps(second) + "\nno json\n")
    return tmp_path


def test_the_status_of_a_stopped_run(run: Path) -> None:
    (found,) = run_statuses([run])
    assert (found.name, found.state, found.reason, found.jobs) == ("x", "stopped", "asked", [])
    assert (found.step, found.steps, found.tokens, found.loss) == (40, 100, 40 * 256, 4.0)
    assert (found.tokens_per_second, found.mfu, found.eta_seconds) == (128.0, 0.4, 60 * 256 / 128.0)
    assert (found.checkpoint, found.restarts) == (30, 1)
    assert found.goodput is not None
    assert (found.goodput["share"], found.goodput["wall"], found.goodput["restart"]) == (0.8, 200.0, 40.0)
    assert 50 <= (found.silent_seconds or 0) < 100
    assert found.slow is None  # it was, when it ran
    write_json(run / "run.json", {"name": "x", "attempts": [{}]})
    assert run_statuses([run])[0].slow == "rank 3 on node2 (1.30 times)"


def test_a_run_that_has_not_begun_and_one_that_is_none(run: Path, tmp_path: Path) -> None:
    write_json(run / "run.json", {"name": "x", "attempts": []})
    (run / "metrics.jsonl").unlink()
    (found,) = run_statuses([run])
    assert (found.state, found.step, found.loss, found.eta_seconds, found.restarts) == ("prepared", 0, None, None, 0)
    (run / "logs/unable-nodes").write_text("node1 127\nnode2 126\ntorn")
    (found,) = run_statuses([run])
    assert found.state == "failed"
    assert found.reason.startswith("node1: the job's script could not start an attempt (code 127); node2: ")
    with pytest.raises(UserError, match="nowhere is no run directory"):
        run_statuses([run, tmp_path / "nowhere"])


def test_the_end_of_a_long_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "pad": "x" * 200}) + "\n" for n in range(1, 5001)))
    found = [line["step"] for line in last_lines(path)]
    assert found == list(range(found[0], 5001))
    assert 100 < len(found) < 5000


def test_tables_and_json(run: Path) -> None:
    table = succeeded(lacuna("status", run))
    assert "stopped (asked)" in table
    assert "40/100" in table
    assert "80.0%" in table
    (row,) = json.loads(succeeded(lacuna("status", run, "--json")))
    assert row["step"] == 40


def test_watching_tells_a_pipe_at_once_and_ends_with_ctrl_c(run: Path) -> None:
    # a shell starts background commands with SIGINT ignored, and that is inherited: env gives it its default again
    command = ["env", "--default-signal=INT", *LACUNA, "status", str(run), "--watch", "--json"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        (row,) = json.loads(process.stdout.readline())
        assert row["step"] == 40
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130


def test_logs_of_attempts(run: Path) -> None:
    directory = RunDirectory(run)
    assert [line.split(" ", 2)[2] for line in rank_log(directory, 0, 0, follow=False)] == ["info    first"]
    second = list(rank_log(directory, 0, None, follow=False))
    assert second[0].split(" ", 2)[-1] == "info    second\nTraceback\nboom"
    assert second[1:] == ["no json"]
    assert list(rank_log(directory, 0, 0, follow=True))[1:] == second  # an ended run: follows to its end
    for attempt, rank, line in ((2, 0, "has no attempt 2: it has 2"), (1, 9, "rank 9 has not started in attempt 1")):
        with pytest.raises(UserError, match=line):
            list(rank_log(directory, rank, attempt, follow=False))
    with pytest.raises(UserError, match="no output of a Slurm job"):
        job_log(directory)


def test_a_log_is_followed_through_the_queue_from_before_the_first_attempt(lab: SlurmLab, run: Path) -> None:
    """What `submit` prints works at once, and an outcome is not the end while the run has a job."""
    directory, seen = RunDirectory(run), list[str]()
    ended = json.loads((run / "run.json").read_text())["attempts"]
    write_json(run / "run.json", {"name": "x", "attempts": []})
    write_submission(directory, Submission("lacuna-x", "t", 1, 1, 1, True, 3, str(run / "bad.json"), 7.0, []))
    with pytest.raises(UserError, match="has no attempt 0: it has 0"):
        next(rank_log(directory, 0, None, follow=True))  # no job: nothing to wait for
    held = ["sbatch", "--parsable", "--hold", "--job-name=lacuna-x", "--output=/dev/null", "--wrap=true"]
    job = lab.run(*held).strip()
    follower = threading.Thread(target=lambda: seen.extend(rank_log(directory, 0, None, follow=True)), daemon=True)
    follower.start()
    for attempts in range(1, 3):
        time.sleep(0.5)  # it waits
        write_json(run / "run.json", {"name": "x", "attempts": ended[:attempts]})
        assert follower.is_alive()
    time.sleep(3)
    assert follower.is_alive()
    lab.run("scancel", job)
    follower.join(60)
    assert not follower.is_alive()
    assert [line.split("info    ")[-1] for line in seen] == ["first", "second\nTraceback\nboom", "no json"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (95, "1m35s"), (3600, "1h0m"), (90061, "1d1h"), (59.6, "1m0s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_of_this_machine_is_seen_and_stopped(small_recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        *LACUNA,
        "train",
        str(small_recipe),
        "--run",
        str(run),
        "train.steps=1000000",
        "checkpoint.every=1000000",
    ]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        wait_for("steps", lambda: len(last_lines(run / "metrics.jsonl")) > 2, 250)
        (found,) = run_statuses([run])
        assert (found.state, found.jobs) == ("running", [])
        assert succeeded(lacuna("stop", run)).endswith(f"process {process.pid} saves and ends\n")
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert run_statuses([run])[0].state == "stopped"
    assert "there is nothing to stop" in refusal(lacuna("stop", run))
    assert "was not submitted: use `lacuna submit`" in refusal(lacuna("requeue", run))
