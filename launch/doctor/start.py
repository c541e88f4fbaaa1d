"""Starts an examination of several ranks: on this machine with torchrun, on nodes with srun."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from launch.slurm.client import have_slurm
from launch.slurm.cluster import ClusterConfig
from launch.slurm.script import meeting_lines, site_lines
from runtime.errors import PreflightError, UserError, one_line

_NODES_OF_STEP = "SLURM_JOB_NODELIST=${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}"
_PORT_OF_STEP = "export MASTER_PORT=$((MASTER_PORT + ${SLURM_STEP_ID:-0} % 1000))"
_NODES = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.,\[\]-]*")


def on_this_machine(arguments: Sequence[str], processes: int) -> dict[str, Any]:
    """The diagnosis of `processes` local ranks. Raises PreflightError if they come to none."""
    agent = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    return _diagnosis([sys.executable, *agent, "--rdzv-endpoint=localhost:0", "-m", "launch.cli", *arguments])


def on_nodes(arguments: Sequence[str], nodes: str, ranks: int, cluster: ClusterConfig) -> dict[str, Any]:
    """The diagnosis of `ranks` ranks on each of `nodes`: a number, or names as Slurm writes them.

    Raises UserError for a text that is neither, PreflightError if there is no Slurm or no diagnosis.
    """
    if not _NODES.fullmatch(nodes):
        raise UserError(f"--nodes {nodes!r:.60} is neither a number nor a list of nodes: give 4 or node[1-4],node7")
    if not have_slurm():
        raise PreflightError("srun is not on this machine: without --nodes this machine alone is looked at")
    count = [f"--nodes={nodes}"] if nodes.isdecimal() else [f"--nodelist={nodes}"]
    per_node = f"{cluster.gpu_type}:{ranks}" if cluster.gpu_type else str(ranks)
    pairs = [
        ("--ntasks-per-node", str(ranks)),
        ("--cpus-per-task", str(cluster.cpus_per_task)),
        ("--partition", cluster.partition),
        ("--account", cluster.account),
        ("--qos", cluster.qos),
        ("--constraint", cluster.constraint),
        ("--mem", cluster.memory),
        ("--gpus-per-node", per_node if cluster.gpus == "gpus-per-node" else None),
        ("--gres", f"gpu:{per_node}" if cluster.gpus == "gres" else None),
    ]
    options = [f"{name}={value}" for name, value in pairs if value is not None]
    python = [*cluster.container, cluster.python or sys.executable, "-P", "-m", "launch.cli"]
    own = ["--kill-on-bad-exit=0", "--job-name=lacuna-doctor", *cluster.srun_options]
    shell = ["bash", "-c", _rank_script(cluster), "doctor"]
    return _diagnosis(["srun", *count, *options, *own, *shell, *python, *arguments])


def _rank_script(cluster: ClusterConfig) -> str:
    """What the shell of a rank does before it becomes the rank, outside any container: modules, variables and meeting
    point as in a job script, since what they decide (the network, say) is to be measured.
    """
    return "\n\n".join([*site_lines(cluster), _NODES_OF_STEP, meeting_lines(), _PORT_OF_STEP, 'exec "$@"'])


def _diagnosis(command: Sequence[str]) -> dict[str, Any]:
    """What rank 0 has printed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    for line in result.stdout.splitlines():
        if line.startswith('{"ok":'):
            found: dict[str, Any] = json.loads(line)
            return found
    said = [line for line in result.stderr.splitlines() if "lacuna: " in line] or result.stderr.splitlines()[-1:]
    reason = one_line(Exception(said[0].partition("lacuna: ")[2] or said[0])) if said else f"code {result.returncode}"
    raise PreflightError(f"the ranks came to no diagnosis: {reason:.300}")
