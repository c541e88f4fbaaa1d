"""`lacuna doctor`: what it finds, whom it names, and what it leaves alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from data_pipeline.config import RemoteConfig
from data_pipeline.manifest import DatasetManifest
from launch.doctor.diagnose import diagnose
from launch.doctor.gpus import gpu_problems, parse_smi, parse_xids
from launch.doctor.local import Subject, look_at_data
from launch.doctor.measure import rounds
from launch.doctor.outliers import low_outliers
from launch.doctor.report import Bandwidth, Problem, RankReport
from launch.slurm.bad_nodes import bad_nodes
from launch.slurm.health import check_node, note_expectations
from launch.slurm.record import Submission, write_submission
from pretrain.run_directory import RunDirectory
from pretrain.tracking.facts import run_tags
from tests.support.command_line import ENVIRONMENT, refusal, succeeded
from tests.support.object_store import s3_server

Here = Callable[..., "CompletedProcess[str]"]

SMI = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <gpu id="00000000:18:00.0">
    <clocks_event_reasons><clocks_event_reason_hw_slowdown>{slowdown}</clocks_event_reason_hw_slowdown>
      <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle></clocks_event_reasons>
    <ecc_errors>
      <volatile><dram_correctable>7</dram_correctable><dram_uncorrectable>{uncorrectable}</dram_uncorrectable>
        <sram_uncorrectable_parity>N/A</sram_uncorrectable_parity></volatile>
      <aggregate><dram_uncorrectable>3</dram_uncorrectable></aggregate>
    </ecc_errors>
    <remapped_rows><remapped_row_pending>{pending}</remapped_row_pending>
      <remapped_row_failure>No</remapped_row_failure></remapped_rows>
  </gpu>
</nvidia_smi_log>
"""
WELL = {"slowdown": "Not Active", "uncorrectable": "0", "pending": "No"}


def reports(nodes: int, ranks: int, **changes: dict[str, object]) -> list[RankReport]:
    """`ranks` on each of `nodes`, all alike; `r3={...}` changes one."""
    found = []
    for rank in range(nodes * ranks):
        values: dict[str, object] = {"gemm": 100.0 + rank % 2, "versions": {"torch": "2"}, "data": {"/d": "abc"}}
        values |= changes.get(f"r{rank}", {})
        found.append(RankReport(rank, f"node{rank // ranks + 1}", **values))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("values", "outliers"),
    [
        ([100, 100, 100, 80], [3]),
        ([100, 101, 99, 86, 100], []),  # not 15 %
        ([100, 60, 140, 80, 120], []),  # they differ all
        ([100, 100, 10, 10, 100], [2, 3]),
        ([100, 50], []),
        ([50, 50, 50, 100], []),  # a fast one is no fault
    ],
)
def test_outliers_by_median_and_mad(values: list[float], outliers: list[int]) -> None:
    assert list(low_outliers(dict(enumerate(values)))) == outliers


def test_a_slow_rank_and_its_node_are_named() -> None:
    found = diagnose(reports(2, 4, r5={"gemm": 70.0}), [])
    assert found.exclude == {"node2": "matrix products at 70% of the median rank's rate"}
    assert [finding.line for finding in found.findings] == [
        "node2, rank 5: matrix products at 70% of the median rank's rate"
    ]
    assert diagnose(reports(2, 4), []).findings == ()


def test_what_differs_from_most_is_named() -> None:
    changes = {"versions": {"torch": "1"}, "data": {}, "clock": -2.5}
    found = diagnose(reports(3, 1, r1=changes), [])
    assert [finding.line for finding in found.findings] == [
        "node2: has torch 1, most have 2",
        "node2: has /d nothing, most have abc",
        "node2: its clock is 2.5 s behind",
    ]
    assert list(found.exclude) == ["node2"]


def test_what_is_nobodys_fault_excludes_nobody() -> None:
    everywhere = {f"r{rank}": {"problems": (Problem("imports", "cannot import torch"),)} for rank in range(3)}
    service = {"r0": {"problems": (Problem("tracking", "no answer"),)}}
    for changes in (everywhere, service):
        found = diagnose(reports(3, 1, **changes), [])
        assert found.findings
        assert found.exclude == {}


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8])
def test_pairs_go_round_the_ring_without_meeting(nodes: int) -> None:
    names = [f"n{rank // 2}" for rank in range(2 * nodes)]
    plan = rounds(names)
    assert plan[0] == [("world", tuple(range(2 * nodes)))]
    assert [name for name, _ in plan[1]] == [f"n{i}" for i in range(nodes)]
    pairs = [name for groups in plan[2:] for name, _ in groups]
    assert sorted(pairs) == sorted(f"n{i}+n{(i + 1) % nodes}" for i in range(nodes if nodes > 2 else 1))
    for groups in plan:
        ranks = [rank for _, members in groups for rank in members]
        assert len(ranks) == len(set(ranks))


