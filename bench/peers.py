"""The data path beside other projects', in one run: `python -m bench.peers [--markdown FILE] [--json FILE]`.

`--rehearse` goes through all of it with little data: whether every peer runs, and how the tables look, no figures.

Peers are installed into an environment of their own (`--env`); of one that does not install or run, the tables say so.
Every reader lives in a process and they take turns; see `bench.peer_programs`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from bench.peer_build import BuildResult, measure_build
from bench.peer_environment import PEERS, Environment, prepare_environment
from bench.peer_process import ReaderProcess
from bench.peer_starts import StartResult, measure_starts
from bench.report import Table, write_between_markers
from bench.run import describe_run
from bench.timing import Spread, interleave, ratio
from bench.verify import VerifyResult, measure_verify
from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig
from data_pipeline.manifest import DatasetManifest, SplitInfo
from data_pipeline.passes.cut import split_info
from data_pipeline.shards import ShardForm, Tokens, default_shard_tokens, write_shard
from runtime.files import write_json

LENGTH, BATCH = 4096, 8


@dataclass(frozen=True)
class Size:
    """How much is measured. `windows` to read, `batches` a round, `starts` at so many windows; bytes of text to build
    from (None: all there is), `builds` times."""

    windows: int = 1 << 14  # 128 MiB of uint16
    batches: int = 256
    rounds: int = 5
    starts: tuple[int, ...] = (10_000_000, 100_000_000, 1_000_000_000)
    text: int | None = None
    builds: int = 3


REHEARSAL = Size(windows=1 << 10, batches=8, rounds=2, starts=(100_000,), text=1_000_000, builds=2)
_PROGRAMS = Path(__file__).parent / "peer_programs"
ROOT = {"PYTHONPATH": str(Path(__file__).parent.parent)}
OURS, OURS_THREAD, MMAP, GATHER = (
    "Lacuna, in process",
    "Lacuna, prefetch thread",
    "flat mmap, a copy per window",
    "flat mmap, one gather a batch",
)


@dataclass(frozen=True)
class ReadResult:
    """Tokens/s by reader, times the flat file's rate a window in the same round, and why others are missing."""

    rates: dict[str, Spread]
    to_mmap: dict[str, Spread]
    missing: dict[str, str]


def make_stream(folder: Path, windows: int) -> tuple[Path, Path]:
    """A dataset of so many windows of random ids in our shards, and the same stream as a flat file."""
    base, flat, dataset = folder / "base", folder / "flat.bin", folder / "dataset"
    values = {
        "sources": [{"kind": "python_stdlib", "name": "stdlib", "licence": "PSF-2.0", "max_bytes": 300_000}],
        "tokenizer": {"kind": "train", "vocabulary": 2048, "sample_bytes": 300_000},
    }
    build_dataset(BuildConfig.parse(values, "peers"), base, show_progress=False)
    manifest = DatasetManifest.load(base)
    tokens = np.random.default_rng(0).integers(300, 2048, windows * LENGTH).astype(np.uint16)
    tokens[999::1000] = tokens[-1] = manifest.tokenizer.eos_id
    tokens.tofile(flat)
    dataset.mkdir()
    shutil.copy(base / manifest.tokenizer.file.name, dataset)
    train = _shards(dataset, tokens, manifest)
    splits: dict[str, SplitInfo] = {"train": train, "validation": split_info([])}
    DatasetManifest(**{**dict(manifest), "splits": splits}).save(dataset)
    return dataset, flat


def _shards(dataset: Path, tokens: Tokens, manifest: DatasetManifest) -> SplitInfo:
    import pyarrow as pa

    ends = np.unique(np.flatnonzero(tokens == manifest.tokenizer.eos_id) + 1)
    kept = {"end": ends, "source": np.zeros(ends.size, np.uint16), "bytes": np.diff(ends, prepend=0)}
    columns = {name: pa.array(values) for name, values in kept.items()}
    columns["digest"] = pa.array([bytes(16)] * ends.size, pa.binary(16))
    schema = pa.schema([pa.field(name, column.type, nullable=False) for name, column in columns.items()])
    form = ShardForm("uint16", manifest.batch_tokens, default_shard_tokens("uint16"))
    return split_info([write_shard(dataset, "train-00000", form, [tokens], pa.table(columns, schema=schema))])


