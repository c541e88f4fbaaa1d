"""The windows of a dataset, by number: the stream cut evenly, or pieces of documents from an index on disk."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field

from data_pipeline.config import Packing
from data_pipeline.files import Count, Digest, FileInfo, describe_file
from data_pipeline.manifest import DatasetManifest
from data_pipeline.packing import Numbers, PiecePacking, Pieces, pack_documents
from data_pipeline.places import Split
from data_pipeline.shards import ShardReader, Shards, Tokens
from runtime.errors import UserError, one_line
from runtime.files import mend_of, read_json, write_json
from runtime.progress import ProgressBar
from runtime.settings import Settings

MEND_INDEX = "lacuna data pack makes it anew"
_PACKED_AT_START = 1 << 20  # documents that best fit takes about a second for
_PIECES = pa.list_(pa.struct([("begin", pa.int64()), ("length", pa.int32())]))
_SCHEMA = pa.schema([pa.field("pieces", _PIECES, nullable=False)])


class TokenStream(Protocol):
    """A dataset's split as windows need it."""

    path: Path | str
    manifest: DatasetManifest
    split: Split
    tokens: int
    shards: Shards

    def read(self, begin: int, length: int) -> Tokens:
        """Tokens [begin, begin + length) of the stream."""
        ...

    def beside(self, name: str) -> Any | None:
        """What a JSON file beside the shards holds, or None if there is none."""
        ...

    def mapped(self, file: FileInfo) -> Any:
        """A file beside the shards as pyarrow reads one."""
        ...


class Windows(Protocol):
    """Windows by number; `count` of them."""

    count: int

    def __getitem__(self, number: int) -> Tokens: ...

    def ranges(self, number: int) -> list[tuple[int, int]]:
        """Where its tokens stand in the stream: (begin, length)."""
        ...


class StreamWindows:
    """The stream cut every `length` tokens; a shorter rest is not used."""

    def __init__(self, stream: TokenStream, length: int) -> None:
        self._stream, self._length = stream, length
        self.count = stream.tokens // length

    def __getitem__(self, number: int) -> Tokens:
        return self._stream.read(number * self._length, self._length)

    def ranges(self, number: int) -> list[tuple[int, int]]:
        """See `Windows`."""
        return [(number * self._length, self._length)]


