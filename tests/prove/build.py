"""Kills a dataset build at seeded points, repeats it, and compares every byte with a build that was left alone.

`python -m tests.prove.build` kills it 20 times, with 1, 2 and 3 worker processes in turn, and writes its table into
docs/data.md; CI does 3. The build has every stage, tables of many row groups as well, and packed shards. A kill is
SIGKILL to the parent alone, as the kernel's memory killer or a lost node's scheduler does it; its workers must end by
themselves.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet

from data_pipeline.passes.workshop import work_directory
from runtime.files import digest_file, half_removed

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


_PROSE = (
    "the sea fills an old harbour and that have to be with of long winter evening when small boats return after "
    "their work while people wait under bright windows for news about ships which left before autumn storms began"
)
_GROUPS, _ROWS = 24, 20
_UNIT = re.compile(r"^\.?([a-z-]+)-[0-9a-f]{32}")


class Kill(NamedTuple):
    """A killed and repeated build: units that stood finished when it was killed, and the stages that were under way."""

    processes: int
    finished: int
    stages: str
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


def everything(work: Path) -> dict[str, Any]:
    """All stages, over tables of many row groups as well, to packed shards; the tables are written into `work`."""
    tables, quiz = work / "tables.parquet", work / "quiz.jsonl"
    texts = prose(_GROUPS * _ROWS)
    column = pa.table({"text": texts, "name": [f"row {number}" for number in range(len(texts))]})
    pyarrow.parquet.write_table(column, tables, row_group_size=_ROWS)
    quiz.write_text("".join(json.dumps({"text": " ".join(text.split()[30:50])}) + "\n" for text in texts[3::50]))
    config = configuration()
    named = {"licence": "CC0-1.0"}
    table = {"kind": "parquet", "name": "tables", "glob": str(tables), "id_field": "name", **named}
    config["sources"].append(table)
    config["compression"] = "lz4"
    config["stages"] = {
        "normalise": "NFC",
        "scrub": {},
        "quality": {"min_words": 20, "max_word_length": 20, "max_symbols": 1, "min_letter_words": 0.3},
        "repetition": {"top_n_grams": {}, "repeated_n_grams": {10: 0.5}},
        "language": {"keep": ["en"]},
        "decontaminate": {"against": [{"kind": "jsonl", "name": "quiz", "glob": str(quiz), **named}]},
        "near_duplicates": {"n": 3},
    }
    return config


def prose(count: int) -> list[str]:
    """Texts of 120 words; of ten, one repeats and one nearly repeats a text that stood far before it."""
    source, vocabulary = random.Random(1), _PROSE.split()
    texts: list[str] = []
    for number in range(count):
        words = [f"{source.choice(vocabulary)}{source.choice(['', 's', 'ed'])}" for _ in range(120)]
        if number >= count // 2 and number % 10 in (4, 7):
            words = texts[number - count // 2].split()
            words[60] = words[60] if number % 10 == 4 else "changed"
        texts.append(" ".join(words))
    return texts


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
    return len(_units(out, finished=True))


def _units(out: Path, finished: bool) -> list[str]:
    """The stages of the units that are finished, or of those under way."""
    try:
        names = os.listdir(work_directory(out))
    except FileNotFoundError:
        return []
    return [found[1] for name in names if name.startswith(".") != finished and (found := _UNIT.match(name))]


def leftovers(out: Path) -> list[Path]:
    """What stands beside a dataset and should have gone when it was published."""
    work = work_directory(out)
    return [*([work] if work.exists() else []), *half_removed(work)]


def watch(build: "subprocess.Popen[bytes]", out: Path) -> int:
    """Wait for a build that must end well, and tell how many units it did."""
    most = 0
    while build.poll() is None:
        most = max(most, finished_units(out))
        time.sleep(0.002)
    finish(build)
    return most


def kill_and_repeat(config: dict[str, Any], out: Path, processes: int, units: int, delay: float) -> Kill:
    """Kill a build `delay` seconds after `units` units stand finished (or at its end), and repeat it."""
    build = start(config, out, processes)
    while finished_units(out) < units and build.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    workers = psutil.Process(build.pid).children(recursive=True) if build.poll() is None else []
    finished, stages = finished_units(out), ", ".join(sorted({*_units(out, finished=False)}))
    build.send_signal(signal.SIGKILL)
    build.communicate()
    _, alive = psutil.wait_procs(workers, timeout=10)
    if not out.exists() or leftovers(out):
        finish(start(config, out, processes))
    return Kill(processes, finished, stages, False, len(alive))


def prove(points: int, work: Path, seed: int = 0) -> Iterator[Kill]:
    """Kill builds at `points` seeded points."""
    config, source = everything(work), random.Random(seed)
    total = watch(start(config, work / "whole", 1), work / "whole")
    whole = contents(work / "whole")
    for point in range(points):
        out = work / f"killed-{point}"
        kill = kill_and_repeat(config, out, 1 + point % 3, source.randrange(total), source.random() * 0.05)
        yield kill._replace(identical=contents(out) == whole and not leftovers(out))


def table(kills: list[Kill]) -> str:
    """A Markdown table."""
    lines = [
        "| worker processes | units finished at the kill | under way | repeated build | workers left behind |",
        "|---|---|---|---|---|",
    ]
    for kill in kills:
        result = "byte-identical" if kill.identical else "DIFFERS"
        under_way = kill.stages or "-"
        lines.append(f"| {kill.processes} | {kill.finished} | {under_way} | {result} | {kill.workers_left} |")
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
