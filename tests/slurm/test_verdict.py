"""What follows an attempt: who is to blame, whether it is tried again, and when that ends."""

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.slurm.attempts import LOST, begin_attempt, fruitless
from launch.slurm.bad_nodes import bad_nodes, remember
from launch.slurm.cause import find_cause
from launch.slurm.health import main as check_health
from launch.slurm.health import note_expectations, unfit_nodes
from launch.slurm.record import Submission, read_submission, request_stop, write_submission
from launch.slurm.verdict import Situation, Verdict, conclude, judge
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.files import write_json

RUNNING = "JobId=7 JobState=RUNNING Reason=None"  # an excerpt of `scontrol show job`


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """A submitted run of two ranks on two nodes, whose first attempt has begun."""
    found = RunDirectory(tmp_path / "run")
    (found.root / "logs").mkdir(parents=True)
    found.config.write_text("name: x\n")
    write_json(found.metadata, {"name": "x", "attempts": []})
    write_submission(
        found, Submission("lacuna-run-1", "t", 1, 2, 1, True, 3, str(tmp_path / "bad.json"), 7.0, [], ["7"])
    )
    _begin(found)
    return found


def _begin(directory: RunDirectory, restart: int = 0) -> int:
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart)}
    return begin_attempt(directory, 2, "megatron dp2 zero1", ["node1", "node2"], variables)


def _checkpoint(directory: RunDirectory, step: int) -> None:
    (directory.checkpoints / f"step-{step:08d}").mkdir(parents=True)


def _ended(directory: RunDirectory, rank: int, code: int, moment: float, words: str | None = None) -> None:
    path = directory.logs(0) / f"exit-{rank:05d}"
    path.write_text(f"{code} node{rank + 1}\n")
    os.utime(path, (moment, moment))
    if words is not None:
        write_json(directory.failure(0, rank), {"message": words, "exit_code": code})


def _last(directory: RunDirectory) -> dict[str, Any]:
    attempt: dict[str, Any] = json.loads(directory.metadata.read_text())["attempts"][-1]
    return attempt


@pytest.mark.parametrize(
    ("ends", "code", "message"),
    [
        ([(0, 143, 3, None), (1, 42, 1, None)], 42, "rank 1 on node2 ended with code 42 and no word; see "),
        ([(0, 137, 5, None), (1, 1, 1, "lost")], 137, "rank 0 on node1 was killed by SIGKILL, often for want of memor"),
        ([(0, 1, 1, "connection closed by peer"), (1, 2, 2, "shard x is damaged")], 2, "shard x is damaged"),
        ([(0, 1, 2, "b"), (1, 1, 1, "a")], 1, "rank 1 on node2: a"),
        ([(0, 75, 1, "stopped at step 3"), (1, 75, 2, "stopped at step 3")], 75, "stopped at step 3"),
        ([(0, 134, 9, None), (1, 139, 8, None)], 139, "rank 1 on node2 was killed by SIGSEGV"),
        ([(0, 76, 9, "rank 1 on node2 hangs"), (1, 137, 8, None)], 76, "rank 1 on node2 hangs"),
        ([], 9, "srun ended with code 9, and no rank said why"),
    ],
)
def test_the_rank_that_is_a_cause(
    directory: RunDirectory, ends: list[tuple[int, int, float, str | None]], code: int, message: str
) -> None:
    for order in itertools.permutations(ends):
        for end in order:
            _ended(directory, *end)
        cause = find_cause(directory, 0, 9)
        assert cause.code == code
        assert cause.message.startswith(message)


def test_every_situation_has_the_verdict_of_the_table() -> None:
    for code, cancelled, stop, requeues, tries in itertools.product(
        (1, 2, 3, 42, 75, 76, 137), (False, True), (False, True), (False, True), (0, 2, 3, 4)
    ):
        verdict = judge(Situation(code, cancelled, stop, requeues, tries, 3))
        if cancelled:
            expected = Verdict("end", code)
        elif stop or code in (2, 3):
            expected = Verdict("cancel", code)
        elif tries >= 3:
            expected = Verdict("cancel", 1 if code == 75 else code)
        else:
            expected = Verdict("requeue" if requeues else "end", code)
        assert verdict == expected


