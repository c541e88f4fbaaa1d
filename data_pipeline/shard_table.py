"""The shards of a split as a table in a file of its own, mapped: ranks hold no object for a shard they do not read."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from data_pipeline.files import FILE_NAME, MEND, Digest, FileInfo
from runtime.errors import UserError, one_line
from runtime.files import digest_bytes
from runtime.settings import Settings

Numbers = npt.NDArray[np.int64]
_DIGEST = pa.binary(16)
COLUMNS = pa.schema(
    [
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("file_bytes", pa.int64(), nullable=False),
        pa.field("file_digest", _DIGEST, nullable=False),
        pa.field("offsets", pa.string(), nullable=False),
        pa.field("offsets_bytes", pa.int64(), nullable=False),
        pa.field("offsets_digest", _DIGEST, nullable=False),
        pa.field("batches", pa.list_(pa.field("item", _DIGEST, nullable=False)), nullable=False),
    ]
)
"""A row for each shard; digests are xxh3-128, `batches` has one for each record batch."""


class ShardInfo(Settings):
    """Whole documents, in record batches of `batch_tokens` (the last one may be shorter)."""

    tokens: Annotated[int, Field(gt=0)]
    documents: Annotated[int, Field(gt=0)]
    file: FileInfo
    offsets: FileInfo
    batches: list[Digest]
    """xxh3-128 of each record batch's token bytes (little-endian, not compressed)."""

    @property
    def files(self) -> list[FileInfo]:
        """Its files."""
        return [self.file, self.offsets]


class ShardTable:
    """Shards by number, in the order of the split's token stream; a `ShardInfo` is made when it is asked for.

    `data` is the Arrow file that holds them. Two tables are equal if their bytes are.
    """

    def __init__(self, data: Any, where: str = "") -> None:
        """Raises UserError naming the file `where` the bytes stand if they are no such table."""
        self.data = pa.py_buffer(data)
        try:
            self._rows: Any = pa.ipc.open_file(self.data).get_batch(0)
            self._rows.validate(full=True)
            _check(self._rows)
        except (pa.ArrowException, OSError, IndexError, ValueError) as error:
            raise UserError(f"{where} is no table of shards ({one_line(error)}): {MEND}") from None
        self.tokens, self.documents, self.file_bytes = (
            self._rows[name].to_numpy() for name in ("tokens", "documents", "file_bytes")
        )
        self.first_batch: Numbers = self._rows["batches"].offsets.to_numpy().astype(np.int64)
        """Of each shard, how many record batches stand before it in the split; then how many there are in all."""

    @classmethod
    def of(cls, shards: "ShardTable | Iterable[ShardInfo]") -> "ShardTable":
        """The table of these shards."""
        if isinstance(shards, ShardTable):
            return shards
        rows = list(shards)
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in ("tokens", "documents")}
        for kind in ("file", "offsets"):
            files = [getattr(row, kind) for row in rows]
            columns[kind] = [file.name for file in files]
            columns[f"{kind}_bytes"] = [file.bytes for file in files]
            columns[f"{kind}_digest"] = [bytes.fromhex(file.digest) for file in files]
        columns["batches"] = [[bytes.fromhex(digest) for digest in row.batches] for row in rows]
        return cls.of_columns(columns)

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> "ShardTable":
        """The table with these `COLUMNS`, given as lists or Arrow arrays. Equal values give equal bytes."""
        arrays = [pa.array(columns[field.name], field.type) for field in COLUMNS]
        out = pa.BufferOutputStream()
        with pa.ipc.new_file(out, COLUMNS) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=COLUMNS))
        return cls(out.getvalue())

    @cached_property
    def file(self) -> FileInfo:
        """The file that holds it, named by its content: another table never takes the place of one that is in use."""
        digest = digest_bytes(memoryview(self.data))
        return FileInfo(name=f"{digest}.shards.arrow", bytes=self.data.size, digest=digest)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> ShardInfo:
        row = self._rows.slice(range(len(self))[number], 1).to_pylist()[0]
        values = {name: row[name] for name in ("tokens", "documents")}
        for kind in ("file", "offsets"):
            values[kind] = FileInfo(name=row[kind], bytes=row[f"{kind}_bytes"], digest=row[f"{kind}_digest"].hex())
        return ShardInfo(**values, batches=[digest.hex() for digest in row["batches"]])

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and bool(self.data.equals(other.data))

    def __hash__(self) -> int:
        return hash(self.file.digest)

    @property
    def starts(self) -> Numbers:
        """Where each shard begins in the split's token stream, and where the last one ends."""
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.tokens)])

    def token_files(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of the file of each shard's tokens."""
        return zip(self._rows["file"].to_pylist(), self.file_bytes.tolist(), strict=True)

    def batch_digests(self) -> Iterator[bytes]:
        """The digests of each shard's record batches, as a list in JSON without spaces."""
        digests = memoryview(self._rows["batches"].values.buffers()[1] or b"")
        ends = (16 * self.first_batch).tolist()
        for begin, end in pairwise(ends):
            yield b'["' + digests[begin:end].hex(",", 16).replace(",", '","').encode() + b'"]'


def _check(rows: Any) -> None:
    """Raise ValueError if these are not rows of `COLUMNS` that mean something, whoever wrote them."""
    if not rows.schema.equals(COLUMNS):
        raise ValueError(f"its columns are {', '.join(rows.schema.names)}")
    if any(column.null_count or column.offset for column in rows.columns) or rows["batches"].values.null_count:
        raise ValueError("it has gaps")
    for name in ("tokens", "documents", "file_bytes", "offsets_bytes"):
        if len(rows) and pc.min(rows[name]).as_py() < (name in ("tokens", "documents")):
            raise ValueError(f"it has a shard with {pc.min(rows[name])} {name}")
    for name in ("file", "offsets"):
        if pc.all(pc.match_substring_regex(rows[name], FILE_NAME)).as_py() is False:
            raise ValueError(f"a name in its column {name!r} is none of a file beside it")
