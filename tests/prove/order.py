"""A run whose world changes from 4 to 2 to 3 to 8 processes, killed on the way, against one that never changed.

`python -m tests.prove.order` trains on a mixture whose weights change, and whose sources begin second epochs until the
first runs dry, with real processes; compares every batch digest, audits both runs, and writes its table into
docs/data.md.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pretrain.tracking.spool import read_metrics
from tests.prove.page import rewrite
from tests.support.command_line import lacuna, succeeded
from tests.support.launched import Launched
from tests.support.small_run import build_dataset, write_corpus

WORLDS, BATCH, STEPS, CHANGE = [4, 2, 3, 8], 24, 24, 250
KILLED, KILLED_WORLD = 2, 4
"""Before the world of this index goes on, one of so many processes is killed by SIGKILL in the middle of a step."""


class Part(NamedTuple):
    """The steps that one world took: of how many the batch digest is that of the run that never changed."""

    world: int
    first: int
    last: int
    equal: int


def write_run(folder: Path) -> Path:
    """A recipe on two datasets, with a change of weights; the first begins a second epoch and runs dry in it."""
    data = build_dataset(write_corpus(folder), folder / "data")
    other = folder / "other"
    other.symlink_to(data)
    values: dict[str, Any] = {
        "name": "worlds",
        "model": {"layers": 2, "width": 24, "heads": 3, "kv_heads": 3, "ffn": 66, "vocabulary": 300},
        "optimizer": {"lr": 0.01},
        "data": {
            "mixture": {str(data): 2.0, str(other): 1.0},
            "segments": [{"from_sample": CHANGE, "mixture": {str(data): 1.0, str(other): 1.0}}],
            "max_epochs": {str(data): 1.5},
        },
        "train": {"steps": STEPS, "global_batch": BATCH, "micro_batch": 1, "sequence_length": 128, "seed": 1},
        "checkpoint": {"every": 4, "keep": 3},
        "tracking": {"enabled": False},
    }
    path = folder / "worlds.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def digests(run: Path) -> dict[int, str]:
    """Batch digest of each logged step."""
    return {line["step"]: line["data/batch_digest"] for line in read_metrics(run / "metrics.jsonl")}


def kill_under_way(recipe: Path, run: Path, processes: int) -> None:
    """Start the run again and kill all of it some steps later, half a step after one has ended."""
    before = len(digests(run))
    launched = Launched(recipe, run, "--processes", str(processes))
    while len(digests(run)) < before + 2:
        assert launched.process.poll() is None
        time.sleep(0.01)
    *_, line = read_metrics(run / "metrics.jsonl")
    time.sleep(line["perf/step_seconds"] / 2)
    os.killpg(launched.process.pid, signal.SIGKILL)
    launched.process.communicate()


def prove(folder: Path) -> tuple[list[Part], dict[str, Any]]:
    """Both runs; what each world read, and the audit of the run that changed."""
    recipe = write_run(folder)
    whole, changing = folder / "whole", folder / "changing"
    succeeded(lacuna("train", recipe, "--run", whole, timeout=600))
    expected = digests(whole)
    parts = []
    for number, world in enumerate(WORLDS):
        first, last = STEPS * number // len(WORLDS), STEPS * (number + 1) // len(WORLDS)
        if number == KILLED:
            kill_under_way(recipe, changing, KILLED_WORLD)
        options = ["--processes", str(world), "--until", str(last)]
        succeeded(lacuna("train", recipe, "--run", changing, *options, timeout=600))
        found = digests(changing)
        equal = sum(found[step] == expected[step] for step in range(first + 1, last + 1))
        parts.append(Part(world, first + 1, last, equal))
    assert digests(changing) == expected
    for run in (whole, changing):
        audit = json.loads(succeeded(lacuna("data", "audit", run, "--json")))
        assert all(source["epochs"] > 1 for source in audit["sources"]), "a border of epochs lies in the run"
        assert len(audit["segments"]) == 3, "weights change, and a source runs dry"
    return parts, audit


def table(parts: list[Part], audit: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| processes | steps | batch digests equal to those of the run that never changed |", "|---|---|---|"]
    for number, part in enumerate(parts):
        killed = f", after {KILLED_WORLD} were killed in the middle of a step" if number == KILLED else ""
        name = f"{part.world}{killed}"
        lines.append(f"| {name} | {part.first} to {part.last} | {part.equal} of {part.last - part.first + 1} |")
    given = "; ".join(
        f"source {number} gave {s['samples']} samples, {s['epochs']:.3f} epochs of {s['windows']} windows"
        for number, s in enumerate(audit["sources"], 1)
    )
    dry = audit["segments"][2]["from_sample"]
    lines += [
        "",
        f"The audit of both runs: {given}; weights changed at sample {CHANGE}, source 1 had run dry at {dry}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Prove, report, and fail if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the table instead of writing it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        parts, audit = prove(Path(work))
    if options.dry_run:
        print(table(parts, audit))
    else:
        rewrite(Path("docs/data.md"), "worlds", table(parts, audit))
    return int(any(part.equal != part.last - part.first + 1 for part in parts))


if __name__ == "__main__":
    sys.exit(main())
