"""Near-duplicates over all parts of a build: pairs that meet in a band, compared by their signatures.

Everything lies on disk. A unit holds the hashes of one band and one range of them, and has the files of one part open
at a time; the last unit maps a label of every document, and holds some pairs and labels at a time.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.exact import DROPPED, among, border
from data_pipeline.dedup.signatures import BANDS, KEPT_ROWS, SIGNATURES, Signatures
from data_pipeline.rows import Part, load_parts

PAIRS = "pairs.npy"
_PAIRS_AT_ONCE = 1 << 14
_LABELS_AT_ONCE = 1 << 18
Numbers = npt.NDArray[np.uint64]
Labels = npt.NDArray[np.int64]


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
    for part in parts:
        hashes, rows = np.load(part.directory / BANDS, mmap_mode="r")[task.band]
        begin, end = (border(hashes, task.bucket + step, task.bits) for step in (0, 1))
        used = np.flatnonzero(rows[begin:end] < part.rows) + begin
        found.append(np.stack([hashes[used], rows[used] + np.uint64(part.first_row)]))
    hashes, rows = np.concatenate(found, axis=1)
    order = np.argsort(rows)
    order = order[~among(task.exact, rows[order])]
    return hashes[order], rows[order]


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


@dataclass(frozen=True)
class ChainTask:
    """Files of pairs of rows whose numbers are in [first, first + rows)."""

    pairs: list[Path]
    first: int
    rows: int


def drop_later(task: ChainTask, directory: Path) -> None:
    """Unit: numbers of all rows that are joined, over any chain of pairs, to an earlier row; in order.

    Every row's label is the lowest row that it is known to be joined to: 8 bytes a row in a mapped file, lowered by
    all pairs in turn until nothing changes.
    """
    scratch = directory / "labels.npy"
    labels = np.lib.format.open_memmap(scratch, "w+", np.int64, (max(task.rows, 1),))
    for begin, end in _spans(len(labels)):
        labels[begin:end] = np.arange(begin, end)
    while _lower(labels, task):
        pass
    counts = [_later(labels, span).size for span in _spans(len(labels))]
    if sum(counts):
        out = np.lib.format.open_memmap(directory / DROPPED, "w+", np.uint64, (sum(counts),))
        filled = 0
        for span, count in zip(_spans(len(labels)), counts, strict=True):
            out[filled : filled + count] = (_later(labels, span) + task.first).astype(np.uint64)
            filled += count
        out.flush()
    else:
        np.save(directory / DROPPED, np.zeros(0, dtype=np.uint64))
    scratch.unlink()


def _spans(count: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + _LABELS_AT_ONCE, count)) for begin in range(0, count, _LABELS_AT_ONCE)]


def _lower(labels: Labels, task: ChainTask) -> bool:
    """Give both rows of every pair, and their labels, the lower of their labels; then labels those of their labels.

    Whether anything changed: if not, all rows that are joined have one label, the lowest of them.
    """
    changed = False
    for file in task.pairs:
        pairs = np.load(file, mmap_mode="r")
        for begin, end in _spans(len(pairs)):
            rows = pairs[begin:end].astype(np.int64) - task.first
            known = labels[rows]
            apart = known[:, 0] != known[:, 1]
            if apart.any():
                changed = True
                ends, lowest = np.concatenate([rows[apart], known[apart]], axis=1), known[apart].min(axis=1)
                np.minimum.at(labels, ends, lowest[:, None])
    for begin, end in _spans(len(labels)):
        before = labels[begin:end]
        after = labels[before]
        if not np.array_equal(before, after):
            changed = True
            labels[begin:end] = after
    return changed


def _later(labels: Labels, span: tuple[int, int]) -> Labels:
    """Rows of a span whose label is not their own."""
    begin, end = span
    return np.flatnonzero(labels[begin:end] != np.arange(begin, end)) + begin
