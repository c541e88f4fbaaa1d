"""Faults that a cluster really has, on a real Slurm; writes what was seen into docs/slurm.md.

`python -m tests.prove.slurm` runs all of them (root, Debian's slurm-wlm and munge; some minutes); names of scenarios
as arguments run those only, and leave the rows of the others as they are.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from parallel.checkpoint.catalogue import list_checkpoints, published_checkpoints
from parallel.checkpoint.manifest import CheckpointManifest
from pretrain.tracking.spool import read_metrics
from runtime.errors import UserError
from tests.prove.page import renew_rows
from tests.support.command_line import succeeded
from tests.support.slurm_lab import SlurmLab, missing, wait_for
from tests.support.small_recipe import write_small_recipe

_SECONDS = 600.0
NAME, HEAD = "faults", ("| fault | seen |", "|---|---|")


class Trial:
    """One run in the lab, and what is asked of it again and again."""

    def __init__(self, lab: SlurmLab, folder: Path, recipe: Path) -> None:
        self.lab, self.run, self._folder, self._recipe = lab, folder / "run", folder, recipe

    def submit(self, nodes: int, *overrides: str, **cluster: Any) -> str:
        """Submit an endless run with a checkpoint every 20 steps; returns the job."""
        values = {
            "name": "lab",
            "cpus_per_task": 1,
            "memory": "1G",
            "time": "01:00:00",
            "grace": 30,
            "give_up_after": 50,
        }
        (self._folder / "lab.yaml").write_text(yaml.safe_dump(values | cluster))
        size = ["--nodes", str(nodes), "--gpus-per-node", "1", "--cluster", str(self._folder / "lab.yaml")]
        endless = ["train.steps=1000000", "checkpoint.every=20", "checkpoint.keep=3", *overrides]
        answer = self.lab.lacuna("submit", self._recipe, *size, "--run", self.run, "--json", *endless)
        return str(json.loads(succeeded(answer))["jobs"][0])

    def take_all_nodes(self) -> str:
        """Submit a job of a higher tier, for 15 s; returns it."""
        options = ["--parsable", "--partition=train", "--nodes=3", "--exclusive", "--output=/dev/null"]
        return self.lab.run("sbatch", *options, "--wrap=sleep 15").strip()

    def attempts(self) -> list[dict[str, Any]]:
        """From run.json."""
        found: list[dict[str, Any]] = json.loads((self.run / "run.json").read_text())["attempts"]
        return found

    def steps_of(self, attempt: int) -> list[int]:
        """Steps that an attempt has written."""
        path = self.run / "metrics.jsonl"
        return [m["step"] for m in read_metrics(path) if m["run/attempt"] == attempt] if path.exists() else []

    def wait_for_attempt(self, attempt: int) -> list[str]:
        """Wait until an attempt has trained past its first checkpoint; returns its nodes."""
        wait_for(f"attempt {attempt}", lambda: len(self.steps_of(attempt)) > 25, _SECONDS)
        nodes: list[str] = self.attempts()[attempt]["nodes"]
        return nodes

    def finish(self, job: str) -> str:
        """Stop the run; every step must stand once in its metrics, every checkpoint must be valid."""
        succeeded(self.lab.lacuna("stop", self.run))
        self.lab.wait_for_end(job, _SECONDS)
        steps = [line["step"] for line in read_metrics(self.run / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1)), "a step is missing or stands twice"
        entries = list_checkpoints(self.run / "checkpoints")
        assert entries
        assert all(entry.valid for entry in entries), entries
        assert entries[-1].step == steps[-1]
        return f"{len(steps)} steps, each once, over {len(self.attempts())} attempts; all checkpoints valid"


def power_off(trial: Trial) -> str:
    """The node with the job's script and rank 0 loses its power."""
    job = trial.submit(2)
    first = trial.wait_for_attempt(0)
    began = time.monotonic()
    trial.lab.power_off(first[0])
    wait_for("requeue", lambda: trial.lab.restarts(job) == 1, _SECONDS)
    noticed = time.monotonic() - began
    second = trial.wait_for_attempt(1)
    assert first[0] not in second
    trial.lab.start_slurmd(first[0])
    return f"requeued after {noticed:.0f} s, from {'+'.join(first)} to {'+'.join(second)}; {trial.finish(job)}"