def test_lines_of_verdicts() -> None:
    assert Verdict("requeue", 75).line() == "requeue 75"
    assert Verdict("requeue", 1, ("a", "b")).line() == "requeue 1 a,b"
    assert Verdict("end", 42).line() == "end 42"
    assert Verdict("end", 1, ("a",)).line() == "end 1 a"
    assert Verdict("cancel", 2).line() == "cancel 2"


def test_a_note_that_was_cut_off_before_its_rank_is_passed_over(directory: RunDirectory) -> None:
    _begin(directory)
    (directory.logs(0) / "exit-").write_text("75 node1\n")
    _ended(directory, 1, 75, 5, "stopped at step 8")
    assert find_cause(directory, 0, 75).message == "stopped at step 8"


def test_a_finished_attempt(directory: RunDirectory) -> None:
    assert conclude(directory.root, 0, "train", 0, False, RUNNING) == Verdict("end", 0)
    assert (_last(directory)["outcome"], _last(directory)["exit_code"]) == ("finished", 0)


def test_attempts_without_progress_are_given_up_and_progress_starts_the_count_anew(directory: RunDirectory) -> None:
    for restart in range(2):
        _ended(directory, 1, 42, 1)
        assert conclude(directory.root, restart, "train", 42, False, RUNNING).action == "requeue"
        _begin(directory, restart + 1)
    _checkpoint(directory, 4)
    assert conclude(directory.root, 2, "train", 42, False, RUNNING).action == "requeue"
    assert fruitless(directory, ["7"]) == 0
    for restart in range(3, 6):
        _begin(directory, restart)
        verdict = conclude(directory.root, restart, "train", 42, False, RUNNING)
    assert verdict == Verdict("cancel", 42)
    assert _last(directory)["reason"].endswith("; 3 attempts in a row brought no checkpoint: given up")
    assert fruitless(directory, ["8"]) == 0  # another submission counts for itself


def test_an_attempt_that_was_killed_with_its_node_is_noted_by_the_next(directory: RunDirectory) -> None:
    _begin(directory, 1)
    first = json.loads(directory.metadata.read_text())["attempts"][0]
    assert (first["outcome"], first["reason"]) == ("failed", LOST)


def test_a_cancelled_job_does_not_come_back(directory: RunDirectory) -> None:
    _ended(directory, 0, 75, 1, "stopped at step 3")
    assert conclude(directory.root, 0, "train", 75, True, "JobState=CANCELLED by 0") == Verdict("end", 75)


def test_a_run_that_was_told_to_stop(directory: RunDirectory) -> None:
    request_stop(directory, wanted=True)
    _ended(directory, 0, 75, 1, "stopped at step 3")
    assert conclude(directory.root, 0, "train", 75, True, RUNNING) == Verdict("cancel", 75)
    assert (_last(directory)["outcome"], _last(directory)["reason"]) == ("stopped", "stopped at step 3")


def test_a_warning_that_came_before_the_ranks_could_note_it(directory: RunDirectory) -> None:
    _ended(directory, 0, 128 + 12, 1)
    assert conclude(directory.root, 0, "train", 140, True, RUNNING) == Verdict("requeue", 75)


@pytest.mark.parametrize("new_attempt_has_begun", [False, True])
def test_a_script_that_slurm_has_lost_decides_nothing(directory: RunDirectory, new_attempt_has_begun: bool) -> None:
    """Its requeue would end the job that Slurm has started elsewhere."""
    if new_attempt_has_begun:
        _begin(directory, 1)
    before = directory.metadata.read_text()
    _ended(directory, 0, 1, 1, "taken over")
    assert conclude(directory.root, 0, "train", 1, False, f"{RUNNING} Requeue=1 Restarts=1") == Verdict("end", 1)
    assert directory.metadata.read_text() == before


