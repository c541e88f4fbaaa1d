"""Reads boxes of logical tensors from a checkpoint's files: only the bytes that are wanted, verified as they come."""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from parallel.checkpoint.manifest import CheckpointManifest, StoredBlock, damaged, rows_per_chunk, unreadable
from parallel.logical import Rectangle
from runtime.files import digest_bytes

_ITEM = torch.float32.itemsize


class BlockReader:
    """Reads from the checkpoint in `directory`; `bytes_read` counts what was read from its files.

    A chunk of which any element is wanted is read whole and compared with its digest. Use as a context manager,
    or let it go. Not for several threads at once.
    """

    def __init__(self, directory: Path, manifest: CheckpointManifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._open: dict[str, int] = {}
        self._close = weakref.finalize(self, _close_all, self._open)
        self._buffer = torch.empty(0)
        self._held: tuple[str, int, int] | None = None  # (file, start of the block, chunk) that the buffer holds
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read_into(self, kind: str, name: str, wanted: Rectangle, view: torch.Tensor) -> None:
        """Copy box `wanted` of logical tensor `name` into `view` (same shape, any device and dtype).

        Raises UserError naming the file if it is damaged or cannot be read; `view` is then of no use.
        """
        found = 0
        zero = (0,) * len(wanted.start)
        for block in self._manifest.blocks[kind][name]:
            common = wanted.intersect(Rectangle(block.offset, block.size))
            if common is None:
                continue
            target = view[common.moved(wanted.start, zero).slices]
            self._read_box(block, common.moved(block.offset, zero), target)
            found += common.numel
        assert found == wanted.numel, f"{kind} of {name} has holes"

    def read(self, kind: str, name: str) -> torch.Tensor:
        """A whole logical tensor, float32."""
        shape = self._manifest.shapes[name]
        tensor = torch.empty(shape)
        self.read_into(kind, name, Rectangle((0,) * len(shape), shape), tensor)
        return tensor

    def _read_box(self, block: StoredBlock, box: Rectangle, target: torch.Tensor) -> None:
        """Copy `box` of the block, chunk by chunk; a chunk that is wanted whole goes straight to its place."""
        step = rows_per_chunk(block.size, _ITEM, self._manifest.chunk_bytes)
        first, last = box.start[0], box.start[0] + box.size[0]
        all_columns = box.size[1:] == block.size[1:]
        for number in range(first // step, -(-last // step)):
            start = number * step
            stop = min(start + step, block.size[0])
            low, high = max(first, start), min(last, stop)
            part = target[low - first : high - first]
            if all_columns and (low, high) == (start, stop) and _takes_bytes(part):
                self._fill(block, number, start, part)
            else:
                chunk = self._chunk(block, number, start, stop)
                columns = Rectangle(box.start[1:], box.size[1:]).slices
                part.copy_(chunk[(slice(low - start, high - start), *columns)])

    def _chunk(self, block: StoredBlock, number: int, start: int, stop: int) -> torch.Tensor:
        """A chunk in the reader's own memory; neighbouring boxes often share one, so the last one is kept."""
        shape = (stop - start, *block.size[1:])
        numel = math.prod(shape)
        if self._buffer.numel() < numel:
            self._buffer, self._held = torch.empty(numel), None
        values = self._buffer[:numel].view(shape)
        wanted = (block.file, block.start, number)
        if self._held != wanted:
            self._held = None
            self._fill(block, number, start, values)
            self._held = wanted
        return values

    def _fill(self, block: StoredBlock, number: int, row: int, values: torch.Tensor) -> None:
        """Read the chunk that begins at `row` into contiguous host memory and verify it."""
        content = values.detach().view(-1).view(torch.uint8).numpy().data
        offset = block.start + row * math.prod(block.size[1:]) * _ITEM
        path, done = self._directory / block.file, 0
        try:
            file = self._file(block.file)
            while done < len(content):
                count = os.preadv(file, [content[done:]], offset + done)
                if not count:
                    raise damaged(path, f"ends at byte {offset + done}")
                done += count
        except OSError as error:
            raise unreadable(path, error) from None
        self.bytes_read += len(content)
        if digest_bytes(content) != block.chunks[number]:
            raise damaged(path, f"does not match its digest in {block.key}")

    def _file(self, name: str) -> int:
        if name not in self._open:
            self._open[name] = os.open(self._directory / name, os.O_RDONLY)
        return self._open[name]


def _takes_bytes(values: torch.Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype == torch.float32 and values.is_contiguous()


def _close_all(files: dict[str, int]) -> None:
    while files:
        os.close(files.popitem()[1])
