"""Whole runs on a real Slurm: submitted, warned, requeued, chained, broken. Skipped where there can be no lab."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from launch.slurm.bad_nodes import bad_nodes, remember
from parallel.checkpoint.catalogue import list_checkpoints
from pretrain.tracking.spool import read_metrics
from tests.support.command_line import refusal, succeeded
from tests.support.slurm_lab import SlurmLab, wait_for

pytestmark = [
    pytest.mark.timeout(900),  # a busy machine is no failure: a rank imports for seconds, or for minutes
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]
ENDLESS = ["train.steps=1000000", "checkpoint.every=1000000"]
Cluster = Callable[..., Path]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Writes a cluster file for the lab with the given keys changed."""

    def write(**changes: Any) -> Path:
        values = {"name": "lab", "cpus_per_task": 1, "memory": "2G", "time": "00:10:00", "grace": 60} | changes
        (tmp_path / "lab.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "lab.yaml"

    return write


def _python(folder: Path, fault: str) -> str:
    """An interpreter on which something is wrong: `fault` is shell code that runs before it."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{fault}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def _submit(lab: SlurmLab, recipe: Path, cluster: Path, run: Path, *options: str) -> list[str]:
    common = ["--cluster", cluster, "--nodes", "2", "--gpus-per-node", "1", "--run", run, "--json"]
    jobs: list[str] = json.loads(succeeded(lab.lacuna("submit", recipe, *common, *options)))["jobs"]
    return jobs


def _attempts(run: Path) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["attempts"]
    return attempts


def _lines(run: Path, attempt: int) -> int:
    path = run / "metrics.jsonl"
    return sum(line["run/attempt"] == attempt for line in read_metrics(path)) if path.exists() else 0


def _steps_once_each(run: Path) -> int:
    """The last step of the run, all of whose steps must stand in its metrics once."""
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    return len(steps)


def _log(run: Path, job: str) -> str:
    return (run / f"logs/slurm-{job}.out").read_text()


def test_a_bad_node_is_left_out_and_the_run_finishes_on_two_others(
    lab: SlurmLab, cluster: Cluster, small_recipe: Path, tmp_path: Path
) -> None:
    """Health step, list of bad nodes, requeue with an exclusion, two nodes that train to the end."""
    fault = 'case "$SLURMD_NODENAME $*" in "node1 "*launch.slurm.health*) exit 9;; esac'
    file, run = cluster(python=_python(tmp_path, fault)), tmp_path / "run"
    (job,) = _submit(lab, small_recipe, file, run)
    assert lab.wait_for_end(job) == "COMPLETED", _log(run, job)
    first, second = _attempts(run)
    assert first["outcome"] == "failed"
    assert first["reason"] == "health check: node1: the health check did not report"
    assert (second["outcome"], second["restart"], second["nodes"]) == ("finished", 1, ["node2", "node3"])
    assert _steps_once_each(run) == 8
    assert [entry.step for entry in list_checkpoints(run / "checkpoints") if entry.valid] == [4, 6, 8]
    dry = lab.lacuna("submit", small_recipe, "--cluster", file, "--gpus-per-node", "1", "--run", run, "--dry-run")
    assert "#SBATCH --exclude=node1\n" in succeeded(dry)
    (lab.root / "home/lacuna/bad-nodes-lab.json").unlink()


@pytest.mark.slow
def test_a_node_that_doctor_finds_bad_is_left_out_of_the_next_submission(
    lab: SlurmLab, cluster: Cluster, small_recipe: Path, tmp_path: Path
) -> None:
    fault = 'case "$SLURMD_NODENAME" in node2) export TMPDIR=/proc/none;; esac'
    file = cluster(python=_python(tmp_path, fault))
    common = ["--cluster", file, "--gpus-per-node", "1"]
    result = lab.lacuna("doctor", "--nodes", "node1,node2", *common, "--json")
    assert "node2: temporary files: " in refusal(result, 3)
    found = json.loads(result.stdout)
    assert [rank["node"] for rank in found["ranks"]] == ["node1", "node2"]
    assert list(found["exclude"]) == ["node2"]
    run = tmp_path / "run"
    dry = lab.lacuna("submit", small_recipe, *common, "--run", run, "--dry-run")
    assert "#SBATCH --exclude=node2\n" in succeeded(dry)
    (job,) = _submit(lab, small_recipe, file, run)
    assert lab.wait_for_end(job) == "COMPLETED", _log(run, job)
    assert [attempt["nodes"] for attempt in _attempts(run)] == [["node1", "node3"]]
    (lab.root / "home/lacuna/bad-nodes-lab.json").unlink()


def test_before_the_time_limit_it_saves_requeues_and_goes_on_until_it_is_told_to_stop(
    lab: SlurmLab, cluster: Cluster, small_recipe: Path, tmp_path: Path
) -> None:
    """Slurm's own warning, once the limit is lowered to a minute or two from now; then `lacuna stop`. All of it is one
    MLflow run.
    """
    run, uri = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    tracking = ["tracking.enabled=true", f"tracking.uri={uri}"]
    (job,) = _submit(lab, small_recipe, cluster(time="60", grace=100), run, *ENDLESS, *tracking)
    wait_for("steps", lambda: _lines(run, 0) > 3, 400)
    lab.run("scontrol", "update", f"JobId={job}", f"TimeLimit={lab.seconds_running(job) // 60 + 2}")
    wait_for("requeue", lambda: lab.restarts(job) == 1, 400)
    lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_for("steps of the second attempt", lambda: _lines(run, 1) > 3, 400)
    (found,) = json.loads(succeeded(lab.lacuna("status", run, "--json")))
    assert (found["state"], found["jobs"], found["steps"], found["restarts"]) == ("running", [job], 1000000, 1)
    assert found["step"] >= found["checkpoint"] > 0
    assert found["eta_seconds"] > 0 < found["tokens_per_second"]
    assert "rank 1 of 2 starts" in succeeded(lab.lacuna("logs", run, "--rank", "1", "--attempt", "0"))
    assert f"job {job} saves and ends" in succeeded(lab.lacuna("stop", run))
    assert lab.wait_for_end(job) == "FAILED"
    assert lab.job(job, "ExitCode") == "75:0"
    first, second = _attempts(run)
    assert [(a["outcome"], a["exit_code"], a["restart"]) for a in (first, second)] == [
        ("stopped", 75, 0),
        ("stopped", 75, 1),
    ]
    assert second["from_step"] > 3
    last = _steps_once_each(run)
    assert [entry.step for entry in list_checkpoints(run / "checkpoints")][-1] == last
    assert f"stopped at step {second['from_step']} of 1000000 on request" in _log(run, job)
    succeeded(lab.lacuna("track", "sync", run))
    client = MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (shown,) = client.search_runs(experiments)
    assert [p.step for p in client.get_metric_history(shown.info.run_id, "train/loss")] == list(range(1, last + 1))


def test_the_guilty_rank_is_named_and_a_crash_loop_ends(
    lab: SlurmLab, cluster: Cluster, small_recipe: Path, tmp_path: Path
) -> None:
    """On the first node Python is missing at first; the second attempt is made elsewhere."""
    fault = 'case "$SLURMD_NODENAME $*" in "node1 "*launch.slurm.begin*) exit 127;; esac\n'
    fault += 'case "$SLURM_PROCID $*" in "1 "*launch.worker*) exit 42;; esac'
    run = tmp_path / 'it\'s a $(touch harm) `run`; "x"'  # Slurm and bash get hostile names as they are
    (job,) = _submit(lab, small_recipe, cluster(python=_python(tmp_path, fault), give_up_after=2), run)
    assert lab.wait_for_end(job) == "FAILED"
    assert lab.job(job, "ExitCode") == "42:0", _log(run, job)
    reasons = [a["reason"] for a in _attempts(run)]
    assert len(reasons) == 2
    assert "node1 cannot start an attempt (code 127)" in _log(run, job)
    bad = lab.root / "home/lacuna/bad-nodes-lab.json"
    assert bad_nodes(bad) == {"node1": "the job's script could not start an attempt (code 127)"}
    bad.unlink()
    assert [a["nodes"] for a in _attempts(run)] == 2 * [["node2", "node3"]]
    assert reasons[0] == f"rank 1 on node3 ended with code 42 and no word; see {run}/logs/0"
    assert not list(tmp_path.rglob("harm"))
    assert reasons[1].endswith("; 2 attempts in a row brought no checkpoint: given up")


def test_a_chain_of_three_jobs_is_one_training(
    lab: SlurmLab, cluster: Cluster, small_recipe: Path, tmp_path: Path
) -> None:
    """A node turns bad on the way. The commands that `submit` prints are used as they stand."""
    run = tmp_path / "a run"
    bad = tmp_path / "bad.json"
    file = cluster(bad_nodes={"file": str(bad)})
    common = ["--cluster", file, "--nodes", "2", "--gpus-per-node", "1", "--run", run]
    size = ["--chain", "3", "train.steps=300", "checkpoint.every=1000"]
    first, *told = succeeded(lab.lacuna("submit", small_recipe, *common, *size)).splitlines()
    printed = re.fullmatch(r"job (\d+), (\d+), (\d+): 2 ranks, megatron dp2.*, about [\d.]+ ?[KMG]?B a rank", first)
    assert printed, first
    jobs = list(printed.groups())
    assert told == [
        f"  script   {run}/submit.sbatch",
        f"  follow   lacuna status '{run}' --watch",
        f"           lacuna logs '{run}' --follow",
        f"  stop     lacuna stop '{run}'",
    ]
    follow = [sys.executable, "-m", "launch.cli", *shlex.split(told[2])[1:]]
    follower = subprocess.Popen(follow, env=lab.environment, stdout=subprocess.PIPE, text=True)
    remember(bad, {"node1": "found since"}, days=1)
    line = refusal(lab.lacuna("submit", small_recipe, "--cluster", cluster(), "--gpus-per-node", "1", "--run", run))
    assert f"has jobs in the queue: {', '.join(jobs)}; " in line
    for link in range(2):
        wait_for(f"steps of link {link}", lambda link=link: _lines(run, link) > 2, 400)
        lab.run("scancel", "--batch", "--signal=USR2", jobs[link])
    assert [lab.wait_for_end(job) for job in jobs] == ["FAILED", "FAILED", "COMPLETED"]
    assert [(a["job"], a["exit_code"]) for a in _attempts(run)] == list(zip(jobs, [75, 75, 0], strict=True))
    assert _steps_once_each(run) == 300
    assert follower.communicate(timeout=60)[0].count("rank 0 of 2 starts") == 3
    assert follower.returncode == 0
    assert [a["nodes"] for a in _attempts(run)] == [["node1", "node2"], ["node2", "node3"], ["node2", "node3"]]


def test_slurmctld_killed_as_it_takes_the_job(
    lab: SlurmLab, cluster: Cluster, small_recipe: Path, tmp_path: Path
) -> None:
    """sbatch is heard by the controller, and the answer never comes: still there is one job."""
    real, mark = shutil.which("sbatch"), tmp_path / "mark"
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f"""#!/bin/sh
        case "$*" in *--test-only*) exec {real} "$@";; esac
        [ -e {mark} ] && exec {real} "$@"
        {real} "$@" >/dev/null
        sleep 1
        kill -9 $(cat {lab.root}/slurmctld.pid)
        touch {mark}
        echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2
        exit 1"""
    )
    sbatch.chmod(0o755)
    began = time.time()
    lab.run("scontrol", "update", "NodeName=node[1-3]", "State=DRAIN", "Reason=test")
    kept = lab.root / "state/node_state"  # what a controller that is killed knows afterwards
    wait_for("drained nodes on disk", lambda: kept.exists() and kept.stat().st_mtime > began, 60)

    def revive() -> None:
        wait_for("sbatch", mark.exists, 400)
        time.sleep(4)
        lab.start_controller()

    reviver = threading.Thread(target=revive)
    reviver.start()
    path = {"PATH": f"{sbatch.parent}:{lab.environment['PATH']}"}
    common = ["--cluster", cluster(), "--gpus-per-node", "1", "--run", tmp_path / "run", "--json"]
    result = lab.lacuna("submit", small_recipe, *common, environment=path)
    reviver.join()
    jobs = json.loads(succeeded(result))["jobs"]

    def queued() -> list[str]:
        """This run's jobs: a controller that was killed may know again what has just ended."""
        lines = lab.run("squeue", "-h", "-o", "%A %o").splitlines()
        return [line.split()[0] for line in lines if str(tmp_path) in line]

    assert queued() == jobs
    assert "no node that is up could run this job now" in result.stderr
    succeeded(lab.lacuna("stop", tmp_path / "run"))
    assert queued() == []
    bad = lab.root / "home/lacuna/bad-nodes-lab.json"
    remember(bad, {"node3": "found since"}, days=1)
    assert "is in the queue" in succeeded(lab.lacuna("requeue", tmp_path / "run"))
    (again,) = queued()
    assert lab.job(again, "ExcNodeList") == "node3"
    bad.unlink()
    remember(bad, {"node2": "found later"}, days=1)
    assert "is waiting already" in succeeded(lab.lacuna("requeue", tmp_path / "run"))
    assert lab.job(again, "ExcNodeList") == "node2"
    bad.unlink()
    (found,) = json.loads(succeeded(lab.lacuna("status", tmp_path / "run", "--json")))
    assert (found["state"], found["jobs"], found["step"]) == ("pending", [again], 0)
    with suppress(AssertionError):  # the controller that was killed may have forgotten that they are drained
        lab.run("scontrol", "update", "NodeName=node[1-3]", "State=RESUME")


def test_what_slurm_would_leave_waiting_forever_is_refused(
    lab: SlurmLab, cluster: Cluster, small_recipe: Path, tmp_path: Path
) -> None:
    def line(*options: str, **changes: Any) -> str:
        common = ["--cluster", cluster(**changes), "--gpus-per-node", "1", "--run", tmp_path / "run"]
        result = lab.lacuna("submit", small_recipe, *common, *options)
        return refusal(result, result.returncode)

    assert "--nodes 8 is more than the 3 nodes of partition train" in line("--nodes", "8", "train.global_batch=32")
    assert "--time 3:00:00 is above the limit 2:00:00 of partition train" in line("--time", "3:00:00")
    assert "partition 'nope' does not exist" in line(partition="nope")
    assert not (tmp_path / "run").exists()
    assert "Invalid feature specification" in line(constraint="volta")
    assert lab.run("squeue", "-h") == ""
