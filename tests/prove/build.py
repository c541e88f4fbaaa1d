"""Kills a dataset build at seeded points, repeats it, and compares every byte with a build that was left alone.

`python -m tests.prove.build` kills it 20 times, with 1, 2 and 3 worker processes in turn, and writes its table into
docs/data.md; CI does 3. A kill is SIGKILL to the parent alone, as the kernel's memory killer or a lost node's
scheduler does it; its workers must end by themselves.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from runtime.files import digest_file

BEGIN, END = "<!-- kills: begin -->", "<!-- kills: end -->"
PROGRAM = """
import json, sys, pathlib
from data_pipeline.build import build_dataset
from data_pipeline.build import Means
from data_pipeline.config import BuildConfig
values, out, processes = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
means = Means(processes=processes, part_bytes=30_000, show_progress=False)
build_dataset(BuildConfig.parse(values, "build"), out, means=means)
"""


class Kill(NamedTuple):
    """A killed and repeated build: units that stood finished when it was killed."""

    processes: int
    finished: int
    identical: bool
    workers_left: int


def configuration(shard_tokens: int = 12_000) -> dict[str, Any]:
    """A quarter of a megabyte of the standard library."""
    return {
        "sources": [{"kind": "python_stdlib", "name": "stdlib", "licence": "PSF-2.0", "max_bytes": 250_000}],
        "tokenizer": {"kind": "train", "vocabulary": 500, "sample_bytes": 50_000},
        "validation": 0.05,
        "shard_tokens": shard_tokens,
        "batch_tokens": 4096,
    }


def start(config: dict[str, Any], out: Path, processes: int) -> "subprocess.Popen[bytes]":
    """A build in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(config), str(out), str(processes)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(build: "subprocess.Popen[bytes]") -> None:
    """Wait for a build that must end well."""
    _, errors = build.communicate(timeout=300)
    assert build.returncode == 0, errors.decode()


def contents(directory: Path) -> dict[str, str]:
    """Digest of every file by name."""
    return {path.name: digest_file(path) for path in directory.iterdir()}


def finished_units(out: Path) -> int:
    """Units that stand finished in the work directory of a build."""
    try:
        return sum(
            "-" in name and not name.startswith(".") for name in os.listdir(out.with_name(f".{out.name}.building"))
        )
    except FileNotFoundError:
        return 0


def kill_and_repeat(config: dict[str, Any], out: Path, processes: int, units: int, delay: float) -> Kill:
    """Kill a build `delay` seconds after `units` units stand finished (or at its end), and repeat it."""
    build = start(config, out, processes)
    while finished_units(out) < units and build.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    workers = psutil.Process(build.pid).children(recursive=True) if build.poll() is None else []
    finished = finished_units(out)
    build.send_signal(signal.SIGKILL)
    build.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    if not out.exists():
        finish(start(config, out, processes))
    return Kill(processes, finished, False, len(alive))


def prove(points: int, work: Path, seed: int = 0) -> Iterator[Kill]:
    """Kill builds at `points` seeded points."""
    config, source = configuration(), random.Random(seed)
    finish(start(config, work / "whole", 1))
    whole = contents(work / "whole")
    total = 3 * sum(name.endswith(".arrow") for name in whole) // 2
    for point in range(points):
        out = work / f"killed-{point}"
        kill = kill_and_repeat(config, out, 1 + point % 3, source.randrange(total), source.random() * 0.05)
        left = out.with_name(f".{out.name}.building").exists()
        yield kill._replace(identical=contents(out) == whole and not left)


def table(kills: list[Kill]) -> str:
    """A Markdown table."""
    lines = [
        "| worker processes | units finished at the kill | repeated build | workers left behind |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {k.processes} | {k.finished} | {'byte-identical' if k.identical else 'DIFFERS'} | {k.workers_left} |"
        for k in kills
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, run, and rewrite the table between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--page", type=Path, default=Path("docs/data.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        kills = list(prove(options.points, Path(work)))
    good = sum(kill.identical and not kill.workers_left for kill in kills)
    text = options.page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    note = f"{good} of {len(kills)} as they must be, by `python -m tests.prove.build --points {options.points}`."
    options.page.write_text(f"{before}{BEGIN}\n{note}\n\n{table(kills)}\n{END}{after}")
    print(note)
    sys.exit(good != len(kills))


if __name__ == "__main__":
    main()
