"""Exact duplicates over all parts of a build, found by sorting digests; the first of its kind stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.rows import DIGESTS, Part, load_parts

DROPPED = "dropped.npy"
BUCKET_ROWS = 1 << 23
"""Documents whose digests are sorted at once: 24 bytes each, and as much again for the sort."""


@dataclass(frozen=True)
class BucketTask:
    """The digests whose first bits are `bucket`, of `1 << bits` buckets."""

    parts: Path
    bucket: int
    bits: int


def bucket_bits(rows: int, bucket_rows: int = BUCKET_ROWS) -> int:
    """How many bits of the digest choose the bucket, so that one has about `bucket_rows` rows at most."""
    return max(0, (max(rows, 1) - 1) // bucket_rows).bit_length()


def find_duplicates(task: BucketTask, directory: Path) -> None:
    """Unit: numbers of the rows of a bucket whose text stood in an earlier row, in order."""
    found = []
    for part in load_parts(task.parts):
        high, low, rows = np.load(part.directory / DIGESTS, mmap_mode="r")
        begin, end = (border(high, task.bucket + step, task.bits) for step in (0, 1))
        used = np.flatnonzero(rows[begin:end] < part.rows) + begin
        found.append(np.stack([high[used], low[used], rows[used] + np.uint64(part.first_row)]))
    high, low, rows = np.concatenate(found, axis=1) if found else np.zeros((3, 0), dtype=np.uint64)
    order = np.lexsort((rows, low, high))
    high, low, rows = high[order], low[order], rows[order]
    again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    np.save(directory / DROPPED, np.sort(rows[1:][again]))


def border(high: np.ndarray[tuple[int], np.dtype[np.uint64]], bucket: int, bits: int) -> int:
    """Where the digests of `bucket` begin in the sorted column `high`."""
    if bucket >> bits:
        return len(high)
    return int(np.searchsorted(high, np.uint64(bucket << (64 - bits) & (1 << 64) - 1)))


def rows_within(files: Sequence[Path], part: Part) -> npt.NDArray[np.int64]:
    """Rows of `part` among the numbers in sorted files, counted from its first; only those are held."""
    found = [np.zeros(0, dtype=np.int64)]
    for file in files:
        numbers = np.load(file, mmap_mode="r")
        begin, end = np.searchsorted(numbers, np.array([part.first_row, part.first_row + part.rows], dtype=np.uint64))
        found.append((numbers[begin:end] - np.uint64(part.first_row)).astype(np.int64))
    return np.concatenate(found)


def among(files: Sequence[Path], numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of `numbers`, in order and none twice, stand in sorted files, of which one is open at a time."""
    found = np.zeros(len(numbers), dtype=bool)
    for file in files:
        known = np.load(file, mmap_mode="r")
        places = np.searchsorted(numbers, known)
        known, places = (column[places < len(numbers)] for column in (known, places))
        found[places[numbers[places] == known]] = True
    return found
