"""Arrow IPC files of token ids: one flat column, cut into record batches whose digests the manifest keeps."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.files import MEND, FileInfo, checked_file, file_info, map_file
from data_pipeline.shard_table import ShardInfo, ShardTable
from runtime.errors import UserError, one_line
from runtime.files import digest_bytes

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Flags = npt.NDArray[np.bool_]
_UNPACKED_BATCHES_KEPT = 64
_READERS_KEPT = 1024
_TOKEN_TYPES = {"uint16": pa.uint16(), "uint32": pa.uint32()}
SPANS = pa.list_(pa.struct([("role", pa.uint8()), ("begin", pa.int64()), ("end", pa.int64())]))
DOCUMENT_COLUMNS = pa.schema(
    [
        pa.field("end", pa.int64(), nullable=False),
        pa.field("source", pa.uint16(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        pa.field("id", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("spans", SPANS),
        pa.field("language", pa.string()),
    ]
)
"""Of each document: end in tokens (its EOS included), source, UTF-8 bytes, xxh3-128 of the text, name, JSON; who
speaks in which tokens, counted from the document's first; its language's code, if it was told."""
SHARD_BYTES = 1 << 28


def token_dtype(vocabulary: int) -> Literal["uint16", "uint32"]:
    """The smallest type that holds every id of a vocabulary."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class ShardForm:
    """How shards are cut and packed; lengths in tokens."""

    dtype: Literal["uint16", "uint32"]
    batch_tokens: int
    shard_tokens: int
    compression: Literal["none", "lz4"] = "none"


def default_shard_tokens(dtype: str) -> int:
    """Tokens of a shard of 256 MiB, a good size for object stores."""
    return SHARD_BYTES // np.dtype(dtype).itemsize


def write_shard(
    directory: Path, stem: str, form: ShardForm, tokens: Iterable[Tokens], documents: pa.Table
) -> ShardInfo:
    """Write a shard of whole documents: `STEM.arrow`, and `STEM.documents.arrow` with the columns of `documents`.

    `tokens` give the stream in pieces of any length; `documents` has at least `DOCUMENT_COLUMNS`' first two, `end`
    counted from the shard's first token. The files are not yet durable.
    """
    schema = pa.schema([pa.field("tokens", _TOKEN_TYPES[form.dtype], nullable=False)])
    options = pa.ipc.IpcWriteOptions(compression=None if form.compression == "none" else form.compression)
    main, beside = directory / f"{stem}.arrow", directory / f"{stem}.documents.arrow"
    digests, count = [], 0
    with pa.ipc.new_file(str(main), schema, options=options) as out:
        for batch in _batches(tokens, form):
            digests.append(digest_bytes(batch.data))
            out.write_batch(pa.RecordBatch.from_arrays([pa.array(batch)], schema=schema))
            count += batch.size
    assert documents["end"][-1].as_py() == count, "documents cover the shard's tokens"
    return ShardInfo(
        tokens=count,
        documents=documents.num_rows,
        file=file_info(main),
        offsets=write_documents(beside, documents),
        batches=digests,
    )


def write_documents(path: Path, documents: pa.Table) -> FileInfo:
    """Write what is kept of each document. The file is not yet durable."""
    documents = _canonical(_without_empty_columns(documents))
    with pa.ipc.new_file(str(path), documents.schema) as out:
        out.write_table(documents, max_chunksize=documents.num_rows)
    return file_info(path)


def _batches(pieces: Iterable[Tokens], form: ShardForm) -> Iterator[Tokens]:
    """The stream in batches of exactly `batch_tokens`, but for the last."""
    buffer: Tokens = np.empty(form.batch_tokens, dtype=form.dtype)
    filled = 0
    for piece in pieces:
        begin = 0
        while begin < piece.size:
            taken = min(buffer.size - filled, piece.size - begin)
            if taken == buffer.size:
                yield piece[begin : begin + taken]
            else:
                buffer[filled : filled + taken] = piece[begin : begin + taken]
                filled += taken
                if filled == buffer.size:
                    yield buffer
                    filled = 0
            begin += taken
    if filled:
        yield buffer[:filled]


def _without_empty_columns(documents: pa.Table) -> pa.Table:
    """Names and metadata are stored only where a document has some."""
    unused = [n for n in documents.column_names[2:] if documents[n].null_count == documents.num_rows]
    return documents.drop_columns(unused) if unused else documents


def _canonical(documents: pa.Table) -> pa.Table:
    """The same values in fresh buffers: how a table was joined or sliced must not show in the file's bytes."""
    columns = []
    for column, field in zip(documents.columns, documents.schema, strict=True):
        if pa.types.is_integer(field.type):
            columns.append(pa.array(column.to_numpy(), field.type))
        else:
            columns.append(pa.array(column.to_pylist(), field.type))
    return pa.table(columns, schema=documents.schema)


class DamagedBatch(UserError):
    """A record batch of a shard that does not hold what was written."""


