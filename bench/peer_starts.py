"""What it takes to be ready for the first of a billion shuffled windows."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from bench.peer_environment import PEERS, Environment
from data_pipeline.simulate import Workload, start_cost

WINDOWS = (10_000_000, 100_000_000, 1_000_000_000)
LENGTH = 4096
OURS = "Lacuna"
PERMUTATION = "flat mmap, numpy.random.permutation"
_SHARE_OF_MEMORY = 0.4
_SECONDS = 300


@dataclass(frozen=True)
class Start:
    """Seconds and bytes, or why there are none."""

    seconds: float = 0.0
    bytes: int = 0
    reason: str = ""

    def show(self) -> str:
        """A cell of the table."""
        if self.reason:
            return self.reason
        size = f"{self.bytes / 1e6:,.1f} MB" if self.bytes >= 1e5 else f"{self.bytes / 1e3:.1f} kB"
        return f"{self.seconds * 1e3:.1f} ms, {size}" if self.seconds < 0.1 else f"{self.seconds:.2f} s, {size}"


@dataclass(frozen=True)
class StartResult:
    """Starts by peer, in the order of `WINDOWS`."""

    starts: dict[str, list[Start]]

    def cells(self) -> dict[str, list[str]]:
        """Rows of the table."""
        return {name: [start.show() for start in starts] for name, starts in self.starts.items()}


def measure_starts(environment: Environment, scratch: Path, console: Console) -> StartResult:
    """Ours, the plain permutation, and all peers."""
    starts = {OURS: [Start(*start_cost(Workload(n * LENGTH, 1, LENGTH, sources=1).check())) for n in WINDOWS]}
    for name in (PERMUTATION, *PEERS):
        if name in environment.missing:
            starts[name] = [Start(reason=environment.missing[name])] * len(WINDOWS)
            continue
        starts[name] = []
        for windows in WINDOWS:
            starts[name].append(_next(environment, name, windows, starts[name], scratch))
            console.print(f"{name}, {windows:,} windows: {starts[name][-1].show()}", highlight=False)
    return StartResult(starts)


def _next(environment: Environment, name: str, windows: int, before: list[Start], scratch: Path) -> Start:
    """The next larger start, unless the one before says that this machine has not the memory or the time."""
    if before:
        last = before[-1]
        if last.reason:
            return Start(reason="not tried")
        if 10 * last.bytes > _SHARE_OF_MEMORY * psutil.virtual_memory().available:
            return Start(reason=f"not tried: ten times {last.bytes / 1e9:.1f} GB is too much for this machine")
        if 10 * last.seconds > _SECONDS:
            return Start(reason=f"not tried: ten times {last.seconds:.0f} s")
    program = Path(__file__).parent / "peer_programs" / "starts.py"
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = [environment.python, "-W", "ignore", str(program), name, str(windows), folder, str(LENGTH)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * _SECONDS)
        except subprocess.TimeoutExpired:
            return Start(reason=f"not ready after {2 * _SECONDS} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        words = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        return Start(reason=f"does not run: {words[-1].strip()[:120]}")
    return Start(**json.loads(lines[-1]))
