"""Processes of this machine: which one is meant by a number, and dying with one's parent (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def machine_name() -> str:
    """Names this boot of this machine and this space of process numbers; two that are equal share their processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None if there is none, or it is not to be seen."""
    fields = _status_fields(pid)
    return int(fields[19]) if fields else None


def runs_here(pid: int, started: int) -> bool:
    """Whether the process `pid` that started at `started` still runs on this machine (a zombie does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    fields = _status_fields(pid)
    if not fields:
        return True  # hidden from us, but there
    return fields[0] not in ("Z", "X") and int(fields[19]) == started


def _status_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state (the third) on; the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when process `parent`, which started it, is gone.

    The kernel does so even if this process is stuck in a collective and none of its own threads can run. Strictly
    it is the thread that started this process whose end counts: call it only for parents that start others from a
    thread as long-lived as themselves.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)
