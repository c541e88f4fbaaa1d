"""Ranks that hang, lag or are looked into, in real runs of two."""

import gzip
import json
import signal
import time
from pathlib import Path

import pytest

from pretrain.tracking.spool import read_metrics
from tests.support.command_line import lacuna, refusal, succeeded
from tests.support.hang_points import deadline, hang, limits, slowed
from tests.support.launched import Launched


def _trace(path: Path, steps: int) -> None:
    """A whole trace that has as many steps."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event.get("name", "") for event in events}
    assert sum(name.startswith("step ") for name in names) == steps
    assert "aten::mm" in names


@pytest.mark.slow
def test_a_rank_that_is_slow_and_then_hangs_in_a_step(recipe: Path, tmp_path: Path) -> None:
    """It is named as slow, then as hung; stacks of both; every rank ends with code 76; steps 5 and 6 are traced."""
    run, plan = tmp_path / "run", {"rank": 1, "where": "step", "step": 60, "slow": 4}
    traced = ["profile.first=5", "profile.last=6", "profile.ranks=[0,1]", "train.micro_batch=4"]
    found = hang(recipe, run, plan, *limits(5), *traced)
    assert found.ranks == [1]
    assert found.seconds <= deadline(5)
    assert "rank 1 on " in found.message
    assert "(in step of step 60 for " in found.message
    assert "hanging_worker.py" in found.stack(1)
    assert "parallel/waiting.py" in found.stack(0)
    words = [json.loads((run / f"logs/0/failure-0000{rank}.json").read_text()) for rank in (0, 1)]
    assert [word["exit_code"] for word in words] == [76, 76]
    assert words[0]["message"].startswith(found.message)
    assert f"lacuna: {found.message}" in found.output
    named = [line for line in read_metrics(run / "metrics.jsonl") if line.get("health/slowest_rank") == 1]
    assert named
    assert named[-1]["health/slowest_ratio"] > 1.15
    assert "rank 1 on " in (run / "logs/0/rank-00000.jsonl").read_text().partition(" is slow: ")[0]
    for rank in (0, 1):
        _trace(run / f"traces/steps-00000005-00000006/rank-0000{rank}.json.gz", 2)
    assert "lacuna.watchdog" not in found.output


@pytest.mark.slow
def test_a_rank_slowed_by_1_3_is_named_within_20_steps_of_a_real_run(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = ["model.layers=4", "model.width=192", "model.heads=4", "model.kv_heads=4", "model.ffn=512"]
    slowed(recipe, run, 1, 1.3, *model, "train.steps=24", "train.global_batch=32", "train.micro_batch=8")
    named = [line for line in read_metrics(run / "metrics.jsonl") if "health/slowest_rank" in line]
    assert named[0]["step"] <= 20
    assert {(line["health/slow_ranks"], line["health/slowest_rank"]) for line in named} == {(1, 1)}
    assert 1.15 < named[0]["health/slowest_ratio"] < 1.6


@pytest.mark.slow
@pytest.mark.parametrize("where", ["data", "collective", "save", "interpreter"])
def test_a_hang_is_found_within_its_deadline(recipe: Path, tmp_path: Path, where: str) -> None:
    found = hang(recipe, tmp_path / "run", {"rank": 1, "where": where, "step": 12}, *limits(5), every=5)
    assert found.ranks == [1]
    assert 4 < found.seconds <= deadline(5)
    assert "hanging_worker.py" in found.stack(1)


def test_a_rank_that_is_stopped_is_named_by_its_peer_and_killed(recipe: Path, tmp_path: Path) -> None:
    """Before that, its peer is traced on demand."""
    run = tmp_path / "run"
    launched = Launched(recipe, run, "--processes", "2", *limits(5))
    answer = json.loads(succeeded(lacuna("profile", run, "--steps", "+3", "--json")))
    assert answer["last"] - answer["first"] == 2
    path, give_up = Path(answer["traces"]) / "rank-00000.json.gz", time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < give_up
        time.sleep(0.05)
    _trace(path, 3)
    assert refusal(lacuna("profile", run, "--steps", "1:2")).startswith("step 1 has been taken already")
    workers = launched.workers()
    workers[1].send_signal(signal.SIGSTOP)
    ended = launched.end()
    assert ended.returncode == 76
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("lacuna: rank 1 on ")
    assert "(no sign of life, stopped, last seen in " in line
    assert "hangs; rank 0 waited" in line
    (stack,) = (run / "logs/0").glob("watch-*/stack-00001.txt")
    assert "pretrain/loop.py" in stack.read_text()
    (attempt,) = json.loads((run / "run.json").read_text())["attempts"]
    assert (attempt["outcome"], attempt["exit_code"]) == ("failed", 76)
