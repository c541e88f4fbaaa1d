"""Runs that stop, continue, break and are killed: every one a real launch, with as much asked of it as it can tell."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest
import yaml

from data_pipeline.dataset import SampleReader
from parallel.checkpoint.catalogue import list_checkpoints, verify_checkpoint
from pretrain.config import RunConfig
from pretrain.tracking.spool import read_metrics
from runtime.settings import read_yaml
from tests.support.command_line import ENVIRONMENT, LACUNA, contents, lacuna, refusal, succeeded
from tests.support.damage import flip_bit
from tests.support.launched import ENDLESS, Launched
from tests.support.mounting import mounting_command
from tests.support.ports import free_ports
from tests.support.slurm_lab import wait_for

Here = Callable[..., "CompletedProcess[str]"]


def _steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run / "metrics.jsonl")]


def _checkpoints(run: Path) -> list[int]:
    """Steps of the checkpoints, all of which must be valid, with nothing half-written beside them."""
    entries = list_checkpoints(run / "checkpoints")
    assert all(entry.valid for entry in entries)
    assert sorted(os.listdir(run / "checkpoints")) == ["LATEST", *(entry.path.name for entry in entries)]
    return [entry.step for entry in entries]


def _attempts(run: Path) -> list[dict[str, Any]]:
    attempts: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["attempts"]
    return attempts


def test_a_damaged_newest_checkpoint_and_the_way_out(here: Here, recipe: Path, run: Path, tmp_path: Path) -> None:
    assert _steps(run) == [1, 2, 3, 4]
    before = contents(run / "checkpoints")
    shard = run / "checkpoints/step-00000004/shard-00000.safetensors"
    flip_bit(shard, seed=1)
    line = refusal(lacuna("train", recipe, "--run", run))
    assert line.startswith(f"{shard} does not match its digest")
    assert line.endswith("step-00000002: --fallback continues from it")
    assert {p: d for p, d in contents(run / "checkpoints").items() if "step-00000004/shard" not in p} == {
        p: d for p, d in before.items() if "step-00000004/shard" not in p
    }
    succeeded(lacuna("train", recipe, "--run", run, "--fallback"))
    aside = run / "checkpoints/set-aside-0"
    assert os.listdir(aside) == ["step-00000004"]
    aside.rename(tmp_path / "aside")
    assert _steps(run) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert _checkpoints(run) == [4, 6, 8]
    assert [a["outcome"] for a in _attempts(run)] == ["paused", "failed", "finished"]
    succeeded(here("train", recipe, "--run", run, "--dry-run"))  # a finished run may be asked again


def _stopped_at(result: "CompletedProcess[str]", run: Path) -> int:
    """The step that a stopped run names, at which it must have saved."""
    assert result.returncode == 75, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1].removeprefix("lacuna: ")
    words = line.split()
    assert words[:3] == ["stopped", "at", "step"], line
    assert line.endswith("on request; start again with the same --run to continue")
    step = int(words[3])
    assert _checkpoints(run)[-1] == step
    assert _steps(run) == list(range(1, step + 1))
    assert _attempts(run)[-1]["outcome"] == "stopped"
    return step


def test_sigterm_to_a_single_process_saves_and_the_run_completes(recipe: Path, tmp_path: Path) -> None:
    run, began = tmp_path / "run", time.time()
    launched = Launched(recipe, run, LACUNA_STARTED=f"{began}")
    launched.process.send_signal(signal.SIGTERM)
    step = _stopped_at(launched.end(), run)
    succeeded(lacuna("train", recipe, "--run", run, f"train.steps={step + 2}"))
    accounts = json.loads((run / "goodput.json").read_text())
    kinds = [accounts[kind] for kind in ("productive", "data_wait", "checkpoint", "restart", "lost")]
    assert sum(kinds) == pytest.approx(accounts["time"] - began, rel=0.01)
    assert (min(kinds[:4]) > 0, kinds[4], accounts["lost_steps"], accounts["restarts"]) == (True, 0, 0, 1)
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert (last["faults/restarts"], 0 < last["goodput/share"] < 1) == (1, True)
    assert _steps(run) == list(range(1, step + 3))
    assert _checkpoints(run)[-1] == step + 2
    assert [a["outcome"] for a in _attempts(run)] == ["stopped", "finished"]


def test_sigusr2_to_the_launcher_of_two_processes_and_on_under_plain_torchrun(
    here: Here, recipe: Path, tmp_path: Path
) -> None:
    """Slurm's warning signal reaches the workers; the same worker runs without our launcher."""
    run = tmp_path / "run"
    launched = Launched(recipe, run, "--processes", "2")
    assert "is being trained by another process" in refusal(here("train", recipe, "--run", run, *ENDLESS))
    launched.process.send_signal(signal.SIGUSR2)
    step = _stopped_at(launched.end(), run)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "launch.worker", str(run), str(step + 2)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert _steps(run) == list(range(1, step + 3))
    assert _checkpoints(run)[-1] == step + 2