def _commands(environment: Environment, dataset: Path, flat: Path) -> dict[str, list[str]]:
    """The program of each reader; `{folder}` stands for one of its own."""
    ours, readers = (str(_PROGRAMS / name) for name in ("ours.py", "readers.py"))
    lengths, common = [str(LENGTH), str(BATCH)], [str(flat), "{folder}", str(LENGTH), str(BATCH)]
    commands = {
        OURS: [sys.executable, ours, str(dataset), str(flat), *lengths, "none"],
        OURS_THREAD: [sys.executable, ours, str(dataset), str(flat), *lengths, "thread"],
        MMAP: [sys.executable, readers, "flat-mmap", *common, "0"],
        GATHER: [sys.executable, readers, "flat-gather", *common, "0"],
    }
    for peer in PEERS:
        if peer not in environment.missing:
            python = environment.python_of(peer)
            commands[peer] = [python, readers, peer, *common, "0"]
            if PEERS[peer].workers:
                commands[f"{peer}, 2 workers"] = [python, readers, peer, *common, "2"]
    return commands


def measure_reading(
    environment: Environment, stream: tuple[Path, Path], scratch: Path, console: Console, size: Size
) -> ReadResult:
    """All readers in turn, a round of batches each."""
    dataset, flat = stream
    commands = _commands(environment, dataset, flat)
    missing, readers = dict(environment.missing), {}
    try:
        for number, (name, command) in enumerate(commands.items()):
            folder = str(scratch / f"reader-{number}")
            try:
                readers[name] = ReaderProcess(
                    [part.format(folder=folder) for part in command], ROOT, scratch / f"{number}.log"
                )
            except RuntimeError as error:
                missing[name] = str(error)
            console.print(f"{name}: {missing.get(name, 'ready')}", highlight=False, markup=False)
        times = interleave({name: reader.seconds(size.batches) for name, reader in readers.items()}, size.rounds)
    finally:
        for reader in readers.values():
            reader.close()
    tokens = size.batches * BATCH * LENGTH
    return ReadResult(
        {name: Spread.of([tokens / t for t in taken]) for name, taken in times.items()},
        {name: ratio(times[MMAP], taken) for name, taken in times.items()},
        missing,
    )


def read_table(result: ReadResult, environment: Environment, size: Size) -> Table:
    """Rates, the fastest first."""
    rows = [
        [_with_version(name, environment), rate.show(1, 1e-6), result.to_mmap[name].show(2, unit="×")]
        for name, rate in sorted(result.rates.items(), key=lambda item: -item[1].median)
    ]
    rows += [[_with_version(name, environment), reason, "–"] for name, reason in result.missing.items()]
    ours, best = result.rates[OURS].median, max(
        (rate.median for name, rate in result.rates.items() if name.partition(",")[0] in PEERS), default=0.0
    )  # fmt: skip
    share = result.to_mmap[OURS].median
    note = (
        f"{BATCH} × {LENGTH} windows a batch as int64, shuffled, from {size.windows:,} windows in the page cache; each "
        f"reader in its own format and process. Aims: at least 0.8× the flat file in process "
        f"({'met' if share >= 0.8 else 'missed'}: {share:.2f}×), ahead of every peer "
        f"({'met' if ours > best else 'missed'}: {ours / best if best else 0:.1f}× the fastest)."
    )
    return Table("Loaders side by side", note, ["who", "M tokens/s", "of flat mmap"], rows)


