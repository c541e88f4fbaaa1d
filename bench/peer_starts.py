"""What it takes to be ready for the first of a billion shuffled windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from bench.peer_environment import PEERS, Environment
from data_pipeline.manifest import DatasetManifest
from data_pipeline.passes.cut import split_info
from data_pipeline.simulate import Workload, order_cost

LENGTH = 4096
OURS = "Lacuna, manifest and first window"
OURS_ORDER = "Lacuna, the order alone"
PERMUTATION = "flat mmap, numpy.random.permutation"
_PROGRAMS = Path(__file__).parent / "peer_programs"
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
    """Starts by peer, by number of windows."""

    starts: dict[str, list[Start]]

    def cells(self) -> dict[str, list[str]]:
        """Rows of the table."""
        return {name: [start.show() for start in starts] for name, starts in self.starts.items()}


def measure_starts(
    environment: Environment, dataset: Path, scratch: Path, console: Console, sizes: Sequence[int]
) -> StartResult:
    """Ours, the plain permutation, and all peers, each at `sizes` windows, which must grow tenfold.

    `dataset` has one shard, which stands for all that ours has at a size.
    """
    starts = {OURS_ORDER: [Start(*order_cost(Workload(n * LENGTH, 1, LENGTH, sources=1).check())) for n in sizes]}
    for name in (OURS, PERMUTATION, *PEERS):
        if name in environment.missing:
            starts[name] = [Start(reason=environment.missing[name])] * len(sizes)
            continue
        starts[name] = []
        for windows in sizes:
            starts[name].append(_next(environment, name, windows, starts[name], dataset, scratch))
            console.print(f"{name}, {windows:,} windows: {starts[name][-1].show()}", highlight=False, markup=False)
    return StartResult(starts)


def _next(
    environment: Environment, name: str, windows: int, before: list[Start], dataset: Path, scratch: Path
) -> Start:
    """The next larger start, unless the one before says that this machine has not the memory or the time."""
    if before:
        last = before[-1]
        if last.reason:
            return Start(reason="not tried")
        if 10 * last.bytes > _SHARE_OF_MEMORY * psutil.virtual_memory().available:
            return Start(reason=f"not tried: ten times {last.bytes / 1e9:.1f} GB is too much for this machine")
        if 10 * last.seconds > _SECONDS:
            return Start(reason=f"not tried: ten times {last.seconds:.0f} s")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if name == OURS:
            repeat_shard(dataset, Path(folder) / "data", windows)
            command = [sys.executable, str(_PROGRAMS / "ours_start.py"), f"{folder}/data", str(LENGTH)]
        else:
            python = environment.python_of(name)
            command = [python, "-W", "ignore", str(_PROGRAMS / "starts.py"), name, str(windows), folder, str(LENGTH)]
        variables = {**os.environ, "PYTHONPATH": str(_PROGRAMS.parent.parent)}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=2 * _SECONDS, env=variables
            )
        except subprocess.TimeoutExpired:
            return Start(reason=f"not ready after {2 * _SECONDS} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        words = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        return Start(reason=f"does not run: {words[-1].strip()[:120]}")
    return Start(**json.loads(lines[-1]))


def repeat_shard(dataset: Path, out: Path, windows: int) -> None:
    """A dataset of so many windows whose shards are links to the first one of `dataset`."""
    manifest = DatasetManifest.load(dataset)
    shard = manifest.splits["train"].shards[0]
    out.mkdir()
    (out / manifest.tokenizer.file.name).symlink_to(dataset / manifest.tokenizer.file.name)
    shards = []
    for number in range(-(-windows * LENGTH // shard.tokens)):
        file = shard.file.model_copy(update={"name": f"train-{number:05d}.arrow"})
        (out / file.name).symlink_to(dataset / shard.file.name)
        shards.append(shard.model_copy(update={"file": file}))
    DatasetManifest(**{**dict(manifest), "splits": {"train": split_info(shards)}}).save(out)
