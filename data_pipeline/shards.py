"""Arrow IPC files of token ids: one flat column, cut into record batches whose digests the manifest keeps."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.manifest import FileInfo, ShardInfo
from runtime.errors import UserError, one_line
from runtime.files import digest_bytes, digest_file, fsync_file

Tokens = npt.NDArray[np.unsignedinteger[Any]]
_UNPACKED_BATCHES_KEPT = 64
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
MEND = "restore the file or rebuild the dataset"


def token_dtype(vocabulary: int) -> Literal["uint16", "uint32"]:
    """The smallest type that holds every id of a vocabulary."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def describe_file(path: Path) -> FileInfo:
    """Make `path` durable and take its size and digest."""
    fsync_file(path)
    return FileInfo(name=path.name, bytes=path.stat().st_size, digest=digest_file(path))


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
        file=_described(main),
        offsets=write_documents(beside, documents),
        batches=digests,
    )


def write_documents(path: Path, documents: pa.Table) -> FileInfo:
    """Write what is kept of each document. The file is not yet durable."""
    documents = _canonical(_without_empty_columns(documents))
    with pa.ipc.new_file(str(path), documents.schema) as out:
        out.write_table(documents, max_chunksize=documents.num_rows)
    return _described(path)


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


def _described(path: Path) -> FileInfo:
    return FileInfo(name=path.name, bytes=path.stat().st_size, digest=digest_file(path))


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
        self._views_kept = _UNPACKED_BATCHES_KEPT if packed else len(info.batches)
        self._directory, self._type, self._batch_tokens = directory, _TOKEN_TYPES[dtype], batch_tokens
        self._where = f"{directory}/{info.file.name}"
        self._checked = [False] * len(info.batches)
        self._views: OrderedDict[int, Tokens] = OrderedDict()
        self._reader: Any = None

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
        path = Path(self._directory, self.info.file.name)
        mapped = map_file(path, self.info.file.bytes) if self._reader is None else None
        try:
            if mapped is not None:
                self._reader = pa.ipc.open_file(mapped)
            view = read_batch(self._reader, number, self._type, self._length(number))
        except (pa.ArrowException, OSError, IndexError, ValueError) as error:
            raise self._problem(number, f"cannot be read ({one_line(error)})") from None
        if not self._checked[number]:
            if digest_bytes(view.data) != self.info.batches[number]:
                raise self._problem(number, "is damaged (its digest does not fit)")
            self._checked[number] = True
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
        path = Path(self._directory, self.info.offsets.name)
        source = map_file(path, self.info.offsets.bytes)
        if digest_file(path) != self.info.offsets.digest:
            raise UserError(f"{path} is damaged (its digest does not fit): {MEND}")
        return pa.ipc.open_file(source).get_batch(0)


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


def map_file(path: Path, size: int) -> Any:
    """Memory-map `path`. Raises UserError if it is missing or not `size` bytes long."""
    try:
        found = path.stat().st_size
        if found != size:
            raise UserError(f"{path} is {found} bytes long, not {size}: {MEND}")
        return pa.memory_map(str(path), "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {MEND}") from None
