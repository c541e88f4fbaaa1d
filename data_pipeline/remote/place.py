"""A dataset in a folder of an object store."""

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.config import RemoteConfig
from data_pipeline.files import MEND, FileInfo
from data_pipeline.manifest import MANIFEST, DatasetManifest, TokenizerInfo
from data_pipeline.places import Batch, Split
from data_pipeline.remote.block_cache import BlockCache
from data_pipeline.remote.folder import Folder
from data_pipeline.remote.prefetch import Prefetcher
from data_pipeline.remote.shards import RemoteFiles, RemoteShard
from data_pipeline.shard_table import ShardInfo, ShardTable
from data_pipeline.shards import Shards
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError

_LEAST_BATCHES = 64
"""Blocks that a cache must hold at least: what several processes work on and have in advance."""


def cache_directory(config: RemoteConfig) -> Path:
    """`data.remote.cache`, or a directory of the user's own among the system's temporary ones.

    Raises UserError if that one is somebody else's.
    """
    if config.cache is not None:
        return Path(config.cache).expanduser().absolute()
    path = Path(tempfile.gettempdir()) / f"lacuna-cache-{os.getuid()}"
    with suppress(OSError):  # whoever opens it will say what is wrong
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid != os.getuid():
            raise UserError(f"{path} belongs to another user: set data.remote.cache")
    return path


class RemotePlace:
    """Reads a dataset in an object store through a cache of its record batches. See `data_pipeline.places.Place`."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        """Raises UserError if the store or the cache's directory cannot be used."""
        self.path: Path | str = url.rstrip("/")
        self._limit = config.cache_bytes
        self._files = RemoteFiles(Folder(url, config), BlockCache(cache_directory(config), config.cache_bytes))
        self._prefetcher = Prefetcher[tuple[RemoteShard, int]](lambda wanted: wanted[0].prefetch(wanted[1]))

    def manifest(self) -> DatasetManifest:
        """The manifest, read anew each time. Raises UserError if there is none or it cannot be used."""
        manifest = DatasetManifest.from_values(self._json(MANIFEST), f"{self.path}/{MANIFEST}", self._files.whole)
        block = manifest.batch_tokens * (2 if manifest.dtype == "uint16" else 4)
        if self._limit < _LEAST_BATCHES * block:
            raise UserError(
                f"data.remote.cache_bytes={self._limit} is less than {_LEAST_BATCHES} record batches of {self.path}: "
                f"give {_LEAST_BATCHES * block} at least"
            )
        return manifest

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self._files.folder.read_all(name))
        except (ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}/{name} cannot be read as JSON ({error}): restore or rebuild it") from None

    def beside(self, name: str) -> Any | None:
        """See `Place`."""
        return self._json(name) if name in self._files.folder.sizes() else None

    def mapped(self, file: FileInfo) -> Any:
        """See `Place`; through the cache, checked against its digest."""
        return pa.BufferReader(pa.py_buffer(self._files.whole(file)))

    def shards(self, manifest: DatasetManifest, split: Split) -> Shards:
        """Readers of a split's shards; nothing is read yet."""

        def open_shard(info: ShardInfo) -> RemoteShard:
            return RemoteShard(self._files, info, dtype=manifest.dtype, batch_tokens=manifest.batch_tokens)

        return Shards(manifest.splits[split].shards, open_shard)

    def tokenizer(self, info: TokenizerInfo) -> Tokenizer:
        """The dataset's tokenizer. Raises UserError if it cannot be read or is damaged."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / info.file.name
            file.write_bytes(self._files.whole(info.file))
            return Tokenizer.load(file, info.special_ids)

    def check(self, table: ShardTable) -> None:
        """Raise UserError naming the first shard that is missing or not as long as it was; one listing."""
        sizes = self._files.folder.sizes()
        for name, size in table.token_files():
            found = sizes.get(name)
            if found != size:
                state = "does not exist" if found is None else f"is {found} bytes long, not {size}"
                raise UserError(f"{self.path}/{name} {state}: {MEND}")

    def prefetch(self, shards: Shards, batches: Iterable[Batch]) -> None:
        """Begin to fetch batches that will be read soon."""
        wanted = ((shards[shard], number) for shard, number in batches)
        self._prefetcher.want((shard, number) for shard, number in wanted if isinstance(shard, RemoteShard))