def start_table(result: StartResult, environment: Environment, size: Size) -> Table:
    """Seconds and memory by number of windows."""
    rows = [[_with_version(name, environment), *cells] for name, cells in result.cells().items()]
    note = (
        "From data that is there to the first of so many shuffled windows: seconds and growth of the process's peak "
        "memory, imports excluded. Files are sparse, empty or links to one; each start is a process."
    )
    return Table("Start-up", note, ["who", *(f"{n:,} windows" for n in size.starts)], rows)


def verify_table(result: VerifyResult) -> Table:
    """Rates of `verify` and of a plain read."""
    rows = [
        [name, rate.show(0, 1e-6), result.to_read[name].show(2, unit="×") if name in result.to_read else "1"]
        for name, rate in result.rates.items()
    ]
    note = (
        f"{result.bytes / 1e6:.0f} MB in the page cache. Verify digests each file and record batch, and looks at every "
        "id; it takes so many times a read's time. Processes share the shards of a large dataset, and must start."
    )
    return Table("Verifying a dataset", note, ["what", "MB/s", "time"], rows)


def build_table(result: BuildResult) -> Table:
    """Rates of the build and of the bare tokenizer."""
    aim = 0.9 * result.cores
    note = (
        f"{result.tokens:,} tokens of {result.documents:,} documents ({result.bytes / 1e6:.1f} MB), the vocabulary "
        f"given; {result.cores} processes; bare: one thread, one call a document. The build makes "
        f"{result.ratio.show(2)} times the bare rate (aim 0.9 × {result.cores} cores = {aim:g}: "
        f"{'met' if result.ratio.median >= aim else 'missed'})."
    )
    rows = [[name, rate.show(2, 1e-6)] for name, rate in result.rates.items()]
    return Table("Building a dataset", note, ["what", "M tokens/s"], rows)


def _with_version(name: str, environment: Environment) -> str:
    peer, comma, rest = name.partition(",")
    version = environment.versions.get(peer)
    return f"{peer} {version}{comma}{rest}" if version else name


def main(
    json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Rewrite the tables in this document.")] = None,
    env: Annotated[Path, typer.Option(help="The peers' environment; made if it is missing.")] = Path(".venv-peers"),
    directory: Annotated[Path | None, typer.Option(help="Where to work.")] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Little data: see that all of it runs.")] = False,
) -> None:
    """Measure the data path beside its peers."""
    size = REHEARSAL if rehearse else Size()
    console, run, begin = Console(width=120), describe_run(), time.monotonic()
    environment = prepare_environment(env, console)
    with tempfile.TemporaryDirectory(dir=directory, prefix="lacuna-peers-") as folder:
        scratch = Path(folder).absolute()
        stream = make_stream(scratch, size.windows)
        verify = measure_verify(stream[0], scratch, size.rounds)
        reading = measure_reading(environment, stream, scratch, console, size)
        starts = measure_starts(environment, stream[0], scratch, console, size.starts)
        build = measure_build(scratch, len(os.sched_getaffinity(0)), size.text, size.builds)
    run["seconds"] = round(time.monotonic() - begin)
    tables = [
        read_table(reading, environment, size),
        start_table(starts, environment, size),
        build_table(build),
        verify_table(verify),
    ]
    machine = f"{run['date']}, {run['processor']}, {run['cores']} cores, Python {run['python']}"
    line = f"{machine}; the run took {run['seconds']} s."
    line = f"A REHEARSAL with little data: no figures. {line}" if rehearse else line
    console.print(line, highlight=False, markup=False)
    for table in tables:
        table.show(console)
    if json is not None:
        values = {
            "reading": asdict(reading),
            "starts": asdict(starts),
            "build": asdict(build),
            "verify": asdict(verify),
        }
        write_json(json, {"run": run, "versions": environment.versions, **values})
    if markdown is not None:
        write_between_markers(markdown, "\n\n".join([line, *(table.markdown() for table in tables)]), "peers")


if __name__ == "__main__":
    typer.run(main)
