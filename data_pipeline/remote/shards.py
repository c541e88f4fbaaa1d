"""A shard in an object store: one ranged read brings one record batch, which the cache then holds unpacked."""

import io
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from data_pipeline.files import MEND, FileInfo
from data_pipeline.remote.block_cache import BlockCache
from data_pipeline.remote.folder import Folder
from data_pipeline.shard_table import ShardInfo
from data_pipeline.shards import ShardReader, Tokens, read_batch
from runtime.errors import UserError, one_line
from runtime.files import digest_bytes

_VIEWS_KEPT = 256
_TAILS_KEPT = 4096
_HEADER_BYTES = 4096  # of a record batch; Arrow needs a few hundred


class RemoteFiles:
    """What all shards of a dataset share: its folder, the cache, batches mapped and files' ends read of late."""

    def __init__(self, folder: Folder, cache: BlockCache) -> None:
        self.folder, self.cache = folder, cache
        self.views: OrderedDict[str, Tokens] = OrderedDict()
        self.tails: OrderedDict[str, bytes] = OrderedDict()

    def whole(self, info: FileInfo) -> memoryview:
        """A whole file. Raises UserError naming it if it cannot be read or is damaged."""

        def fetch() -> bytes:
            data = self.folder.read_all(info.name)
            if digest_bytes(data) != info.digest:
                raise UserError(f"{self.folder.url}/{info.name} is damaged (its digest does not fit): {MEND}")
            return data

        return self.cache.view(info.digest, fetch)


class RemoteShard(ShardReader):
    """Record batches of a shard in an object store, checked against their digests."""

    def __init__(self, files: RemoteFiles, info: ShardInfo, *, dtype: str, batch_tokens: int) -> None:
        super().__init__(files.folder.url, info, dtype=dtype, batch_tokens=batch_tokens)
        self._files, self._dtype = files, np.dtype(dtype)

    def batch(self, number: int) -> Tokens:
        """Tokens of record batch `number`, read-only. Raises DamagedBatch naming shard and batch if it is damaged,
        UserError if the file is missing, has another length or cannot be reached."""
        views, key = self._files.views, self.info.batches[number]
        view = views.get(key)
        if view is None:
            view = views[key] = self._load(number)
            if len(views) > _VIEWS_KEPT:
                views.popitem(last=False)
        return view

    def prefetch(self, number: int) -> None:
        """Bring record batch `number` into the cache; a failure is left to `batch`."""
        try:
            if not self._files.cache.holds(self.info.batches[number]):
                self._load(number, patient=False)
        except (UserError, OSError):
            return

    def document_table(self) -> pa.RecordBatch:
        """All that is kept of each document, see `ShardReader`."""
        return pa.ipc.open_file(pa.py_buffer(self._files.whole(self.info.offsets))).get_batch(0)

    def _load(self, number: int, patient: bool = True) -> Tokens:
        digest = self.info.batches[number]
        view = self._files.cache.view(digest, lambda: self._fetch(number, patient))
        return np.frombuffer(view, dtype=self._dtype)

    def _fetch(self, number: int, patient: bool) -> memoryview:
        try:
            tokens = self._read(number, patient)
        except (pa.ArrowException, OSError, IndexError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise self._problem(number, f"cannot be read ({one_line(error)})") from None
        if digest_bytes(tokens.data) != self.info.batches[number]:
            raise self._problem(number, "is damaged (its digest does not fit)")
        return tokens.data.cast("B")

    def _read(self, number: int, patient: bool) -> Tokens:
        info, folder = self.info.file, self._files.folder
        tail = self._tail(patient)
        ahead = self._batch_tokens * self._dtype.itemsize + _HEADER_BYTES
        file = _ReadsAhead(lambda at, size: folder.read(info.name, at, size, info.bytes, patient), info, ahead, tail)
        reader = pa.ipc.open_file(pa.PythonFile(file, mode="r"))
        return read_batch(reader, number, self._type, self._length(number))

    def _tail(self, patient: bool) -> bytes:
        """The end of the file, where Arrow says where its batches are."""
        tails, info = self._files.tails, self.info.file
        tail = tails.get(info.name)
        if tail is None:
            size = min(info.bytes, _HEADER_BYTES + 32 * len(self.info.batches))
            tail = self._files.folder.read(info.name, info.bytes - size, size, info.bytes, patient)
            tails[info.name] = tail
            while len(tails) > _TAILS_KEPT:
                tails.popitem(last=False)
        return tail


class _ReadsAhead(io.RawIOBase):
    """A file of known size and end; other reads bring `ahead` bytes at least, which serve those that follow."""

    def __init__(self, read: Callable[[int, int], bytes], info: FileInfo, ahead: int, tail: bytes) -> None:
        self._fetch, self._size, self._ahead = read, info.bytes, ahead
        self._at = 0
        self._parts = [(info.bytes - len(tail), tail)]

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on. Raises UserError like `Folder.read`."""
        if self._at < 0:
            raise ValueError("a place before the file's start")
        size = min(size, self._size - self._at) if size >= 0 else self._size - self._at
        if size <= 0:
            return b""
        part = next((p for p in self._parts if p[0] <= self._at and self._at + size <= p[0] + len(p[1])), None)
        if part is None:
            wanted = min(max(size, self._ahead), self._size - self._at)
            part = (self._at, self._fetch(self._at, wanted))
            self._parts = [self._parts[0], part]
        begin = self._at - part[0]
        self._at += size
        return part[1][begin : begin + size]
