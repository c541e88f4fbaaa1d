"""Writes safetensors files straight from memory, with every digest computed on the way.

A tensor is cut into chunks of whole rows, each with a digest of its own, so that a reader of some rows can verify
exactly what it read. Nothing is read back and no more than a chunk is ever copied. A thread hashes a chunk while it is
being written.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import xxhash

from parallel.checkpoint.manifest import StoredBlock, StoredFile, rows_per_chunk
from parallel.logical import Extent
from runtime.files import digest_bytes

CHUNK_BYTES = 4 << 20
"""Longest chunk, in bytes. Longer ones read more than is wanted, shorter ones lengthen the manifest."""
_ALIGNMENT = 64
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written: its key in the file, shape and dtype."""

    key: str
    shape: Extent
    dtype: torch.dtype = torch.float32

    @property
    def bytes(self) -> int:
        """Length of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class WrittenTensor:
    """Where a tensor begins in its file, in bytes, and the xxh3-128 of each of its chunks."""

    start: int
    chunks: tuple[str, ...]


@dataclass(frozen=True)
class WrittenFile:
    """A finished, durable file: what the manifest must know of it, and its tensors by key."""

    name: str
    stored: StoredFile
    tensors: dict[str, WrittenTensor]

    def block(self, key: str, offset: Extent, size: Extent) -> StoredBlock:
        """The manifest's line for tensor `key`, which is the box at `offset` of a logical tensor."""
        written = self.tensors[key]
        return StoredBlock(
            file=self.name, key=key, offset=offset, size=size, start=written.start, chunks=list(written.chunks)
        )


class ShardWriter:
    """Writes the tensors of `entries`, in their order, into a new file `path`.

    Values are appended as rows: a whole tensor, or some of its rows at a time. Use as a context manager; only
    `finish` makes the file whole. Raises OSError if it cannot be written; the remains are the caller's to remove.
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[Entry],
        chunk_bytes: int = CHUNK_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path, self._entries, self._chunk_bytes = path, entries, chunk_bytes
        self._digest, self._open_chunk = xxhash.xxh3_128(), xxhash.xxh3_128()
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="lacuna-hash")
        self._tensors: dict[str, WrittenTensor] = {}
        self._bytes = self._rows = 0
        self._chunks: list[str] = []
        header = _header(entries, metadata)
        self._header = (len(header), digest_bytes(header))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self._digest.update(header)
            self._write(memoryview(header))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, values: torch.Tensor) -> None:
        """Write the next rows of the tensor that is being written; `values` may be on any device, in any strides."""
        self._skip_empty()
        entry = self._entries[len(self._tensors)]
        values = values.detach().reshape(1) if not entry.shape else values.detach()
        shape = entry.shape or (1,)
        assert values.dtype == entry.dtype, f"{entry.key} is {entry.dtype}, not {values.dtype}"
        assert values.shape[1:] == shape[1:], f"rows of {entry.key} are {shape[1:]}, not {tuple(values.shape[1:])}"
        step = rows_per_chunk(shape, entry.dtype.itemsize, self._chunk_bytes)
        done = 0
        while done < len(values):
            count = min(step - self._rows % step, len(values) - done)
            rows = values[done : done + count].contiguous().cpu().view(-1).view(torch.uint8).numpy().data
            self._rows += count
            done += count
            assert self._rows <= shape[0], f"{entry.key} has {shape[0]} rows"
            hashed = self._hasher.submit(self._hash, rows)
            self._write(rows)
            hashed.result()  # the caller may change its values once this returns
            if self._rows % step == 0 or self._rows == shape[0]:
                self._chunks.append(self._open_chunk.hexdigest())
                self._open_chunk.reset()
        if self._rows == shape[0]:
            self._end_tensor(entry)

    def finish(self) -> WrittenFile:
        """Make the file durable. All entries must have been appended."""
        self._skip_empty()
        assert len(self._tensors) == len(self._entries), f"{self._entries[len(self._tensors)].key} was not written"
        os.fsync(self._file)
        self.close()
        length, digest = self._header
        stored = StoredFile(
            bytes=self._bytes, digest=self._digest.hexdigest(), header_bytes=length, header_digest=digest
        )
        return WrittenFile(self._path.name, stored, self._tensors)

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._hasher.shutdown(cancel_futures=True)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _skip_empty(self) -> None:
        while len(self._tensors) < len(self._entries) and not self._entries[len(self._tensors)].bytes:
            self._end_tensor(self._entries[len(self._tensors)])

    def _end_tensor(self, entry: Entry) -> None:
        self._tensors[entry.key] = WrittenTensor(self._bytes - entry.bytes, tuple(self._chunks))
        self._chunks, self._rows = [], 0

    def _hash(self, content: memoryview) -> None:
        self._digest.update(content)
        self._open_chunk.update(content)

    def _write(self, content: memoryview) -> None:
        self._bytes += len(content)
        while content:
            content = content[os.write(self._file, content) :]


def _header(entries: Sequence[Entry], metadata: Mapping[str, str] | None) -> bytes:
    """Length (8 bytes, little-endian) and JSON, padded with spaces so that values begin aligned."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        assert entry.key not in fields, f"{entry.key} stands twice"
        stop = offset + entry.bytes
        fields[entry.key] = {
            "dtype": _DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
