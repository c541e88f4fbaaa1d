"""`lacuna data verify` beside a plain read of the same files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.timing import Spread, interleave, ratio, seconds
from data_pipeline.combine import merge_datasets
from data_pipeline.manifest import DatasetManifest
from data_pipeline.verify import verify_dataset

ALONE, READ = "lacuna data verify, one process", "plain read"
_CHUNK = 1 << 20
_COPIES = 16


@dataclass(frozen=True)
class VerifyResult:
    """Bytes/s of all on files in the page cache, and the time of each `verify` over that of the read."""

    bytes: int
    rates: dict[str, Spread]
    to_read: dict[str, Spread]


def measure_verify(dataset: Path, scratch: Path, rounds: int) -> VerifyResult:
    """Verify a dataset, whose shards stand in it several times over as links, and read its files, in turn."""
    large = scratch / "verify"
    merge_datasets([dataset] * _COPIES, large, progress=False)
    files = DatasetManifest.load(large).files
    size = sum(file.bytes for file in files)
    cores = len(os.sched_getaffinity(0))

    def verify(processes: int) -> None:
        verify_dataset(large, progress=False, processes=processes).require_ok()

    def read() -> None:
        for file in files:
            with open(large / file.name, "rb", buffering=0) as source:
                while source.read(_CHUNK):
                    pass

    read()
    contenders = {ALONE: lambda _: seconds(lambda: verify(1)), READ: lambda _: seconds(read)}
    contenders[f"lacuna data verify, {cores} processes"] = lambda _: seconds(lambda: verify(cores))
    times = interleave(contenders, rounds)
    rates = {name: Spread.of([size / t for t in taken]) for name, taken in times.items()}
    to_read = {name: ratio(taken, times[READ]) for name, taken in times.items() if name != READ}
    return VerifyResult(size, rates, to_read)