class ShardReader:
    """Memory-mapped token batches of one shard, checked against their digests when first read.

    A plain batch is a view of the mapping and kept for good; unpacked lz4 batches are kept for a while.
    """

    def __init__(
        self, directory: Path | str, info: ShardInfo, *, dtype: str, batch_tokens: int, packed: bool = False
    ) -> None:
        self.info = info
        self.checked: Flags = np.zeros(len(info.batches), dtype=bool)
        """Which batches have been compared with their digests."""
        self._views_kept = _UNPACKED_BATCHES_KEPT if packed else len(info.batches)
        self._directory, self._type, self._batch_tokens = directory, _TOKEN_TYPES[dtype], batch_tokens
        self._where = f"{directory}/{info.file.name}"
        self._views: OrderedDict[int, Tokens] = OrderedDict()

    @cached_property
    def mapped(self) -> Any:
        """The bytes of its file, memory-mapped. Raises UserError if it is missing or has another length."""
        return map_file(Path(self._directory, self.info.file.name), self.info.file.bytes)

    @cached_property
    def _reader(self) -> Any:
        return pa.ipc.open_file(self.mapped)

    def batch(self, number: int) -> Tokens:
        """Tokens of record batch `number`, read-only. Raises DamagedBatch naming shard and batch if it is damaged,
        UserError if the file is missing or has another length."""
        view = self._views.get(number)
        if view is None:
            view = self._open(number)
            self._views[number] = view
            if len(self._views) > self._views_kept:
                self._views.popitem(last=False)
        return view

    def _open(self, number: int) -> Tokens:
        try:
            view = read_batch(self._reader, number, self._type, self._length(number))
        except (pa.ArrowException, OSError, IndexError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise self._problem(number, f"cannot be read ({one_line(error)})") from None
        if not self.checked[number]:
            if digest_bytes(view.data) != self.info.batches[number]:
                raise self._problem(number, "is damaged (its digest does not fit)")
            self.checked[number] = True
        return view

    def _problem(self, number: int, what: str) -> DamagedBatch:
        return DamagedBatch(f"{self._where}: record batch {number} {what}: {MEND}")

    def _length(self, number: int) -> int:
        return min(self._batch_tokens, self.info.tokens - number * self._batch_tokens)

    def tokens(self, begin: int, end: int) -> list[Tokens]:
        """Tokens [begin, end) of the shard, as views of its batches. Raises UserError like `batch`."""
        views = []
        while begin < end:
            number, offset = divmod(begin, self._batch_tokens)
            taken = min(self._batch_tokens - offset, end - begin)
            views.append(self.batch(number)[offset : offset + taken])
            begin += taken
        return views

    def documents(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
        """End of every document in tokens from the shard's start (its EOS included), and its source's number.

        Raises UserError naming the file if it is damaged.
        """
        batch = self.document_table()
        return batch.column(0).to_numpy(), batch.column(1).to_numpy()

    def document_table(self) -> pa.RecordBatch:
        """All that is kept of each document, see `DOCUMENT_COLUMNS`. Raises UserError naming the file if damaged."""
        return pa.ipc.open_file(checked_file(self._directory, self.info.offsets)).get_batch(0)


class Shards:
    """The shards of a split by number. A reader is made when it is asked for, and let go when many others were since,
    with what it has mapped: the system allows a process so many mappings. What it has checked stays known."""

    def __init__(self, table: ShardTable, open_shard: Callable[[ShardInfo], ShardReader]) -> None:
        self.table = table
        self._open = open_shard
        self._checked: Flags = np.zeros(table.first_batch[-1], dtype=bool)
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> ShardReader:
        reader = self._readers.get(number)
        if reader is None:
            reader = self._open(self.table[number])
            reader.checked = self._checked[slice(*self.table.first_batch[number : number + 2])]
            self._readers[number] = reader
            if len(self._readers) > _READERS_KEPT:
                self._readers.popitem(last=False)
        return reader

    def __iter__(self) -> Iterator[ShardReader]:
        return (self[number] for number in range(len(self)))


@dataclass(frozen=True)
class ShardTask:
    """A shard, and what its dataset says of all shards (`DatasetManifest.form_of_shards`): one for a worker."""

    path: Path
    info: ShardInfo
    form: dict[str, Any]

    def reader(self) -> ShardReader:
        """Its reader; no file is touched yet."""
        form = self.form
        return ShardReader(
            self.path, self.info, dtype=form["dtype"], batch_tokens=form["batch_tokens"], packed=form["packed"]
        )


def read_batch(reader: Any, number: int, kind: Any, length: int) -> Tokens:
    """Record batch `number` of an open Arrow file, which must be `length` tokens of type `kind`.

    Raises pyarrow's errors, IndexError or ValueError if it is not.
    """
    column = reader.get_batch(number).column(0)
    column.validate()  # a damaged header must not lead outside the mapping
    if column.type != kind or len(column) != length:
        raise pa.ArrowInvalid(f"{len(column)} values of {column.type}")
    view: Tokens = column.to_numpy(zero_copy_only=True)
    return view
