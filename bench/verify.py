"""`lacuna data verify` beside a plain read of the same files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.timing import Spread, interleave, ratio, seconds
from data_pipeline.manifest import DatasetManifest
from data_pipeline.verify import verify_dataset

VERIFY, READ = "lacuna data verify, one process", "plain read"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class VerifyResult:
    """Bytes/s of both on files in the page cache, and the time of `verify` over that of the read."""

    bytes: int
    rates: dict[str, Spread]
    to_read: Spread


def measure_verify(dataset: Path, rounds: int) -> VerifyResult:
    """Verify a dataset and read its files, in turn."""
    files = DatasetManifest.load(dataset).files
    size = sum(file.bytes for file in files)

    def verify() -> None:
        verify_dataset(dataset, progress=False, processes=1).require_ok()

    def read() -> None:
        for file in files:
            with open(dataset / file.name, "rb", buffering=0) as source:
                while source.read(_CHUNK):
                    pass

    read()
    times = interleave({VERIFY: lambda _: seconds(verify), READ: lambda _: seconds(read)}, rounds)
    rates = {name: Spread.of([size / t for t in taken]) for name, taken in times.items()}
    return VerifyResult(size, rates, ratio(times[VERIFY], times[READ]))