class PieceWindows:
    """Windows of whole documents or pieces of them, EOS included, each of at most the packing's length.

    `pieces_of(shard)` gives a shard's windows when one of them is first read.
    """

    def __init__(self, stream: TokenStream, windows: Sequence[int], pieces_of: Callable[[int], Pieces]) -> None:
        self._stream, self._pieces_of = stream, pieces_of
        self._pieces: dict[int, Pieces] = {}
        self._first = [0, *accumulate(windows)]
        self._starts: list[int] = stream.shards.table.starts.tolist()
        self.count = self._first[-1]

    def __getitem__(self, number: int) -> Tokens:
        parts = [self._stream.read(begin, length) for begin, length in self.ranges(number)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def ranges(self, number: int) -> list[tuple[int, int]]:
        """See `Windows`."""
        assert 0 <= number < self.count, f"window {number} of {self.count}"
        shard = bisect_right(self._first, number) - 1
        pieces = self._pieces.get(shard)
        if pieces is None:
            pieces = self._pieces[shard] = self._pieces_of(shard)
        first, last = pieces.offsets[number - self._first[shard] :][:2].tolist()
        begins = (pieces.begins[first:last] + self._starts[shard]).tolist()
        return list(zip(begins, pieces.lengths[first:last].tolist(), strict=True))


class PackedShard(Settings):
    """The windows of a shard: how many, and xxh3-128 of their numbers (`Pieces.digest`)."""

    windows: Count
    digest: Digest


class PackedSplit(Settings):
    """An Arrow IPC file with a record batch for each shard, a row for each window."""

    file: FileInfo
    shards: list[PackedShard]


class WindowIndex(Settings):
    """Windows of a dataset as `lacuna data pack` writes them beside its shards; `stream_digest` is the dataset's."""

    version: Literal[1] = 1
    packing: PiecePacking
    length: int = Field(gt=0)
    stream_digest: Digest
    splits: dict[Split, PackedSplit]


def open_windows(stream: TokenStream, length: int, packing: Packing) -> Windows:
    """The windows of at most `length` tokens of a split.

    Those of documents come memory-mapped from the dataset's index. Without one they are computed: 12 bytes a piece and
    4 a window are then kept. Raises UserError if the index or a documents' file is damaged or of other shards, or best
    fit has no index and too many documents.
    """
    if packing == "stream":
        return StreamWindows(stream, length)
    name = _index_name(length, packing)
    values = stream.beside(name)
    if values is not None:
        return _from_index(stream, values, f"{stream.path}/{name}")
    documents = stream.manifest.splits[stream.split].documents
    if packing == "best_fit" and documents > _PACKED_AT_START:
        raise UserError(
            f"data.packing={packing}: {stream.path} has {documents:,} documents and no index of windows of {length} "
            f"tokens: {_how_to_pack(stream.path)} --length {length} --packing {packing}"
        )
    packed = [pack_documents(shard.documents()[0], length, packing) for shard in stream.shards]
    return PieceWindows(stream, [pieces.windows for pieces in packed], packed.__getitem__)


def _how_to_pack(path: Path | str) -> str:
    if isinstance(path, Path):
        return f"lacuna data pack {path}"
    return "on a copy on disk, whose new files then go beside the shards, lacuna data pack COPY"


def _index_name(length: int, packing: PiecePacking) -> str:
    return f"{packing}-{length}.windows.json"


def index_path(dataset: Path, length: int, packing: PiecePacking) -> Path:
    """Where the index of a packing stands."""
    return dataset / _index_name(length, packing)


def window_indices(dataset: Path) -> list[Path]:
    """All indices that stand in a dataset."""
    return sorted(dataset.glob("*.windows.json"))


def load_index(path: Path, manifest: DatasetManifest) -> WindowIndex:
    """An index of the dataset of `manifest`. Raises UserError if it cannot be read or is of other shards."""
    return _parse_index(read_json(path), str(path), manifest)


def _parse_index(values: Any, where: str, manifest: DatasetManifest) -> WindowIndex:
    index = WindowIndex.parse(values, where)
    if index.stream_digest != manifest.stream_digest:
        raise UserError(f"{where} is of other shards: {MEND_INDEX}")
    return index


def _from_index(stream: TokenStream, values: Any, where: str) -> PieceWindows:
    split = _parse_index(values, where, stream.manifest).splits[stream.split]
    file = f"{stream.path}/{split.file.name}"
    mapped = cache(lambda: stream.mapped(split.file))  # once, and only if a window is read

    def pieces_of(shard: int) -> Pieces:
        pieces = _read_pieces(mapped(), file, shard)
        if pieces.windows != split.shards[shard].windows or pieces.digest != split.shards[shard].digest:
            raise UserError(f"{file} is damaged (windows of shard {shard}): {MEND_INDEX}")
        return pieces

    return PieceWindows(stream, [shard.windows for shard in split.shards], pieces_of)


def _read_pieces(mapped: Any, file: str, shard: int) -> Pieces:
    try:
        column: Any = pa.ipc.open_file(mapped).get_batch(shard).column(0)
        column.validate()
        values = column.values
        return Pieces(column.offsets.to_numpy(), values.field(0).to_numpy(), values.field(1).to_numpy())
    except (pa.ArrowException, OSError, IndexError, ValueError) as error:
        raise UserError(f"{file}: windows of shard {shard} cannot be read ({one_line(error)}): {MEND_INDEX}") from None


def write_index(
    streams: Sequence[TokenStream], length: int, packing: PiecePacking, progress: bool = True
) -> tuple[Path, dict[str, dict[str, int]]]:
    """Pack the splits of a dataset, shard by shard, and write the index beside them; an old one is replaced.

    Returns its path, and by split the windows, and the tokens in them. Memory: some 40 bytes a document of one shard.
    Raises UserError naming a damaged file, or if it cannot be written.
    """
    path = index_path(Path(streams[0].path), length, packing)
    splits: dict[Split, PackedSplit] = {}
    found: dict[str, dict[str, int]] = {}
    try:
        path.unlink(missing_ok=True)  # an index whose files change must not be read
        with ProgressBar("pack", sum(len(stream.shards) for stream in streams), progress) as bar:
            for stream in streams:
                file = path.parent / f"{stream.split}-{packing}-{length}.windows.arrow"
                shards = _write_split(stream, file, length, packing, bar)
                splits[stream.split] = PackedSplit(file=describe_file(file), shards=shards)
                windows = sum(shard.windows for shard in shards)
                found[stream.split] = {"windows": windows, "tokens": stream.tokens}
        digest = streams[0].manifest.stream_digest
        index = WindowIndex(packing=packing, length=length, stream_digest=digest, splits=splits)
        write_json(path, index.model_dump(mode="json"))
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({one_line(error)}): {mend_of(error)}") from None
    return path, found


def _write_split(
    stream: TokenStream, file: Path, length: int, packing: PiecePacking, bar: ProgressBar
) -> list[PackedShard]:
    shards = []
    with pa.ipc.new_file(str(file), _SCHEMA) as out:
        for shard in stream.shards:
            pieces = pack_documents(_ends(shard), length, packing)
            values = pa.StructArray.from_arrays(
                [pa.array(pieces.begins), pa.array(pieces.lengths)], names=["begin", "length"]
            )
            column = pa.ListArray.from_arrays(pa.array(pieces.offsets), values).cast(_PIECES)
            out.write_batch(pa.RecordBatch.from_arrays([column], schema=_SCHEMA))
            shards.append(PackedShard(windows=pieces.windows, digest=pieces.digest))
            bar.advance(1)
    return shards


def _ends(shard: ShardReader) -> Numbers:
    return shard.documents()[0]
