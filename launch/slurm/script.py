"""The job script, written to be read. What comes from outside is either checked by `ClusterConfig` or quoted here.

Decisions are not the script's: it starts things, passes signals on, and asks `launch.slurm` what to do next.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.slurm.cluster import ClusterConfig
from runtime.errors import UserError

_MARGIN = 90  # seconds for ending ranks that hang (Slurm's KillWait is 30), the verdict and the requeue

_SIGNALS = """\
# Before the time limit or a preemption Slurm warns this shell: the ranks save after the step they are in, and end.
# Ranks that hang are ended in time, since a job that runs into its limit does not come back.
step='' asked='' guard=''
ask() {{
    [ -z "$step" ] || kill -USR2 "$step" 2>/dev/null
    [ -n "$asked" ] || {{ {{ sleep {patience}; kill -TERM "$step"; }} & guard=$!; }} 2>/dev/null
    asked=--asked
}}
trap ask USR2 TERM

# Run a command to its end and keep its exit code; in the background, since bash hears signals only while it waits.
attend() {{
    "$@" &
    step=$!
    [ -z "$asked" ] || kill -USR2 "$step"
    while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done
    wait "$step"; last=$?
    [ "$last" = 127 ] || code=$last
    step=''
    [ -z "$guard" ] || kill "$guard" 2>/dev/null
}}"""

_MEET = """\
# Where the ranks meet: the first node, by its address if its name does not resolve.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\\n'*}
getent hosts "$first" >/dev/null || first=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
export MASTER_ADDR="$first" MASTER_PORT=$((20000 + (7 * SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 20000))"""

_FINISH = """\
# finish requeue|end|cancel CODE [NODES TO EXCLUDE]: the end of this script, and of the chain if it is `cancel`.
finish() {{
{chain}    [ "$1" = requeue ] || exit "$2"
    trap '' TERM
    for pause in 1 2 4 8 16 32; do
        scontrol requeue "$SLURM_JOB_ID" && break
        sleep "$pause"
    done
    # Only a job that waits can be kept away from nodes; Slurm ends this script a while after the requeue.
    for pause in 1 2 4 8 16; do
        [ -z "$3" ] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$3" && break
        sleep "$pause"
    done
    exit 75
}}"""

_LINKS = """\
    # Links of the chain that wait go if they could not do better, and else stay away from the nodes too.
    [ "$1" != cancel ] || scancel --state=PENDING --name="$SLURM_JOB_NAME"
    [ -z "$3" ] || squeue --noheader --states=PENDING --name="$SLURM_JOB_NAME" --format=%A \\
        | xargs -rI{} scontrol update JobId={} ExcNodeList="$3"
"""

_BEGIN = """\
# Register this attempt. `end`: the run is finished, was told to stop, or is given up.
attempt=$("${{python[@]}}" -m launch.slurm.begin "$run" $nodes); code=$?
[ "$attempt" != end ] || exit "$code"

# No answer: this node has no such Python, or does not see the run. The next attempt that begins remembers it as bad.
if [ -z "$attempt" ]; then
    [ "$code" -lt 128 ] && [ -z "$asked" ] || exit "$code"
    echo "lacuna: $SLURMD_NODENAME cannot start an attempt (code $code)" >&2
    unable=$run/logs/unable-nodes
    echo "$SLURMD_NODENAME $code" >>"$unable" && [ "$(wc -l <"$unable")" -lt {tries} ] || finish cancel "$code"
    others=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\\([^( ][^( ]*\\).*/\\1,/p')
    finish {again} "$code" "$others$SLURMD_NODENAME"
fi"""

_SHOW = """\
# Show the run to MLflow while this script lives.
"${python[@]}" -m launch.slurm.show "$run" $$ &
shown=$!"""

_SHOWN = """\
# MLflow gets the rest and the plots; at the end of the run also how it ended.
kill "$shown"
timeout 30 tail --pid="$shown" -f /dev/null || kill -KILL "$shown"
[ "$action" = requeue ] || timeout 120 "${python[@]}" -m launch.slurm.show "$run\""""

_TRAIN = """\
# Train. srun ends all ranks once one fails and then reports their end, so each rank notes its own exit code.
rank='trap : USR2 TERM; printf -v name %05d "$SLURM_PROCID"; "$@"; code=$?
[ $code = 0 ] || echo "$code $SLURMD_NODENAME" >"$EXITS/exit-$name"; exit $code'
if [ "$code" = 0 ] && [ -z "$asked" ]; then
    stage=train
    EXITS="$run/logs/$attempt" attend srun {options} \\
        bash -c "$rank" rank "${{python[@]}}" -m launch.worker "$run"
fi"""

_VERDICT = """\
# What now? `requeue`, `end` or, for a whole chain, `cancel`, each with CODE [NODES TO EXCLUDE]; run.json says why.
verdict=$(scontrol show job "$SLURM_JOB_ID" \\
    | "${python[@]}" -m launch.slurm.verdict "$run" "$attempt" "$stage" "$code" $asked) || verdict="end $code"
read -r action result exclude <<<"$verdict\""""

_CLEAN = """\
# The folders on the nodes go.
srun --ntasks-per-node=1 --ntasks="$SLURM_NNODES" rm -rf -- "$TMPDIR\""""

_LAST = """\
# Last of all, since a requeue ends this script.
finish "$action" "$result" "$exclude\""""


@dataclass(frozen=True)
class Job:
    """All that a script depends on. `run` is absolute; `exclude`: names of nodes to stay away from."""

    run: Path
    name: str
    layout: str
    nodes: int
    ranks_per_node: int
    cluster: ClusterConfig
    python: str
    time: str | None = None
    chain: int = 1
    exclude: tuple[str, ...] = ()
    tracking: bool = False

    @property
    def requeues(self) -> bool:
        """Whether the job goes back into the queue; links of a chain do not, the next one continues."""
        return self.cluster.requeue and self.chain == 1


def job_name(run: Path) -> str:
    """A name that only jobs of this run have: Slurm runs one job of a name at a time (`singleton`)."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", run.name)[:40].strip("-.") or "run"
    return f"lacuna-{readable}-{hashlib.sha256(str(run).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def check_run_path(run: Path) -> None:
    """Raise UserError for paths that Slurm or a log line would take for something else."""
    if not all(letter.isprintable() for letter in str(run)) or set(str(run)) & set("%\\"):
        raise UserError(f"--run {str(run)!r}: Slurm cannot work with control characters, % or \\ in it: use another")


def render(job: Job) -> str:
    """The text of `submit.sbatch`. Raises UserError for a run path that Slurm cannot have."""
    check_run_path(job.run)
    cluster, blocks = job.cluster, [_header(job)]
    blocks.append(f"run={shlex.quote(str(job.run))}\npython=({shlex.join([*cluster.container, job.python, '-P'])})")
    blocks += [signal_lines(cluster), *site_lines(cluster), _MEET]
    blocks.append(_FINISH.format(chain=_LINKS if job.chain > 1 else ""))
    blocks.append(_BEGIN.format(tries=cluster.give_up_after, again="requeue" if job.requeues else "end"))
    if cluster.scratch:
        blocks.append(_scratch(cluster.scratch))
    if job.tracking:
        blocks.append(_SHOW)
    blocks += [_health(cluster), _TRAIN.format(options=shlex.join(_step_options(cluster))), _VERDICT]
    if cluster.scratch:
        blocks.append(_CLEAN)
    if job.tracking:
        blocks.append(_SHOWN)
    return "\n\n".join([*blocks, _LAST]) + "\n"


def _header(job: Job) -> str:
    cluster = job.cluster
    pairs: list[tuple[str, object]] = [
        ("job-name", job_name(job.run)),
        ("nodes", job.nodes),
        ("ntasks-per-node", job.ranks_per_node),
        ("cpus-per-task", cluster.cpus_per_task),
        *gpu_request(cluster, job.ranks_per_node),
        ("mem", cluster.memory),
        ("time", job.time or cluster.time),
        ("partition", cluster.partition),
        ("account", cluster.account),
        ("qos", cluster.qos),
        ("constraint", cluster.constraint),
        ("exclude", ",".join(job.exclude)),
        ("output", "logs/slurm-%j.out"),
        ("open-mode", "append"),
        ("signal", f"B:USR2@{cluster.grace}"),
        ("dependency", "singleton"),
    ]
    flags = ["--exclusive"] * cluster.exclusive + ["--requeue" if job.requeues else "--no-requeue", *cluster.sbatch]
    what = f"{job.nodes} node(s) with {job.ranks_per_node} rank(s) each: {job.layout}"
    return directives(
        [what, "Written by `lacuna submit`. By hand: sbatch submit.sbatch, in this folder."], pairs, flags
    )


def directives(comments: Sequence[str], pairs: Sequence[tuple[str, object]], flags: Sequence[str]) -> str:
    """The head of a script: what it is, and what it asks Slurm for; pairs without a value are left out."""
    lines = ["#!/bin/bash", *(f"# {comment}" for comment in comments)]
    lines += [f"#SBATCH --{name}={value}" for name, value in pairs if value not in (None, "")]
    return "\n".join([*lines, *(f"#SBATCH {flag}" for flag in flags)])


def gpu_request(cluster: ClusterConfig, per_node: int) -> list[tuple[str, object]]:
    """How this cluster is asked for so many GPUs of a node, as a pair for `directives`; empty on CPU nodes."""
    count = f"{cluster.gpu_type}:{per_node}" if cluster.gpu_type else str(per_node)
    return {
        "none": [],
        "gpus-per-node": [("gpus-per-node", count)],
        "gres": [("gres", f"gpu:{count}")],
    }[cluster.gpus]  # type: ignore[return-value]  # mypy joins the lists' types


def signal_lines(cluster: ClusterConfig) -> str:
    """Shell functions that pass Slurm's warning on to what `attend` runs."""
    return _SIGNALS.format(patience=cluster.grace - min(_MARGIN, cluster.grace // 2))


def site_lines(cluster: ClusterConfig) -> list[str]:
    """A block of modules, variables and setup lines, if the cluster has any."""
    if not (cluster.modules or cluster.environment or cluster.setup):
        return []
    lines = ["# The cluster"]
    lines += [f"module load {shlex.quote(module)}" for module in cluster.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment.items()]
    return ["\n".join([*lines, *cluster.setup])]


def meeting_lines() -> str:
    """A block that sets where the ranks of a job meet."""
    return _MEET


def _scratch(folder: str) -> str:
    return (
        "# A folder on every node, made by the health check\n"
        f'export TMPDIR={shlex.quote(folder.rstrip("/"))}/lacuna-"$SLURM_JOB_ID"'
    )


def _health(cluster: ClusterConfig) -> str:
    measures = cluster.health == "measures"
    tasks = "" if measures else ' --ntasks-per-node=1 --ntasks="$SLURM_NNODES"'
    what = "# Every node must see the run, its data and this Python"
    what += ", and keep up with the others." if measures else "."
    return (
        f"{what}\nstage=health\nattend srun{tasks} --kill-on-bad-exit=0 --label \\\n"
        f'    timeout {cluster.health_seconds} "${{python[@]}}" -m launch.slurm.health "$run" "$attempt"'
        f"{' --measure' * measures}"
    )


def _step_options(cluster: ClusterConfig) -> list[str]:
    return ["--kill-on-bad-exit=1", "--label", f"--cpus-per-task={cluster.cpus_per_task}", *cluster.srun_options]