def split_brain(trial: Trial) -> str:
    """slurmd dies and its task lives: Slurm starts the job elsewhere while the old rank still trains."""
    job = trial.submit(1)
    (old,) = trial.wait_for_attempt(0)
    orphans = [p for p in trial.lab.processes(old) if "launch.worker" in p.cmdline()]
    trial.lab.kill_slurmd(old)
    wait_for("requeue", lambda: trial.lab.restarts(job) == 1, _SECONDS)
    wait_for("second attempt", lambda: len(trial.attempts()) == 2, _SECONDS)
    began = time.monotonic()
    assert any(p.is_running() for p in orphans), "the orphan must live for this to be a proof"
    authors: set[tuple[int, int]] = set()  # step and attempt of all checkpoints that were ever seen

    def orphan_ended() -> bool:
        for step, path in published_checkpoints(trial.run / "checkpoints"):
            with suppress(UserError, OSError):  # it is being replaced by a newer one
                authors.add((step, CheckpointManifest.read(path).provenance["attempt"]))
        return not any(p.is_running() for p in orphans)

    wait_for("end of the orphan", orphan_ended, _SECONDS)
    ended = time.monotonic() - began
    (new,) = trial.wait_for_attempt(1)
    assert new != old
    words = json.loads((trial.run / "logs/0/failure-00000.json").read_text())["message"]
    assert "was taken over" in words, words
    trial.lab.power_off(old)
    trial.lab.start_slurmd(old)
    finished = trial.finish(job)
    assert orphan_ended()
    taken = trial.steps_of(1)[0]  # the new attempt went on from the step before
    assert max(trial.steps_of(0)) < taken
    later = [attempt for step, attempt in authors if step >= taken]
    assert later, "no checkpoint was seen after the takeover"
    assert set(later) == {1}, authors
    told = words.replace(str(trial.run), "RUN").partition("(")[0].strip()
    return (
        f"the orphan ended {ended:.0f} s after the new attempt began (“{told}”); of {len(later)} later checkpoints "
        f"none was its own; {finished}"
    )


def preemption(trial: Trial) -> str:
    """A job of a higher tier takes all nodes; the partition has a grace time."""
    job = trial.submit(2, partition="preempt")
    trial.wait_for_attempt(0)
    blocker = trial.take_all_nodes()
    wait_for("requeue", lambda: trial.lab.restarts(job) == 1, _SECONDS)
    trial.wait_for_attempt(1)
    first, second = trial.attempts()[:2]
    assert trial.lab.job(blocker, "JobState") == "COMPLETED"
    assert (first["outcome"], first["exit_code"]) == ("stopped", 75), first
    assert second["from_step"] > 0
    return f"saved at step {second['from_step']}, waited for the other job, went on; {trial.finish(job)}"


