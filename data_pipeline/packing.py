"""How documents are cut into windows: pieces of one document, or several pieces together by best fit."""

from bisect import bisect_left, insort
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.files import digest_bytes

PiecePacking = Literal["document", "best_fit"]
Numbers = npt.NDArray[np.int64]


class Pieces(NamedTuple):
    """The windows of a shard. Window w holds the tokens [begin, begin + length) of each of its pieces
    [offsets[w], offsets[w + 1]), counted from the shard's first token."""

    offsets: npt.NDArray[np.int32]
    begins: Numbers
    lengths: npt.NDArray[np.int32]

    @property
    def windows(self) -> int:
        """How many there are."""
        return len(self.offsets) - 1

    @property
    def digest(self) -> str:
        """xxh3-128 of all numbers, little-endian."""
        return digest_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in self))


def pack_documents(ends: Numbers, length: int, packing: PiecePacking) -> Pieces:
    """The windows of at most `length` tokens of a shard whose documents end at `ends`: a pure function.

    A document is cut every `length` tokens, so only its last piece may be shorter. `document`: each piece is a window,
    in the order of the stream. `best_fit`: whole pieces come first; the others go, longest first, into the window with
    the least room in which they fit (best-fit decreasing; Ding et al. 2024, arXiv 2404.10830, section 3), and stand
    there in the order of the stream.
    """
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    counts = -(-(ends - begins) // length)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + (np.arange(counts.sum()) - first) * length
    lengths = np.minimum(np.repeat(ends, counts) - starts, length)
    windows = np.arange(len(starts)) if packing == "document" else best_fit(lengths, length)
    order = np.argsort(windows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(windows))]).astype(np.int32)
    return Pieces(offsets, starts[order].astype(np.int64), lengths[order].astype(np.int32))


def best_fit(lengths: npt.NDArray[Any], capacity: int) -> Numbers:
    """The bin of each piece, numbered as they were opened, as best-fit decreasing has it; pieces of equal length in
    their order.

    Equal pieces are placed together: the bin with the least room that fits one takes all that fit before another
    bin is looked at. So the cost is that of the pieces, and of the pairs (length, room) that meet.
    """
    bins = np.empty(len(lengths), dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    borders = np.flatnonzero(np.diff(lengths[order])) + 1
    open_bins: dict[int, Numbers] = {}  # by room
    rooms: list[int] = []  # ascending
    opened = 0
    for equal in np.split(order, borders) if len(order) else []:
        pieces, size = equal, int(lengths[equal[0]])
        while len(pieces):
            place = bisect_left(rooms, size)
            if place < len(rooms):
                room = rooms.pop(place)
                found = open_bins.pop(room)
            else:
                room = capacity
                found = np.arange(opened, opened - (-len(pieces) // (capacity // size)))
                opened += len(found)
            each = room // size
            full = min(len(found), len(pieces) // each)
            bins[pieces[: full * each]] = np.repeat(found[:full], each)
            _keep(open_bins, rooms, room - each * size, found[:full])
            pieces, found = pieces[full * each :], found[full:]
            if len(pieces) and len(found):
                bins[pieces] = found[0]
                _keep(open_bins, rooms, room - len(pieces) * size, found[:1])
                pieces, found = pieces[:0], found[1:]
            _keep(open_bins, rooms, room, found)
    return bins


def _keep(open_bins: dict[int, Numbers], rooms: list[int], room: int, bins: Numbers) -> None:
    if not room or not len(bins):
        return
    if room in open_bins:
        open_bins[room] = np.sort(np.concatenate([open_bins[room], bins]))
    else:
        insort(rooms, room)
        open_bins[room] = bins
