"""Nodes that failed a check, remembered for some days over all runs of a cluster."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launch.slurm.cluster import ClusterConfig
from runtime.errors import UserError
from runtime.files import read_json, write_json

_DAY = 86400.0


def bad_nodes_file(cluster: ClusterConfig) -> Path:
    """Where the cluster's list is: as configured, else below the user's state folder."""
    if cluster.bad_nodes.file is not None:
        return Path(cluster.bad_nodes.file).expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "lacuna" / f"bad-nodes-{cluster.name}.json"


def bad_nodes(path: Path, now: float | None = None) -> dict[str, str]:
    """Names of the nodes to stay away from today, each with its reason. Raises UserError for a broken file."""
    now = time.time() if now is None else now
    return {node: str(entry["reason"]) for node, entry in _entries(path).items() if entry["until"] > now}


def remember(path: Path, reasons: Mapping[str, str], days: float, now: float | None = None) -> None:
    """Add nodes with their reasons for `days`; entries that have expired are dropped.

    Raises UserError for a broken file, OSError if it cannot be written.
    """
    now = time.time() if now is None else now
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        kept = {node: entry for node, entry in _entries(path).items() if entry["until"] > now}
        new = {
            node: {"reason": why, "since": round(now), "until": round(now + days * _DAY)}
            for node, why in reasons.items()
        }
        write_json(path, kept | new)


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    entries = read_json(path)
    whole = isinstance(entries, dict) and all(
        isinstance(e, dict) and isinstance(e.get("reason"), str) and isinstance(e.get("until"), int | float)
        for e in entries.values()
    )
    if not whole:
        raise UserError(f"{path} is not a list of bad nodes: remove it")
    return dict(entries)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        with suppress(OSError):  # a file system without locks: two reports in the same moment may lose one
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