def test_sigterm_at_the_birth_of_the_workers(recipe: Path, tmp_path: Path) -> None:
    """A worker that died of it would be waited for by the other."""
    launched = Launched(recipe, tmp_path / "run", "--processes", "2", at_birth=True)
    launched.process.send_signal(signal.SIGTERM)
    result = launched.end()
    assert result.returncode == 75, result.stderr
    assert result.stderr.splitlines()[-1].endswith("start again with the same --run to continue")
    assert _attempts(tmp_path / "run")[-1]["outcome"] == "stopped"


def test_sigterm_ends_a_rank_whose_peers_do_not_come(here: Here, recipe: Path, tmp_path: Path) -> None:
    """As launchers end the peers of a rank that has died; noted only, it would wait for them in vain."""
    run, port = tmp_path / "run", free_ports()
    succeeded(here("train", recipe, "--run", run, "--processes", "2", "--prepare"))
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "launch.worker", str(run)]
    with subprocess.Popen(command, env=ENVIRONMENT | place, stderr=subprocess.PIPE) as process:
        wait_for("the meeting point", lambda: _listens(process.pid, port), 200)
        process.terminate()
        assert process.wait(timeout=60) == -signal.SIGTERM


def test_a_rank_that_does_not_come_is_named(here: Here, recipe: Path, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_ports()
    succeeded(here("train", recipe, "--run", run, "--processes", "2", "--prepare", "watchdog.start=3"))
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "launch.worker", str(run)]
    ended = subprocess.run(command, env=ENVIRONMENT | place, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 76, ended
    said = "lacuna: rank 1 (it never gave a sign of life) hangs; rank 0 waited 3 s in start of step 0; stacks in "
    assert ended.stderr.splitlines()[-1].startswith(said)


def _listens(process: int, port: int) -> bool:
    return any(c.laddr.port == port and c.status == "LISTEN" for c in psutil.Process(process).net_connections())


def test_sigterm_and_then_a_killed_rank(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched = Launched(recipe, run, "--processes", "2")
    launched.process.send_signal(signal.SIGTERM)
    step = _stopped_at(launched.end(), run)
    os.truncate(run / "metrics.jsonl", 0)  # so that the next launch is waited for
    launched = Launched(recipe, run, "--processes", "2")
    launched.workers()[1].kill()
    result = launched.end()
    assert result.returncode == 1
    assert "lacuna: rank 1 was killed by SIGKILL, often for want of memory" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert _checkpoints(run) == [step]
    assert _attempts(run)[-1]["outcome"] == "failed"


def test_a_flipped_bit_in_a_shard_is_named_when_it_is_read(damaged_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    for path in dataset.glob("train-*[0-9].arrow"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    line = refusal(lacuna("train", damaged_recipe, "--run", tmp_path / "run"))
    assert line.startswith(str(dataset / "train-0000"))
    assert "is damaged (its digest does not fit): " in line
    assert [(a["outcome"], a["exit_code"]) for a in _attempts(tmp_path / "run")] == [("failed", 2)]


def test_a_flipped_bit_that_only_the_second_rank_reads(damaged_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """The rank that lost its peer knows less than the one that read the shard, which is believed."""
    config = RunConfig.parse(read_yaml(damaged_recipe), "recipe")
    reader = SampleReader(config.data, 32, config.train.seed)

    def batches(samples: range) -> set[tuple[int, int]]:
        """Shard and record batch of every token, for sequences that cross no border."""
        found = set()
        for i in samples:
            first = reader.locate(i)[2] * 32
            for token in (first, first + 31):
                shard = next(k for k, end in enumerate(ends) if token < end)
                start = ends[shard - 1] if shard else 0
                found.add((shard, (token - start) // 512))
        return found

    ends = reader.datasets[0].shards.table.starts[1:].tolist()
    shard, batch = sorted(batches(range(4, 8)) - batches(range(4)) - batches(range(8, 12)))[0]
    view = reader.datasets[0].shards[shard].batch(batch)
    path = dataset / reader.datasets[0].shards[shard].info.file.name
    data = bytearray(path.read_bytes())
    data[bytes(data).index(view.tobytes())] ^= 1
    path.write_bytes(data)
    line = refusal(lacuna("train", damaged_recipe, "--run", tmp_path / "run", "--processes", "2"))
    assert line.startswith(f"{path}: record batch {batch} is damaged (its digest does not fit): ")
    assert [a["outcome"] for a in _attempts(tmp_path / "run")] == ["failed"]


def _mounting() -> list[str]:
    """A command that gives a process file systems of its own, or a skipped test that says why."""
    prefix = mounting_command()
    if prefix is None:
        pytest.skip("neither root nor user namespaces may mount a small disk here")
    return prefix


_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1k tmpfs "$2" || exit 99
mkdir -p "$3"
shift 2; mirror=$1; shift
"$@"; code=$?
cp -a "$0/." "$mirror"
exit $code
"""


def _train_on_small_disk(kilobytes: int, disk: Path, mirror: Path, *arguments: str) -> "CompletedProcess[str]":
    """Run with a disk of that size on `disk`; what it held at the end is in `mirror`."""
    disk.mkdir(parents=True)
    script = [*_mounting(), "sh", "-c", _ON_A_SMALL_DISK, str(disk), str(kilobytes), str(disk), str(mirror)]
    return subprocess.run(
        [*script, *LACUNA, *arguments], capture_output=True, text=True, check=False, timeout=200, env=ENVIRONMENT
    )


@pytest.mark.parametrize(("background", "every"), [("false", 2), ("true", 4)])
def test_a_disk_that_holds_one_checkpoint(
    here: Here, recipe: Path, half_run: Path, tmp_path: Path, background: str, every: int
) -> None:
    """Training goes on without the saves that find no room; the last one must succeed."""
    size = sum(p.stat().st_size for p in (half_run / "checkpoints/step-00000002").iterdir())
    run, kept = tmp_path / "run", tmp_path / "kept"
    changes = [f"checkpoint.async={background}", f"checkpoint.every={every}"]
    arguments = ["train", str(recipe), "--run", str(run), *changes]
    result = _train_on_small_disk(size * 3 // 2 // 1024, run / "checkpoints", kept, *arguments)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    for line, step in zip(lines, (4, 6, 8), strict=True):
        assert f"checkpoint of step {step} not saved: rank 0 could not write " in line
        assert "No space left on device" in line
        assert line.endswith("free some room, earlier ones are intact")
    assert sorted(os.listdir(kept)) == ["LATEST", "step-00000002"]
    assert "every digest matches" in succeeded(here("checkpoint", "verify", kept / "step-00000002"))
    assert verify_checkpoint(kept / "step-00000002").step == 2
    assert _attempts(run)[-1]["outcome"] == "failed"
    assert _steps(run) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_disk_too_full_even_for_words(recipe: Path, tmp_path: Path) -> None:
    """Metrics, logs and the reason itself find no room, and still it is one line, after those of progress."""
    run = tmp_path / "run"
    result = _train_on_small_disk(200, run, tmp_path / "kept", "train", str(recipe), "--run", str(run), *ENDLESS)
    assert result.returncode == 2
    *progress, line = result.stderr.splitlines()
    assert all(told.startswith("tiny: ") for told in progress)
    assert line.startswith("lacuna: ")
    assert "No space left on device" in line
    assert line.endswith("free some room, start again with the same --run to continue")


# MLflow's own store uses a loader strategy that SQLAlchemy 2.1 deprecates
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_track_sync_shows_a_run_in_mlflow_and_repair_mends_its_end(run: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    report = json.loads(succeeded(lacuna("track", "sync", run, "--uri", uri, "--json")))
    assert report["steps"] == 4
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    shown = client.get_run(report["run_id"])
    assert shown.info.status == "KILLED"  # it was told to pause before its last step
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert str(config["train"]["seed"]) in shown.data.params.values()
    points = client.get_metric_history(report["run_id"], "train/loss")
    expected = [(line["step"], line["train/loss"]) for line in read_metrics(run / "metrics.jsonl")]
    assert [(point.step, point.value) for point in points] == expected
    config["tracking"] |= {"enabled": True, "uri": uri}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    metadata = json.loads((run / "run.json").read_text())
    del metadata["attempts"][-1]["outcome"]  # as if all its processes had been killed
    (run / "run.json").write_text(json.dumps(metadata))
    result = lacuna("status", run, "--repair", "--json")
    assert json.loads(succeeded(result))[0]["state"] == "failed"
    assert [line.partition(": ")[2] for line in result.stderr.splitlines()] == [
        f"{run}: its last attempt ended without a word: its node or its job was killed; noted as failed",
        f"{run}: MLflow run {report['run_id']} shows how it ended",
    ]
    assert client.get_run(report["run_id"]).info.status == "FAILED"
    assert json.loads(succeeded(lacuna("track", "sync", run, "--json")))["points"] == 0
