"""Every benchmark in one run: `python -m bench.run [--json FILE] [--markdown FILE]`."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from bench.checkpoint import (
    BlockedResult,
    CheckpointResult,
    ComputedBlocked,
    compute_blocked,
    measure_blocked,
    measure_checkpoints,
)
from bench.communication import LayoutResult, measure_communication
from bench.gemm import GemmRates, measure_gemm
from bench.loader import FeedResult, WindowResult, measure_feeds, measure_windows
from bench.report import (
    Table,
    blocked_table,
    checkpoint_table,
    communication_table,
    feed_table,
    gemm_table,
    reshard_table,
    step_table,
    window_table,
    write_between_markers,
)
from bench.reshard import ReshardResult, measure_reshard
from bench.step import StepResult, measure_steps
from bench.workload import DEMO, LARGER, STATE, WORKLOADS, build_data
from runtime.files import write_json

_WINDOWS = ((128, 16), (2048, 16))  # (tokens, windows of a batch): the demo's, and a usual pretraining length

_WIDTH = 120  # columns where no terminal says


@dataclass(frozen=True)
class Results:
    """All that a run measured."""

    gemm: GemmRates
    steps: list[StepResult]
    windows: list[WindowResult]
    feeds: list[FeedResult]
    communication: list[LayoutResult]
    checkpoint: CheckpointResult
    blocked: BlockedResult
    blocked_large: ComputedBlocked
    reshard: ReshardResult

    def tables(self) -> list[Table]:
        """In the order of the document."""
        return [
            gemm_table(self.gemm),
            *(step_table(step) for step in self.steps),
            window_table(self.windows),
            feed_table(self.feeds, self.steps),
            communication_table(self.communication),
            checkpoint_table(self.checkpoint),
            blocked_table(self.blocked, self.checkpoint.copy, self.blocked_large),
            reshard_table(self.reshard),
        ]


def describe_run() -> dict[str, Any]:
    """Date and machine, without its name."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure(scratch: Path, console: Console) -> Results:
    """Run everything below directory `scratch`."""
    data = scratch / "data"
    with console.status("dataset from Python's standard library"):
        build_data(data)
    with console.status("matrix products"):
        gemm = measure_gemm({"demo": DEMO.config(data), "larger": LARGER.config(data)})
    with console.status("training steps, all contenders in turn"):
        steps = measure_steps(WORKLOADS, data, gemm.best)
    with console.status("reading windows and assembling batches"):
        windows = [measure_windows(DEMO, data, scratch, length, batch) for length, batch in _WINDOWS]
        feeds = measure_feeds(WORKLOADS, data)
    with console.status("two processes against one, layout by layout"):
        communication = measure_communication(data)
    with console.status("checkpoints"):
        blocked = measure_blocked(DEMO, data, scratch)
        checkpoint = measure_checkpoints(STATE, data, scratch)
        reshard = measure_reshard(LARGER, data, scratch)
    large = compute_blocked(checkpoint.copy.median, data)
    return Results(gemm, steps, windows, feeds, communication, checkpoint, blocked, large, reshard)


def main(
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Rewrite the figures in this document.")] = None,
    directory: Annotated[Path | None, typer.Option(help="Where to work; checkpoints are written to its disk.")] = None,
) -> None:
    """Measure this machine and what the project makes of it."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    run, start = describe_run(), time.monotonic()
    with tempfile.TemporaryDirectory(dir=directory, prefix="lacuna-bench-") as scratch:
        results = measure(Path(scratch), console)
    run["seconds"] = round(time.monotonic() - start)
    line = (
        f"{run['date']}, {run['processor']}, {run['cores']} cores, {run['threads']} threads, "
        f"torch {run['torch']}, Python {run['python']}; the run took {run['seconds']} s."
    )
    console.print(line, highlight=False)
    for table in results.tables():
        table.show(console)
    if json is not None:
        write_json(json, {"run": run, **asdict(results)})
    if markdown is not None:
        write_between_markers(markdown, "\n\n".join([line, *(table.markdown() for table in results.tables())]))


if __name__ == "__main__":
    typer.run(main)
