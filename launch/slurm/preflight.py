"""What can be known before a job waits in a queue for a day. Every refusal is one line with the mend."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch.commands.output import human
from launch.slurm.client import call
from launch.slurm.cluster import ClusterConfig
from pretrain.config import RunConfig
from pretrain.planning.plan import plan
from runtime.errors import PreflightError, UserError

_UNITS = (86400, 3600, 60, 1)


def check_memory(config: RunConfig, cluster: ClusterConfig, ranks: int) -> dict[str, Any]:
    """The plan for `ranks` ranks. Raises UserError if the recipe's layout does not fit the cluster's devices."""
    from pretrain.planning.estimate import DEVICES

    found = plan(config, ranks, cluster.device or "h200")
    if cluster.device is None:
        return found
    needed, there = found["memory"]["per_rank"]["total"], DEVICES[cluster.device].memory
    if needed >= 0.9 * there:
        fits = [row["layout"] for row in found["layouts"] if row["fits"]]
        mend = f"take {fits[0]}, see `lacuna plan`" if fits else "take more ranks: no layout fits these"
        raise UserError(
            f"{config.parallel.describe(ranks)} needs about {human(needed, 'B')} a rank, {cluster.device} has "
            f"{human(there, 'B')}: {mend}"
        )
    return found


def check_room(root: Path, checkpoint: float) -> None:
    """Raise PreflightError unless the disk of `root` has room for two checkpoints of `checkpoint` bytes each."""
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"{there} cannot be written: mend that or use another --run")
    free, needed = shutil.disk_usage(there).free, 2 * checkpoint
    if free < needed:
        raise PreflightError(
            f"{there} has {human(free, 'B')} free, two checkpoints take {human(needed, 'B')}: free some room, "
            "or use another --run"
        )


def check_limits(cluster: ClusterConfig, nodes: int, time: str) -> None:
    """Raise UserError for what Slurm would take and then never start: too many nodes, too much time.

    `sbatch --test-only` refuses the first, but not a time above the partition's limit.
    """
    of = [f"--partition={cluster.partition}"] if cluster.partition else []
    rows = [row.split("|") for row in call("sinfo", "--noheader", "--format=%P|%D|%l", *of).splitlines()]
    mine = [row for row in rows if cluster.partition or row[0].endswith("*")]
    if not mine:
        if cluster.partition:
            raise UserError(f"cluster {cluster.name}: partition {cluster.partition!r} does not exist: see `sinfo`")
        return
    for name, count, limit in mine:
        if int(count) < nodes:
            problem = f"--nodes {nodes} is more than the {count} nodes of partition {name.rstrip('*')}"
        elif seconds(time) > seconds(limit):
            problem = f"--time {time} is above the limit {limit} of partition {name.rstrip('*')}"
        else:
            return
    raise UserError(f"{problem}: the job would wait forever, ask for less")


def seconds(limit: str) -> float:
    """Slurm's time format in seconds: `30` (minutes), `30:00`, `1:30:00`, `2-12`, `2-12:30:00`, `infinite`.

    Raises ValueError for another text.
    """
    if limit.lower() in ("infinite", "unlimited"):
        return float("inf")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        raise ValueError(f"{limit!r} is not a time as Slurm writes it")
    days, dash, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units: Iterator[int] = iter(_UNITS[1:] if dash or len(parts) == 3 else _UNITS[2:])
    return float(int(days or 0) * _UNITS[0] + sum(part * unit for part, unit in zip(parts, units, strict=False)))
