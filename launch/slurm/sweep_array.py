"""A sweep as a Slurm array: a task for every point that is not done, one process each; see `launch.sweep`."""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from launch.slurm.bad_nodes import bad_nodes, bad_nodes_file
from launch.slurm.client import queued
from launch.slurm.cluster import ClusterConfig
from launch.slurm.script import check_run_path, directives, gpu_request, job_name, signal_lines, site_lines
from launch.slurm.submit import check_syntax, submit_once
from launch.sweep import LoadedSweep, SweepDirectory, open_sweep
from runtime.errors import UserError
from runtime.files import write_atomic

SCRIPT = "sweep.sbatch"

_TRAIN = """\
# Train and validate; a point that was cut goes on from its checkpoint.
point="$out/points/${points[$SLURM_ARRAY_TASK_ID]}"
attend "${python[@]}" -m launch.sweep_point "$point\""""

_COLLECT = """\
# The table of the points that are done. One task at a time, or the slower of two would take away the other's point.
flock "$out/collect.lock" "${{python[@]}}" -m launch.cli scaling run {sweep} --out "$out" --collect{table}"""

_AGAIN = """\
# Cut short by Slurm: back into the queue, last of all, since a requeue ends this script.
[ "$code" != 0 ] && [ -n "$asked" ] || exit "$code"
trap '' TERM
scontrol requeue "$SLURM_JOB_ID\""""


def prepare_array(
    loaded: LoadedSweep, sweep: Path, out: Path, cluster: ClusterConfig, at_once: int | None
) -> tuple[str, list[str]]:
    """The script, and the names of the points that wait. Writes nothing. Raises UserError if none waits."""
    out = out.expanduser().absolute()
    check_run_path(out)
    waiting = [point.name for point in SweepDirectory(out).waiting(loaded)]
    if not waiting:
        raise UserError(f"all {len(loaded.points)} points in {out} are done: `lacuna scaling fit {out}` reads them")
    table = None if loaded.table is None else loaded.table.absolute()
    script = render_array(loaded.sweep.name, sweep.absolute(), out, waiting, cluster, at_once, sys.executable, table)
    check_syntax(script)
    return script, waiting


def submit_array(loaded: LoadedSweep, out: Path, script: str) -> str:
    """Write the points' orders and the script, and put it into the queue. Returns the job's id.

    Raises UserError if the sweep has jobs in the queue, PreflightError if Slurm refuses or does not answer.
    """
    out = out.expanduser().absolute()
    name = job_name(out)
    there = queued(name)
    if there:
        raise UserError(f"{out} has jobs in the queue already: `scancel --name={name}` takes them back")
    open_sweep(loaded, out)
    (out / "logs").mkdir(exist_ok=True)
    write_atomic(out / SCRIPT, script)
    return submit_once(out / SCRIPT, name, uuid.uuid4().hex)


def render_array(
    name: str, sweep: Path, out: Path, points: Sequence[str], cluster: ClusterConfig, at_once: int | None, python: str,
    table: Path | None = None,
) -> str:  # fmt: skip
    """The text of `sweep.sbatch`; `at_once`: how many tasks may run at a time; `table`: where the table is kept too.

    Paths are absolute.
    """
    pairs: list[tuple[str, object]] = [
        ("job-name", job_name(out)),
        ("array", f"0-{len(points) - 1}" + (f"%{at_once}" if at_once else "")),
        ("nodes", 1),
        ("ntasks", 1),
        ("cpus-per-task", cluster.cpus_per_task),
        *gpu_request(cluster, 1),
        ("mem", cluster.memory),
        ("time", cluster.time),
        ("partition", cluster.partition),
        ("account", cluster.account),
        ("qos", cluster.qos),
        ("constraint", cluster.constraint),
        ("exclude", ",".join(sorted(bad_nodes(bad_nodes_file(cluster))))),
        ("output", "logs/slurm-%A-%a.out"),
        ("open-mode", "append"),
        ("signal", f"B:USR2@{cluster.grace}"),
    ]
    words = shlex.join([*cluster.container, cluster.python or python, "-P"])
    listed = "\n".join(f"    {shlex.quote(point)}" for point in points)
    what = "".join(letter if letter.isprintable() else "?" for letter in name)
    kept = "" if table is None else f" --table {shlex.quote(str(table))}"
    blocks = [
        directives([f"Points of the sweep {what}, a task each", "Written by `lacuna scaling run --cluster`"],
                   pairs, ["--requeue" if cluster.requeue else "--no-requeue", *cluster.sbatch]),
        f"out={shlex.quote(str(out))}\npython=({words})\npoints=(\n{listed}\n)",
        signal_lines(cluster),
        *site_lines(cluster),
        f"cd {shlex.quote(str(Path.cwd()))} || exit",
        _TRAIN,
        _COLLECT.format(sweep=shlex.quote(str(sweep)), table=kept),
        _AGAIN,
    ]  # fmt: skip
    return "\n\n".join(blocks) + "\n"