@pytest.mark.parametrize("nodes", [3, 4, 8])
def test_a_node_with_a_bad_link_is_told_from_its_partners(nodes: int) -> None:
    bad = "n1"
    pairs = [name for groups in rounds([f"n{i}" for i in range(nodes)])[1:] for name, _ in groups]
    bandwidths = [Bandwidth(name, 2, 1 << 20, 0.4 if bad in name.split("+") else 0.1) for name in pairs]
    found = diagnose([], bandwidths)
    assert [(finding.check, finding.node) for finding in found.findings] == [("inter-node", bad)]
    assert bandwidths[0].bytes_per_second == (1 << 20) / 0.4  # of two ranks, each sends the bytes once


def test_gpus() -> None:
    assert parse_smi(SMI.format(**WELL)) == []
    texts = [problem.text for problem in parse_smi(SMI.format(slowdown="Active", uncorrectable="2", pending="Yes"))]
    assert texts == [
        "GPU 0 (00000000:18:00.0) has 2 uncorrectable memory errors (dram_uncorrectable)",
        "GPU 0 (00000000:18:00.0) is slowed down (hw_slowdown)",
        "GPU 0 (00000000:18:00.0) has a remapped row pending: it needs a reset, or goes back to its maker",
    ]
    assert "cannot be read" in parse_smi("<half")[0].text
    log = (
        "[  9.1] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\nNVRM: Xid (PCI:0000:3b:00): 31, x"
    )
    assert [problem.text for problem in parse_xids(log + "\n" + log)] == ["GPU 0000:3b:00 had XID 79"]


def test_a_driver_that_fails_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Unable to determine the device handle'; exit 15\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (problem,) = gpu_problems()
    assert problem.text == "nvidia-smi ended with code 15: Unable to determine the device handle"