def test_a_bad_node_is_remembered_and_the_job_goes_elsewhere(directory: RunDirectory) -> None:
    note_expectations(directory, 0)
    remember(directory.root.parent / "bad.json", {"node9": "old"}, 1)
    write_json(directory.logs(0) / "node-node1.json", {"node": "node1", "faults": []})
    assert conclude(directory.root, 0, "health", 1, False, RUNNING) == Verdict("requeue", 1, ("node2", "node9"))
    assert bad_nodes(directory.root.parent / "bad.json")["node2"] == "the health check did not report"


def test_a_job_that_goes_back_stays_away_from_what_others_have_found_meanwhile(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    _ended(directory, 0, 75, 1, "stopped at step 3")
    bad = directory.root.parent / "bad.json"
    remember(bad, {"node9": "by doctor"}, 1)
    assert conclude(directory.root, 0, "train", 75, True, RUNNING) == Verdict("requeue", 75, ("node9",))
    bad.write_text("{")
    assert conclude(directory.root, 0, "train", 75, True, RUNNING) == Verdict("requeue", 75)
    assert "bad nodes are not remembered: " in capsys.readouterr().err


def test_the_rest_of_a_chain_stays_away_from_bad_nodes(directory: RunDirectory) -> None:
    submission = read_submission(directory)
    assert submission is not None
    write_submission(directory, replace(submission, wanted=3, requeues=False))
    write_json(directory.logs(0) / "node-node1.json", {"node": "node1", "faults": []})
    assert conclude(directory.root, 0, "health", 1, False, RUNNING) == Verdict("end", 1, ("node2",))


def test_nodes_that_all_fail_are_not_to_blame(directory: RunDirectory) -> None:
    assert conclude(directory.root, 0, "health", 1, False, RUNNING) == Verdict("cancel", 3)
    assert not (directory.root.parent / "bad.json").exists()


@pytest.mark.parametrize(("code", "asked"), [(140, True), (143, False)])
def test_a_warning_during_the_health_check_blames_no_node(directory: RunDirectory, code: int, asked: bool) -> None:
    """Some preemptions end the step and tell the script nothing."""
    write_json(directory.logs(0) / "node-node1.json", {"node": "node1", "faults": []})
    assert conclude(directory.root, 0, "health", code, asked, RUNNING) == Verdict("requeue", 75)
    assert not (directory.root.parent / "bad.json").exists()


def test_the_health_check_of_a_node(
    directory: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note_expectations(directory, 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch/lacuna-7"))
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    assert check_health([str(directory.root), "0"]) == 0
    assert (tmp_path / "scratch/lacuna-7").is_dir()
    monkeypatch.setenv("SLURMD_NODENAME", "node2")
    monkeypatch.setenv("TMPDIR", "/proc/none")
    directory.config.write_text("name: y\n")
    assert check_health([str(directory.root), "0"]) == 3
    reasons = unfit_nodes(directory, 0, ["node1", "node2", "node3"])
    assert list(reasons) == ["node2", "node3"]
    assert reasons["node2"].startswith(f"sees another {directory.config} than the first node; temporary files: ")
    assert "lacuna: node2 sees another" in capsys.readouterr().err
    write_json(directory.logs(0) / "doctor.json", {"exclude": {"node1": "matrix products at 50 %"}})
    assert unfit_nodes(directory, 0, ["node1"]) == {"node1": "matrix products at 50 %"}


def test_bad_nodes_expire(tmp_path: Path) -> None:
    path = tmp_path / "deep/bad.json"
    assert bad_nodes(path) == {}
    remember(path, {"a": "xid 79"}, days=1, now=1000.0)
    remember(path, {"b": "no disk"}, days=3, now=2000.0)
    assert bad_nodes(path, now=3000.0) == {"a": "xid 79", "b": "no disk"}
    assert bad_nodes(path, now=1000.0 + 86401) == {"b": "no disk"}
    remember(path, {"c": "x"}, days=1, now=1000.0 + 86401)
    assert sorted(json.loads(path.read_text())) == ["b", "c"]
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match="is not a list of bad nodes: remove it"):
        bad_nodes(path)


def test_a_broken_record_is_named(directory: RunDirectory) -> None:
    (directory.root / "slurm.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"slurm\.json is not as it was written"):
        read_submission(directory)
