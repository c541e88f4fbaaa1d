"""Writes a checkpoint in any division into files, streamed: a slice of one tensor is the most that is in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from parallel.checkpoint.manifest import CheckpointManifest, StoredBlock, StoredFile
from parallel.checkpoint.reader import BlockReader
from parallel.checkpoint.shard_file import CHUNK_BYTES, Entry, ShardWriter, WrittenFile
from parallel.engines.base import KINDS
from parallel.logical import Extent, Rectangle, boxes_of_range, row_slices
from runtime.errors import UserError
from runtime.files import staged_directory


class Piece(NamedTuple):
    """A box of logical tensor `name`, of one kind."""

    kind: str
    name: str
    box: Rectangle

    @property
    def key(self) -> str:
        """Its key in a safetensors file."""
        return f"{self.kind}/{self.name}@{','.join(map(str, self.box.start))}"


Division = Sequence[Sequence[Piece]]
"""The pieces of each file, in order; together they cover every tensor of every kind once."""
# copies a box of a logical tensor into a tensor of the same shape: (kind, name, box, target)
ReadInto = Callable[[str, str, Rectangle, torch.Tensor], None]
Advance = Callable[[int], None]


def even_division(shapes: Mapping[str, Extent], files: int) -> Division:
    """Divide all tensors, one after the other, into `files` equal parts (to one element).

    Raises UserError if there are more files than elements.
    """
    order = [(kind, name, shape, math.prod(shape)) for kind in KINDS for name, shape in shapes.items()]
    total = sum(numel for *_, numel in order)
    if files > total:
        raise UserError(f"--files {files} is more than the checkpoint's {total} numbers: use fewer")
    borders = [total * number // files for number in range(files + 1)]
    division: list[list[Piece]] = [[] for _ in range(files)]
    first, number = 0, 0
    for kind, name, shape, numel in order:
        start = first
        while start < first + numel:
            stop = min(first + numel, borders[number + 1])
            boxes = boxes_of_range(shape, start - first, stop - first)
            division[number] += [Piece(kind, name, box) for box in boxes]
            start = stop
            number += stop == borders[number + 1]
        first += numel
    return division


def reshard(source: Path, manifest: CheckpointManifest, division: Division, final: Path, advance: Advance) -> None:
    """Rewrite checkpoint `source` as a new directory `final` with the files of `division`.

    Every byte that is read is verified. `advance` is called with the bytes written so far and again. Raises UserError
    if the source is damaged, `final` exists, or it cannot be written; nothing is then left of it.
    """
    manifest.verify_headers(source)
    with BlockReader(source, manifest) as reader:
        write_checkpoint(final, manifest, division, reader.read_into, advance)


def write_checkpoint(
    final: Path, described: CheckpointManifest, division: Division, read_into: ReadInto, advance: Advance
) -> None:
    """Publish a checkpoint whose values come from `read_into`, described as `described` apart from its files.

    Raises UserError if `final` exists or cannot be written; nothing is then left of it.
    """
    files: dict[str, StoredFile] = {}
    blocks: dict[str, dict[str, list[StoredBlock]]] = {kind: defaultdict(list) for kind in KINDS}
    boxes = (part for pieces in division for piece in pieces for part in row_slices(piece.box.size))
    buffer = torch.empty(max(part.numel for part in boxes))  # one for all files, so that memory does not fragment
    with staged_directory(final) as staging:
        for number, pieces in enumerate(division):
            written = _write_file(staging / f"shard-{number:05d}.safetensors", pieces, read_into, advance, buffer)
            files[written.name] = written.stored
            for piece in pieces:
                block = written.block(piece.key, piece.box.start, piece.box.size)
                blocks[piece.kind][piece.name].append(block)
        manifest = described.model_copy(update={"files": files, "blocks": blocks, "chunk_bytes": CHUNK_BYTES})
        fault = manifest.inconsistency()
        assert fault is None, f"the division has {fault}"
        manifest.write(staging)


def _write_file(
    path: Path, pieces: Sequence[Piece], read_into: ReadInto, advance: Advance, buffer: torch.Tensor
) -> WrittenFile:
    with ShardWriter(path, [Entry(piece.key, piece.box.size) for piece in pieces]) as writer:
        for piece in pieces:
            for part in row_slices(piece.box.size):
                values = buffer[: part.numel].view(part.size)
                read_into(piece.kind, piece.name, part.moved((0,) * len(part.start), piece.box.start), values)
                writer.append(values)
                advance(values.nbytes)
        return writer.finish()


def total_bytes(division: Division) -> int:
    """Bytes of values in all files."""
    return sum(piece.box.numel for pieces in division for piece in pieces) * torch.float32.itemsize
