"""Arrow IPC files of token ids: one flat column, cut into record batches whose digests the manifest keeps."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.manifest import FileInfo, ShardInfo
from runtime.errors import UserError, one_line
from runtime.files import digest_bytes, digest_file, fsync_file

Tokens = npt.NDArray[np.unsignedinteger[Any]]
_UNPACKED_BATCHES_KEPT = 64
_TOKEN_TYPES = {"uint16": pa.uint16(), "uint32": pa.uint32()}
_OFFSETS = pa.schema([pa.field("end", pa.int64(), nullable=False), pa.field("source", pa.uint16(), nullable=False)])
_MEND = "restore the file or rebuild the dataset"


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


class ShardWriter:
    """Writes the token stream of one split as shards of whole documents, each of about `shard_tokens`."""

    def __init__(self, directory: Path, split: str, form: ShardForm) -> None:
        self.shards: list[ShardInfo] = []
        self._directory, self._split, self._shard_tokens = directory, split, form.shard_tokens
        self._schema = pa.schema([pa.field("tokens", _TOKEN_TYPES[form.dtype], nullable=False)])
        codec = None if form.compression == "none" else form.compression
        self._options = pa.ipc.IpcWriteOptions(compression=codec)
        self._buffer: Tokens = np.empty(form.batch_tokens, dtype=form.dtype)
        self._file: Any = None
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._filled = self._tokens = 0
        self._ends: list[int] = []
        self._sources: list[int] = []
        self._batches: list[str] = []

    def _path(self, ending: str) -> Path:
        return self._directory / f"{self._split}-{len(self.shards):05d}{ending}"

    def add(self, tokens: npt.ArrayLike, source: int) -> None:
        """Append one document (its ids with the closing EOS)."""
        ids = np.asarray(tokens, dtype=self._buffer.dtype)
        assert ids.size, "a document has at least its EOS"
        if self._file is None:
            self._file = pa.ipc.new_file(str(self._path(".arrow")), self._schema, options=self._options)
        self._tokens += ids.size
        self._ends.append(self._tokens)
        self._sources.append(source)
        while ids.size:
            part = ids[: self._buffer.size - self._filled]
            self._buffer[self._filled : self._filled + part.size] = part
            self._filled += part.size
            ids = ids[part.size :]
            if self._filled == self._buffer.size:
                self._flush()
        if self._tokens >= self._shard_tokens:
            self._end_shard()

    def _flush(self) -> None:
        batch = self._buffer[: self._filled]
        self._batches.append(digest_bytes(batch.data))
        self._file.write_batch(pa.RecordBatch.from_arrays([pa.array(batch)], schema=self._schema))
        self._filled = 0

    def _end_shard(self) -> None:
        if self._filled:
            self._flush()
        self._file.close()
        self._file = None
        columns = [pa.array(self._ends, pa.int64()), pa.array(self._sources, pa.uint16())]
        with pa.ipc.new_file(str(self._path(".documents.arrow")), _OFFSETS) as out:
            out.write_batch(pa.RecordBatch.from_arrays(columns, schema=_OFFSETS))
        self.shards.append(
            ShardInfo(
                tokens=self._tokens,
                documents=len(self._ends),
                file=describe_file(self._path(".arrow")),
                offsets=describe_file(self._path(".documents.arrow")),
                batches=self._batches,
            )
        )
        self._begin_shard()

    def close(self) -> None:
        """Finish the last shard; `shards` is then complete."""
        if self._file is not None:
            self._end_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._file is not None:
            self._file.close()


class ShardReader:
    """Memory-mapped token batches of one shard, checked against their digests when first read.

    A plain batch is a view of the mapping and kept for good; unpacked lz4 batches are kept for a while.
    """

    def __init__(
        self, directory: Path, info: ShardInfo, *, dtype: str, batch_tokens: int, packed: bool = False
    ) -> None:
        self.info = info
        self._views_kept = _UNPACKED_BATCHES_KEPT if packed else len(info.batches)
        self._directory, self._type, self._batch_tokens = directory, _TOKEN_TYPES[dtype], batch_tokens
        self._checked = [False] * len(info.batches)
        self._views: OrderedDict[int, Tokens] = OrderedDict()
        self._reader: Any = None

    def batch(self, number: int) -> Tokens:
        """Tokens of record batch `number`, read-only. Raises UserError naming shard and batch if damaged."""
        view = self._views.get(number)
        if view is None:
            view = self._open(number)
            self._views[number] = view
            if len(self._views) > self._views_kept:
                self._views.popitem(last=False)
        return view

    def _open(self, number: int) -> Tokens:
        path = self._directory / self.info.file.name
        try:
            if self._reader is None:
                self._reader = pa.ipc.open_file(map_file(path, self.info.file.bytes))
            column = self._reader.get_batch(number).column(0)
            column.validate()  # a damaged header must not lead outside the mapping
            if column.type != self._type or len(column) != self._length(number):
                raise pa.ArrowInvalid(f"{len(column)} values of {column.type}")
            view: Tokens = column.to_numpy(zero_copy_only=True)
        except (pa.ArrowException, OSError, IndexError, ValueError) as error:
            raise UserError(f"{path}: record batch {number} cannot be read ({one_line(error)}): {_MEND}") from None
        if not self._checked[number]:
            if digest_bytes(view.data) != self.info.batches[number]:
                raise UserError(f"{path}: record batch {number} is damaged (its digest does not fit): {_MEND}")
            self._checked[number] = True
        return view

    def _length(self, number: int) -> int:
        return min(self._batch_tokens, self.info.tokens - number * self._batch_tokens)

    def documents(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
        """End of every document in tokens from the shard's start (its EOS included), and its source's number.

        Raises UserError naming the file if it is damaged.
        """
        path = self._directory / self.info.offsets.name
        source = map_file(path, self.info.offsets.bytes)
        if digest_file(path) != self.info.offsets.digest:
            raise UserError(f"{path} is damaged (its digest does not fit): {_MEND}")
        batch = pa.ipc.open_file(source).get_batch(0)
        return batch.column(0).to_numpy(), batch.column(1).to_numpy()


def map_file(path: Path, size: int) -> Any:
    """Memory-map `path`. Raises UserError if it is missing or not `size` bytes long."""
    try:
        found = path.stat().st_size
        if found != size:
            raise UserError(f"{path} is {found} bytes long, not {size}: {_MEND}")
        return pa.memory_map(str(path), "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {_MEND}") from None
