"""Where a dataset lies: a directory, or a folder of an object store."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from data_pipeline.config import RemoteConfig, is_remote
from data_pipeline.files import FileInfo, map_file
from data_pipeline.manifest import DatasetManifest, TokenizerInfo
from data_pipeline.shard_table import ShardInfo, ShardTable
from data_pipeline.shards import ShardReader, Shards
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError
from runtime.files import digest_file, read_json

Split = Literal["train", "validation"]
Batch = tuple[int, int]
"""Numbers of a shard of a split, and of a record batch in it."""


class Place(Protocol):
    """What `TokenDataset` asks of the place that it lies in."""

    path: Path | str

    def manifest(self) -> DatasetManifest:
        """Raises UserError if there is none or it cannot be used."""
        ...

    def shards(self, manifest: DatasetManifest, split: Split) -> Shards:
        """Readers of a split's shards; none is opened yet."""
        ...

    def tokenizer(self, info: TokenizerInfo) -> Tokenizer:
        """Raises UserError if it is not the one that made the shards."""
        ...

    def check(self, table: ShardTable) -> None:
        """Raise UserError naming the first shard that is missing or not as long as it was."""
        ...

    def prefetch(self, shards: Shards, batches: Iterable[Batch]) -> None:
        """Say which batches will be read soon."""
        ...

    def beside(self, name: str) -> Any | None:
        """What a JSON file beside the shards holds, or None if there is none. Raises UserError if it cannot be read."""
        ...

    def mapped(self, file: FileInfo) -> Any:
        """A file as pyarrow reads one, whole. Raises UserError if it is missing or has another length."""
        ...


def open_place(path: str | Path, remote: RemoteConfig | None = None) -> Place:
    """The place that `path` names. Raises UserError if an object store or the cache cannot be used."""
    if isinstance(path, str) and is_remote(path):
        from data_pipeline.remote.place import RemotePlace

        return RemotePlace(path, remote or RemoteConfig())
    return Directory(Path(path))


def open_shards(path: Path, manifest: DatasetManifest, split: Split) -> Shards:
    """Readers of a split's shards in a directory; no file is touched yet."""
    packed = manifest.build.compression != "none"

    def open_shard(info: ShardInfo) -> ShardReader:
        return ShardReader(path, info, dtype=manifest.dtype, batch_tokens=manifest.batch_tokens, packed=packed)

    return Shards(manifest.splits[split].shards, open_shard)


class Directory:
    """A dataset in a directory."""

    def __init__(self, path: Path) -> None:
        self.path: Path | str = path
        self._path = path

    def manifest(self) -> DatasetManifest:
        """See `Place`."""
        return DatasetManifest.load(self._path)

    def shards(self, manifest: DatasetManifest, split: Split) -> Shards:
        """See `Place`."""
        return open_shards(self._path, manifest, split)

    def tokenizer(self, info: TokenizerInfo) -> Tokenizer:
        """See `Place`."""
        file = self._path / info.file.name
        if file.is_file() and digest_file(file) != info.file.digest:
            raise UserError(f"{file} is a tokenizer that is not the shards' own: restore the file")
        return Tokenizer.load(file)

    def check(self, table: ShardTable) -> None:
        """See `Place`."""
        for name, size in table.token_files():
            map_file(self._path / name, size)

    def prefetch(self, shards: Shards, batches: Iterable[Batch]) -> None:
        """Nothing: the page cache does it."""

    def beside(self, name: str) -> Any | None:
        """See `Place`."""
        path = self._path / name
        return read_json(path) if path.exists() else None

    def mapped(self, file: FileInfo) -> Any:
        """See `Place`."""
        return map_file(self._path / file.name, file.bytes)