def preemption_of_steps(trial: Trial) -> str:
    """As `preemption`, twice, on a Slurm that ends the steps and tells the script nothing: at first during the health
    check, for which no node is to blame, then in training.
    """
    slow = trial.run.parent / "slow"
    slow.touch()
    python = trial.run.parent / "python"
    wait = f'case "$*" in *launch.slurm.health*) [ ! -e {slow} ] || exec sleep 300;; esac'
    python.write_text(f'#!/bin/sh\n{wait}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = trial.submit(2, partition="preempt", python=str(python))
    wait_for("attempt 0", lambda: len(trial.attempts()) == 1, _SECONDS)
    wait_for("health check", lambda: "sleep" in [p.name() for p in trial.lab.processes("node1")], _SECONDS)
    trial.take_all_nodes()
    wait_for("requeue", lambda: trial.lab.restarts(job) == 1, _SECONDS)
    slow.unlink()
    trial.wait_for_attempt(1)
    trial.take_all_nodes()
    wait_for("second requeue", lambda: trial.lab.restarts(job) == 2, _SECONDS)
    trial.wait_for_attempt(2)
    checked, trained, last = trial.attempts()
    assert (checked["outcome"], checked["exit_code"], checked["reason"]) == (
        "stopped",
        75,
        "stopped before the ranks started",
    ), checked
    assert not list(trial.lab.root.glob("home/lacuna/bad-nodes-*")), "a node was blamed"
    assert (trained["outcome"], trained["exit_code"]) == ("stopped", 75), trained
    assert last["from_step"] > 0
    return f"no node blamed for the check; saved at step {last['from_step']}, went on; {trial.finish(job)}"


def deaf(trial: Trial) -> str:
    """The rank on the second node is stopped, and then the job is warned: it must not run into its limit."""
    job = trial.submit(2)
    first = trial.wait_for_attempt(0)
    (stopped,) = [p for p in trial.lab.processes(first[1]) if "launch.worker" in p.cmdline() and "python" in p.name()]
    stopped.suspend()
    began = time.monotonic()
    assert "saves and goes back" in succeeded(trial.lab.lacuna("requeue", trial.run))
    wait_for("requeue", lambda: trial.lab.restarts(job) == 1, _SECONDS)
    taken = time.monotonic() - began
    trial.wait_for_attempt(1)
    ended = trial.attempts()[0]
    assert (ended["outcome"], ended["exit_code"]) == ("stopped", 75), ended
    assert taken > 15, "the ranks had half of the grace of 30 s"
    told = ended["reason"].partition("; see ")[0]
    return f"“{told}”, requeued {taken:.0f} s after the warning; {trial.finish(job)}"


def prolog_failure(trial: Trial) -> str:
    """Slurm's prolog fails on a node: Slurm drains it and holds the job."""
    (trial.lab.root / "bad-prolog/node1").touch()
    job = trial.submit(2)
    wait_for("a held job", lambda: "held" in trial.lab.job(job, "Reason").lower(), _SECONDS)
    reason = trial.lab.job(job, "Reason").replace("_", " ")
    (found,) = json.loads(succeeded(trial.lab.lacuna("status", trial.run, "--json")))
    assert (found["state"], found["reason"]) == ("pending", reason)
    assert f"job {job} is released" in succeeded(trial.lab.lacuna("requeue", trial.run))
    nodes = trial.wait_for_attempt(0)
    assert "node1" not in nodes
    (trial.lab.root / "bad-prolog/node1").unlink()
    return f"`{reason}`, shown by status; after `lacuna requeue` on {'+'.join(nodes)}; {trial.finish(job)}"


def one_mlflow_run(trial: Trial) -> str:
    """Warned as before the time limit, requeued: all attempts are one MLflow run, every step once."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{trial.run.parent}/mlflow.db"
    job = trial.submit(2, "tracking.enabled=true", f"tracking.uri={uri}", "train.log_every=5")
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "lacuna"]
    (made,) = client.search_runs([experiment.experiment_id])
    wait_for("steps", lambda: len(trial.steps_of(0)) > 5, _SECONDS)
    assert "saves and goes back" in succeeded(trial.lab.lacuna("requeue", trial.run))
    wait_for("steps of the second attempt", lambda: len(trial.attempts()) == 2 and len(trial.steps_of(1)) > 5, _SECONDS)
    succeeded(trial.lab.lacuna("stop", trial.run))
    trial.lab.wait_for_end(job, _SECONDS)
    succeeded(trial.lab.lacuna("track", "sync", trial.run))
    (shown,) = client.search_runs([experiment.experiment_id])
    assert shown.info.run_id == made.info.run_id
    points = [point.step for point in client.get_metric_history(shown.info.run_id, "train/loss")]
    assert points == [line["step"] for line in read_metrics(trial.run / "metrics.jsonl")]
    assert len(set(points)) == len(points)
    return f"one MLflow run ({shown.info.status}), {len(points)} points of the loss over 2 attempts, each step once"


def hang(trial: Trial) -> str:
    """The rank on the second node is stopped, after nodes were measured against each other."""
    limits = (f"watchdog.{phase}=8" for phase in ("data", "collective", "step", "save"))
    job = trial.submit(2, *limits, health="measures")
    first = trial.wait_for_attempt(0)
    (stopped,) = [p for p in trial.lab.processes(first[1]) if "launch.worker" in p.cmdline() and "python" in p.name()]
    stopped.suspend()
    began = time.monotonic()
    wait_for("requeue", lambda: trial.lab.restarts(job) == 1, _SECONDS)
    noticed = time.monotonic() - began
    trial.wait_for_attempt(1)
    ended = trial.attempts()[0]
    assert ended["exit_code"] == 76, ended
    assert ended["reason"].startswith("rank 1 on "), ended
    measured = json.loads((trial.run / "logs/0/doctor.json").read_text())
    assert measured["ok"], measured
    assert len(measured["ranks"]) == 2
    return f"“{ended['reason'].partition(';')[0]}”, requeued after {noticed:.0f} s; {trial.finish(job)}"


SCENARIOS: dict[str, tuple[str, Callable[[Trial], str]]] = {
    "power-off": ("power of the first node fails", power_off),
    "split-brain": ("slurmd dies, its task lives", split_brain),
    "preemption": ("preempted, with a grace time", preemption),
    "preemption-steps": (
        "preempted twice, only the steps are told: in the health check, in training",
        preemption_of_steps,
    ),
    "deaf": ("warned while a rank is stopped (grace of 30 s)", deaf),
    "mlflow": ("warned before the time limit, with MLflow", one_mlflow_run),
    "hang": ("a rank is stopped (limits of 8 s)", hang),
    "prolog": ("prolog fails on a node", prolog_failure),
}


def prove(name: str, work: Path, recipe: Path) -> str:
    """Run a scenario in a lab of its own; returns what was seen. Raises AssertionError or TimeoutError."""
    here = work / name
    here.mkdir()
    root = Path(tempfile.mkdtemp(prefix="lacuna-lab-", dir="/tmp"))
    with SlurmLab(root, preempt_warning=name != "preemption-steps") as lab:
        return SCENARIOS[name][1](Trial(lab, here, recipe))


def main() -> None:
    """Parse arguments, run, and rewrite the table between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS])
    parser.add_argument("--page", type=Path, default=Path("docs/slurm.md"))
    options = parser.parse_args()
    reason = missing()
    if reason:
        sys.exit(f"no Slurm lab: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab goes too
    with tempfile.TemporaryDirectory(prefix="lacuna-prove-") as folder:
        recipe = write_small_recipe(Path(folder))
        for name in options.scenarios or list(SCENARIOS):
            seen = prove(name, Path(folder), recipe)
            print(f"{name}: {seen}", file=sys.stderr, flush=True)
            row = f"| {SCENARIOS[name][0]} | {seen} |"
            renew_rows(options.page, NAME, HEAD, {SCENARIOS[name][0]: row}, [what for what, _ in SCENARIOS.values()])


if __name__ == "__main__":
    main()
