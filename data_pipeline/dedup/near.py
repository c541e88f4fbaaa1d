"""Near-duplicates over all parts of a build: pairs that meet in a band, compared by their signatures.

Everything lies on disk. A unit holds the hashes of one band and one range of them; the last unit holds the pairs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.exact import DROPPED, border
from data_pipeline.dedup.signatures import BANDS, KEPT_ROWS, SIGNATURES, Signatures
from data_pipeline.rows import Part, load_parts

PAIRS = "pairs.npy"
_PAIRS_AT_ONCE = 1 << 14
Numbers = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class PairTask:
    """One band, and the hashes of it whose first bits are `bucket`, of `1 << bits` buckets."""

    parts: Path
    exact: list[Path]
    band: int
    bucket: int
    bits: int
    threshold: float


def find_pairs(task: PairTask, directory: Path) -> None:
    """Unit: pairs of rows (earlier, later) that meet in the band and whose signatures agree enough."""
    parts = load_parts(task.parts)
    hashes, rows = _meeting(task, parts)
    order = np.lexsort((rows, hashes))
    hashes, rows = hashes[order], rows[order]
    same = hashes[1:] == hashes[:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(rows) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.append(starts, len(rows)))
    first = np.repeat(rows[starts], sizes)
    # each meets the first of its group, and the one before it: enough to join a group, and linear in its size
    pairs = np.stack([np.concatenate([first[1:][same], rows[:-1][same]]), np.concatenate([rows[1:][same]] * 2)], axis=1)
    pairs = np.unique(pairs, axis=0)
    alike = [
        pairs[begin : begin + _PAIRS_AT_ONCE][_agree(pairs[begin : begin + _PAIRS_AT_ONCE], parts, task.threshold)]
        for begin in range(0, len(pairs), _PAIRS_AT_ONCE)
    ]
    np.save(directory / PAIRS, np.concatenate(alike) if alike else np.zeros((0, 2), dtype=np.uint64))


def _meeting(task: PairTask, parts: list[Part]) -> tuple[Numbers, Numbers]:
    """Hashes of the band and numbers of the rows they belong to, exact duplicates left out."""
    found = [np.zeros((2, 0), dtype=np.uint64)]
    repeated = np.sort(np.concatenate([np.load(file) for file in task.exact])) if task.exact else found[0][0]
    for part in parts:
        hashes, rows = np.load(part.directory / BANDS, mmap_mode="r")[task.band]
        begin, end = (border(hashes, task.bucket + step, task.bits) for step in (0, 1))
        numbers = rows[begin:end] + np.uint64(part.first_row)
        places = np.searchsorted(repeated, numbers)
        again = places < len(repeated)
        again[again] = repeated[places[again]] == numbers[again]
        used = (rows[begin:end] < part.rows) & ~again
        found.append(np.stack([hashes[begin:end][used], numbers[used]]))
    hashes, rows = np.concatenate(found, axis=1)
    return hashes, rows


def _agree(pairs: Numbers, parts: list[Part], threshold: float) -> npt.NDArray[np.bool_]:
    """Which pairs' signatures are equal in at least a share `threshold` of the places."""
    left, right = (_signatures(pairs[:, side], parts) for side in (0, 1))
    enough: npt.NDArray[np.bool_] = (left == right).mean(axis=1) >= threshold
    return enough


def _signatures(numbers: Numbers, parts: list[Part]) -> Signatures:
    starts = np.array([part.first_row for part in parts], dtype=np.uint64)
    owner = np.searchsorted(starts, numbers, side="right") - 1
    out: Signatures | None = None
    for index in np.unique(owner):
        part = parts[index]
        mine = owner == index
        kept = np.load(part.directory / KEPT_ROWS, mmap_mode="r")
        places = np.searchsorted(kept, (numbers[mine] - starts[index]).astype(np.int64))
        signatures = np.load(part.directory / SIGNATURES, mmap_mode="r")
        if out is None:
            out = np.empty((len(numbers), signatures.shape[1]), dtype=np.uint32)
        out[mine] = signatures[places]
    assert out is not None, "pairs have parts"
    return out


def drop_later(pairs_files: list[Path], directory: Path) -> None:
    """Unit: numbers of all rows that are joined, over any chain of pairs, to an earlier row; in order."""
    pairs = np.concatenate([np.load(file) for file in pairs_files])
    rows, ends = np.unique(pairs, return_inverse=True)
    left, right = ends.reshape(-1, 2).T
    labels = np.arange(len(rows))
    while True:
        lowest = np.minimum(labels[left], labels[right])
        before = labels.copy()
        np.minimum.at(labels, left, lowest)
        np.minimum.at(labels, right, lowest)
        labels = labels[labels]
        if np.array_equal(labels, before):
            break
    np.save(directory / DROPPED, rows[labels != np.arange(len(rows))])