@pytest.mark.filterwarnings("ignore")  # what is imported gives many
def test_one_process_and_a_recipe(here: Here, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(succeeded(here("doctor", recipe, "--run", tmp_path / "run", "--json")))
    assert found["ok"]
    (rank,) = found["ranks"]
    assert rank["gemm"] > 0
    assert rank["versions"]["torch"]
    assert len(rank["data"]) == 1
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("TMPDIR", "/proc/none")
    uri = ["tracking.enabled=true", "tracking.uri=http://user:hunter2@127.0.0.1:9"]
    result = here("doctor", recipe, *uri, "--run", tmp_path / "run", "data.path=/nowhere")
    assert result.returncode == 3
    assert "/nowhere does not exist: give a directory that `lacuna data build` made" in result.stdout
    assert "temporary files: " in result.stdout
    assert "http://***@127.0.0.1:9 failed" in result.stdout
    assert "hunter2" not in result.stdout + result.stderr
    huge = here("doctor", recipe, "model.layers=1000", "model.width=24576", "--run", tmp_path / "run", "--json")
    (room,) = [problem for problem in json.loads(huge.stdout)["problems"] if problem["check"] == "room"]
    assert room["text"].startswith(f"{tmp_path} has ")
    assert "two checkpoints take " in room["text"]
    assert refusal(here("doctor", "--nodes", "a b"), 2).startswith("--nodes 'a b' is neither a number nor a list")


def _program(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/bash\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def test_nodes_are_measured_in_the_environment_of_a_job_and_remembered(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `srun` that runs one rank here, whose Python tells by the diagnosis what it was given."""
    said = '{"ok":false,"ranks":[],"all_reduce":[],"problems":[{"check":"x","text":"bad"}],"exclude":{"n1":"%s"}}'
    told = '"$NCCL_SOCKET_IFNAME, $MODULE, $SITE, $MASTER_ADDR, $MASTER_PORT, ${*: -3}"'
    python = _program(tmp_path / "python", f"printf '{said}\\n' {told}")
    _program(tmp_path / "srun", 'while [[ "$1" = -* ]]; do shift; done\nSLURM_JOB_ID=7 SLURM_JOB_NODELIST=x \\\n'
             'SLURM_STEP_NODELIST=localhost SLURM_STEP_ID=3 exec "$@"')  # fmt: skip
    for name in ("sbatch", "scontrol"):
        _program(tmp_path / name, 'echo "${!#}"')
    _program(tmp_path / "module", "echo not called: the shell function goes first")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("BASH_FUNC_module%%", '() { export MODULE="$2"; }')
    values = {"name": "lab", "python": python, "environment": {"NCCL_SOCKET_IFNAME": "ib 0"}, "modules": ["cuda/12"]}
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump(values | {"setup": ["SITE='here now'; export SITE"]}))
    result = here("doctor", "--nodes", "2", "--cluster", tmp_path / "lab.yaml", "--json")
    expected = "ib 0, cuda/12, here now, localhost, 20052, doctor --json --patience=120.0"
    assert json.loads(result.stdout)["exclude"] == {"n1": expected}
    assert refusal(result, 3) == "bad: n1 left out of the next submissions"
    shipped = f"{Path(python).parent}/gpu.yaml"
    Path(shipped).write_text(yaml.safe_dump({"name": "gpu", "python": python}))
    monkeypatch.setattr("launch.slurm.cluster.shipped_clusters", lambda: {"gpu": Path(shipped)})
    assert refusal(here("doctor", "--nodes", "2"), 3) == "bad: n1 left out of the next submissions"
    assert list(bad_nodes(tmp_path / "state/lacuna/bad-nodes-gpu.json")) == ["n1"]


def test_data_in_an_object_store_is_looked_at_as_training_reads_it(built: Path, tmp_path: Path) -> None:
    """By doctor, by the health step of a job, and for MLflow's tag."""
    path, digest = "s3://corpora/a", DatasetManifest.load(built).digest
    directory = RunDirectory(tmp_path / "run")
    directory.logs(0).mkdir(parents=True)
    with s3_server("corpora") as server:
        server.put(built, "corpora/a")
        remote = RemoteConfig(**server.storage.model_dump(), cache=str(tmp_path / "cache"), patience=0)
        here = Subject(data=[path, str(built)], remote=remote)
        assert look_at_data(here) == ({path: digest, str(built): digest}, [])
        digests, (problem,) = look_at_data(Subject(data=["s3://corpora/b"], remote=remote))
        assert digests == {}
        assert problem.check == "data"
        assert problem.text.startswith("s3://corpora/b")
        values = {"name": "x", "data": {"path": path, "remote": remote.model_dump(mode="json")}}
        directory.config.write_text(yaml.safe_dump(values))
        assert run_tags(directory, {}, {})["lacuna.data_digest"] == digest
        write_submission(directory, Submission("x", "t", 1, 1, 1, True, 3, str(tmp_path / "bad"), 7.0, [path]))
        note_expectations(directory, 0)
        assert check_node(directory.root, 0, "node1") == []
        server.remove("corpora/a/manifest.json")
        (fault,) = check_node(directory.root, 0, "node1")
        assert fault.startswith(path)


@pytest.mark.slow
def test_three_ranks_measure_each_other_and_a_slow_one_is_remembered(tmp_path: Path) -> None:
    """Under torchrun, each rank on a "node" of its own; the products of one of them are slowed down."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, sys\n"
        "os.environ['SLURMD_NODENAME'] = 'node' + os.environ['RANK']\n"
        "import pretrain.device as device\n"
        "real = device.measured_matmul_rate\n"
        "slow = 0.5 if os.environ['RANK'] == '2' else 1.0\n"
        "device.measured_matmul_rate = lambda *a, **k: 1e9 * slow + 0 * real(*a, **k)\n"
        "from launch.cli import main\n"
        "main()\n"
    )
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"name": "lab", "bad_nodes": {"file": str(tmp_path / "bad")}}))
    agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--rdzv-backend=c10d"]
    command = [*agent, "--rdzv-endpoint=localhost:0", str(script), "doctor", "--json", "--cluster"]
    variables = ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [*command, str(tmp_path / "lab.yaml")], env=variables, capture_output=True, text=True, timeout=240, check=False
    )
    found = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert not found["ok"]
    (slow,) = [problem for problem in found["problems"] if problem["check"] == "gemm"]
    assert (slow["rank"], slow["node"]) == (2, "node2")
    assert bad_nodes(tmp_path / "bad") == found["exclude"]
    assert "matrix products at 50% of the median rank's rate" in found["exclude"]["node2"]
    assert {row["group"] for row in found["all_reduce"]} == {"world", "node0+node1", "node1+node2", "node2+node0"}
    assert len({row["bytes"] for row in found["all_reduce"]}) == 3
    assert all(abs(rank["clock"]) < 1 for rank in found["ranks"])
    assert "lacuna: node2, rank 2: matrix products" in result.stderr
