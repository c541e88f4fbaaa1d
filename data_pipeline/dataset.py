"""A dataset as a stream of tokens, and the samples of a run as a pure function of (seed, index)."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig
from data_pipeline.manifest import DatasetManifest
from data_pipeline.mixture import Mixture
from data_pipeline.order import Permutation, derive_key
from data_pipeline.shards import ShardReader, Tokens
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError
from runtime.files import digest_bytes

Split = Literal["train", "validation"]
_ORDERS_KEPT = 64


class TokenDataset:
    """The token stream of one split: all shards one after the other, each document closed by EOS."""

    def __init__(self, path: str | Path, split: Split = "train") -> None:
        """Raises UserError if `path` is not a dataset or has no such split. Shards are opened when first read."""
        self.path = Path(path)
        self.manifest = DatasetManifest.load(self.path)
        if split not in self.manifest.splits:
            raise UserError(f"{self.path} has no split {split!r}: it has {', '.join(self.manifest.splits)}")
        info = self.manifest.splits[split]
        self.tokens: int = info.tokens
        self.shards = [
            ShardReader(self.path, s, self.manifest.dtype, self.manifest.batch_tokens) for s in info.shards
        ]
        self._shard_starts = np.cumsum([0, *(s.tokens for s in info.shards)])

    @property
    def tokenizer_digest(self) -> str:
        """xxh3-128 of the tokenizer file that made the shards."""
        return self.manifest.tokenizer.file.digest

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer in the dataset. Raises UserError if it is not the one that made the shards."""
        tokenizer = Tokenizer.load(self.path)
        if tokenizer.digest != self.tokenizer_digest:
            raise UserError(
                f"{self.path / self.manifest.tokenizer.file.name} is a tokenizer that is not the shards' own: restore the file"
            )
        return tokenizer

    def windows(self, length: int) -> int:
        """How many windows of `length` tokens the stream holds; a shorter rest is not used."""
        return self.tokens // length

    def window(self, number: int, length: int) -> Tokens:
        """Tokens [number * length, (number + 1) * length) of the stream, read-only; shape [length].

        Raises UserError naming the shard if a batch that is read for the first time is damaged.
        """
        begin = number * length
        assert 0 <= begin <= self.tokens - length, f"window {number} of {length} tokens is outside the stream"
        shard = int(self._shard_starts.searchsorted(begin, side="right")) - 1
        within = begin - int(self._shard_starts[shard])
        batch, offset = divmod(within, self.manifest.batch_tokens)
        first = self.shards[shard].batch(batch)[offset : offset + length]
        return first if first.size == length else self._across(first, shard, batch, length)

    def _across(self, first: Tokens, shard: int, batch: int, length: int) -> Tokens:
        parts, missing = [first], length - first.size
        while missing:
            batch += 1
            if batch == len(self.shards[shard].info.batches):
                shard, batch = shard + 1, 0
            parts.append(self.shards[shard].batch(batch)[:missing])
            missing -= parts[-1].size
        return np.concatenate(parts)


class SampleReader:
    """Sample i of a run, for any i >= 0: a pure function of (data, sequence_length, seed, i).

    Every epoch over a source visits each of its windows once, in an order of its own.
    """

    def __init__(self, config: DataConfig, sequence_length: int, seed: int, split: Split = "train") -> None:
        """Raises UserError for a source that is missing, shorter than one sample, or made with another tokenizer."""
        assert sequence_length >= 1
        sources = config.sources()
        self.sequence_length = sequence_length
        self.datasets = [TokenDataset(path, split) for path, _ in sources]
        self.manifests = [dataset.manifest for dataset in self.datasets]
        self._names = [path for path, _ in sources]
        self._windows = [dataset.windows(sequence_length) for dataset in self.datasets]
        self._check(split)
        self._mixture = Mixture([weight for _, weight in sources], derive_key(seed, "mixture"))
        self._keys = [derive_key(seed, "order", manifest.digest) for manifest in self.manifests]
        self._orders: OrderedDict[tuple[int, int], Permutation] = OrderedDict()
        self.digest = digest_bytes(
            json.dumps([[m.digest, w] for m, (_, w) in zip(self.manifests, sources, strict=True)]).encode()
        )

    def _check(self, split: str) -> None:
        first = self.datasets[0]
        for dataset, windows in zip(self.datasets, self._windows, strict=True):
            if not windows:
                raise UserError(
                    f"{dataset.path}: its {split} split has {dataset.tokens} tokens, less than one sample of "
                    f"{self.sequence_length}: lower train.sequence_length or build a larger dataset"
                )
            if dataset.tokenizer_digest != first.tokenizer_digest:
                raise UserError(
                    f"data.mixture: {dataset.path} and {first.path} were made with different tokenizers: "
                    "build one with `tokenizer: {kind: existing}` and the other's path"
                )

    def locate(self, i: int) -> tuple[str, int, int]:
        """(path of the source, epoch over it, window in it) of sample `i`."""
        source, epoch, window = self._place(i)
        return self._names[source], epoch, window

    def _place(self, i: int) -> tuple[int, int, int]:
        assert i >= 0, "samples are counted from 0"
        source, rank = self._mixture.source_and_rank(i)
        epoch, position = divmod(rank, self._windows[source])
        order = self._orders.get((source, epoch))
        if order is None:
            order = Permutation(self._windows[source], derive_key(self._keys[source], epoch))
            self._orders[source, epoch] = order
            if len(self._orders) > _ORDERS_KEPT:
                self._orders.popitem(last=False)
        return source, epoch, order(position)

    def tokens(self, i: int) -> npt.NDArray[np.int64]:
        """Token ids of sample `i`, shape [sequence_length]. Raises UserError naming a damaged shard."""
        source, _, window = self._place(i)
        found: npt.NDArray[Any] = self.datasets[source].window(window, self.sequence_length)
        return found.astype(np.int64)
