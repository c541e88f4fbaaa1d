"""The rows of a part: one for every document that was met, whatever became of it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from runtime.files import read_json, write_json

ROWS, DIGESTS, DOCUMENTS = "rows.npy", "digests.npy", "documents.arrow"
UNMET = "unmet.json"
"""Named fields that no record of the part has."""
ROW = np.dtype(
    [
        ("high", "<u8"),  # xxh3-128 of the text
        ("low", "<u8"),
        ("split", "<u8"),  # xxh3-64 of the text with the build's seed: the validation split
        ("sample", "<u8"),  # with the seed after it: the tokenizer's sample
        ("bytes", "<i8"),
        ("fate", "u1"),
        ("language", "S3"),
        ("normalised", "u1"),  # whether the normal form is another text
        ("lines_cut", "<u4"),
        ("emails", "<u4"),
        ("addresses", "<u4"),
    ]
)
DOCUMENT = pa.schema([("text", pa.large_string()), ("id", pa.string()), ("metadata", pa.string())])
Rows = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class Part(NamedTuple):
    """A finished read: its first `rows` rows count, and have the numbers from `first_row` on in the whole build."""

    directory: Path
    source: int
    first_row: int
    rows: int


def load_rows(directory: Path) -> Rows:
    """The rows of a part, mapped."""
    rows: Rows = np.load(directory / ROWS, mmap_mode="r")
    return rows


def save_parts(parts: list[Part], file: Path) -> None:
    """Write the list where units can read it: it may be too long to be given to each."""
    write_json(file, [[str(part.directory), *part[1:]] for part in parts])


def load_parts(file: Path) -> list[Part]:
    """What `save_parts` wrote."""
    return [Part(Path(directory), *numbers) for directory, *numbers in read_json(file)]


def held_out(rows: Rows, share: float) -> Mask:
    """Which rows belong to the validation split: their hash as a number in [0, 1) is below `share`."""
    mask: Mask = (rows["split"] >> np.uint64(11)) / float(1 << 53) < share
    return mask
