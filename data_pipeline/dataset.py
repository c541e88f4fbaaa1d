"""A dataset as a stream of tokens, and the samples of a run as a pure function of (seed, index)."""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig, RemoteConfig, is_remote
from data_pipeline.mixture import BLOCK, Mixture
from data_pipeline.order import Permutation, derive_key
from data_pipeline.places import Batch, Split, open_place
from data_pipeline.shards import Tokens
from data_pipeline.tokenizer import Tokenizer
from runtime.errors import UserError
from runtime.files import digest_bytes

_PLANS_KEPT = 8


class TokenDataset:
    """The token stream of one split: all shards one after the other, each document closed by EOS."""

    def __init__(self, path: str | Path, split: Split = "train", remote: RemoteConfig | None = None) -> None:
        """Raises UserError if `path` (a directory or a URL) is no dataset or has no such split. Opens no shard yet."""
        self._place = open_place(path, remote)
        self.path = self._place.path
        self.manifest = self._place.manifest()
        if split not in self.manifest.splits:
            raise UserError(f"{self.path} has no split {split!r}: it has {', '.join(self.manifest.splits)}")
        info = self.manifest.splits[split]
        self.tokens: int = info.tokens
        self._batch_tokens = self.manifest.batch_tokens
        self.shards = self._place.shards(self.manifest, split)
        self._shard_starts = [0, *accumulate(s.tokens for s in info.shards)]

    @property
    def tokenizer_digest(self) -> str:
        """xxh3-128 of the tokenizer file that made the shards."""
        return self.manifest.tokenizer.file.digest

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer in the dataset. Raises UserError if it is not the one that made the shards."""
        return self._place.tokenizer(self.manifest.tokenizer)

    def check_files(self) -> None:
        """Raise UserError naming the first shard that is missing or not as long as it was; reads no tokens."""
        self._place.check(self.shards)

    def windows(self, length: int) -> int:
        """How many windows of `length` tokens the stream holds; a shorter rest is not used."""
        return self.tokens // length

    def window(self, number: int, length: int) -> Tokens:
        """Tokens [number * length, (number + 1) * length) of the stream, read-only; shape [length].

        Raises UserError naming the shard if a batch that is read for the first time is damaged.
        """
        assert 0 <= number < self.windows(length), f"window {number} of {length} tokens is outside the stream"
        return self.read(number * length, length)

    def read(self, begin: int, length: int) -> Tokens:
        """Tokens [begin, begin + length) of the stream, read-only. Raises UserError as `window` does."""
        assert 0 <= begin <= self.tokens - length, f"{length} tokens from {begin} on are outside the stream"
        shard = bisect_right(self._shard_starts, begin) - 1
        batch, offset = divmod(begin - self._shard_starts[shard], self._batch_tokens)
        first = self.shards[shard].batch(batch)[offset : offset + length]
        return first if first.size == length else self._across(first, shard, batch, length)

    def prefetch(self, windows: Iterable[int], length: int) -> None:
        """Say which windows will be read soon: what an object store holds of them is fetched beside the reading."""
        self._place.prefetch(self.shards, [batch for window in windows for batch in self._batches_of(window, length)])

    def _batches_of(self, number: int, length: int) -> Iterator[Batch]:
        begin, end = number * length, (number + 1) * length
        while begin < end:
            shard = bisect_right(self._shard_starts, begin) - 1
            batch = (begin - self._shard_starts[shard]) // self._batch_tokens
            yield shard, batch
            begin = min(self._shard_starts[shard] + (batch + 1) * self._batch_tokens, self._shard_starts[shard + 1])

    def _across(self, first: Tokens, shard: int, batch: int, length: int) -> Tokens:
        parts, missing = [first], length - first.size
        while missing:
            batch += 1
            if batch == len(self.shards[shard].info.batches):
                shard, batch = shard + 1, 0
            parts.append(self.shards[shard].batch(batch)[:missing])
            missing -= parts[-1].size
        return np.concatenate(parts)


class StreamWindows:
    """The stream cut every `length` tokens; a shorter rest is not used."""

    def __init__(self, dataset: TokenDataset, length: int) -> None:
        self._dataset, self._length = dataset, length
        self.count = dataset.windows(length)

    def __getitem__(self, number: int) -> Tokens:
        return self._dataset.window(number, self._length)


class DocumentWindows:
    """One document a window, its EOS included; a longer one is cut every `length` tokens, so the last may be short.

    Holds 16 bytes a document. Raises UserError naming the file if the documents' borders are damaged.
    """

    def __init__(self, dataset: TokenDataset, length: int) -> None:
        self._dataset, self._length = dataset, length
        starts = [0, *accumulate(shard.info.tokens for shard in dataset.shards)]
        parts = [shard.documents()[0] + start for shard, start in zip(dataset.shards, starts, strict=False)]
        self._ends = np.concatenate([np.zeros(1, dtype=np.int64), *parts])
        windows = -(-np.diff(self._ends) // length)
        self._first = np.concatenate([[0], np.cumsum(windows)])
        self.count = int(self._first[-1])

    def __getitem__(self, number: int) -> Tokens:
        assert 0 <= number < self.count, f"window {number} of {self.count}"
        document = int(np.searchsorted(self._first, number, side="right")) - 1
        begin = int(self._ends[document]) + (number - int(self._first[document])) * self._length
        return self._dataset.read(begin, min(self._length, int(self._ends[document + 1]) - begin))


class _Plan(NamedTuple):
    """Where `BLOCK` consecutive samples come from; lists, since they are read one at a time."""

    sources: list[int]
    epochs: list[int]
    windows: list[int]


class SampleReader:
    """Sample i of a run, for any i >= 0: a pure function of (data, sequence_length, seed, i).

    Every epoch over a source visits each of its windows once, in an order of its own. `digest` identifies the
    token streams, weights and packing: with equal digest, length, seed and split, all samples are equal.
    """

    def __init__(self, config: DataConfig, sequence_length: int, seed: int, split: Split = "train") -> None:
        """Raises UserError for a source that is missing, too short for a sample, or of another tokenizer."""
        assert sequence_length >= 1
        sources = config.sources()
        self.sequence_length = sequence_length
        self.datasets = [TokenDataset(path, split, config.remote) for path, _ in sources]
        self.remote = any(is_remote(path) for path, _ in sources)
        if self.remote and config.packing != "stream":
            raise UserError(f"data.packing={config.packing} needs the data on disk: copy it there, or use stream")
        self.manifests = [dataset.manifest for dataset in self.datasets]
        self._names = [path for path, _ in sources]
        cut = DocumentWindows if config.packing == "document" else StreamWindows
        self._cuts = [cut(dataset, sequence_length) for dataset in self.datasets]
        self._windows = [windows.count for windows in self._cuts]
        self._check(split)
        weights = [weight for _, weight in sources]
        self._mixture = Mixture(weights, derive_key(seed, "mixture"))
        self._keys = [derive_key(seed, "order", manifest.stream_digest) for manifest in self.manifests]
        self._plans: OrderedDict[int, _Plan] = OrderedDict()
        identity: list[object] = [[m.stream_digest, weight] for m, weight in zip(self.manifests, weights, strict=True)]
        if config.packing != "stream":
            identity.append(["packing", config.packing])
        self._subset: Permutation | None = None
        if config.unique_tokens is not None:
            self._subset = Permutation(self._windows[0], derive_key(0, "unique", self.manifests[0].stream_digest))
            self._windows[0] = self._fewer(config.unique_tokens)
            identity.append(["unique windows", self._windows[0]])
        self.digest = digest_bytes(json.dumps(identity).encode())

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

    def _fewer(self, tokens: int) -> int:
        count = min(self._windows[0], tokens // self.sequence_length)
        if not count:
            raise UserError(f"data.unique_tokens={tokens} is less than one sample of {self.sequence_length}: raise it")
        return count

    def locate(self, i: int) -> tuple[str, int, int]:
        """(path of the source, epoch over it, window in it) of sample `i`."""
        plan, position = self._plan_of(i)
        return self._names[plan.sources[position]], plan.epochs[position], plan.windows[position]

    def _plan_of(self, i: int) -> tuple[_Plan, int]:
        assert i >= 0, "samples are counted from 0"
        block, position = divmod(i, BLOCK)
        plan = self._plans.get(block)
        if plan is None:
            plan = self._plans[block] = self._plan(block)
            if len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan, position

    def _plan(self, block: int) -> _Plan:
        sources, ranks = self._mixture.block(block)
        epochs, positions = np.divmod(ranks, np.array(self._windows)[sources])
        windows = np.empty_like(ranks)
        for source, epoch in set(zip(sources.tolist(), epochs.tolist(), strict=True)):
            chosen = (sources == source) & (epochs == epoch)
            order = Permutation(self._windows[source], derive_key(self._keys[source], epoch))
            windows[chosen] = order.map(positions[chosen])
        if self._subset is not None:
            windows = self._subset.map(windows)
        return _Plan(sources.tolist(), epochs.tolist(), windows.tolist())

    def tokens(self, i: int) -> npt.NDArray[np.int64]:
        """Token ids of sample `i`, shape [sequence_length], or fewer if the packing gives short ones.

        Raises UserError naming a damaged shard.
        """
        plan, position = self._plan_of(i)
        return self._cuts[plan.sources[position]][plan.windows[position]].astype(np.int64)

    def prefetch(self, indices: Iterable[int]) -> None:
        """Say which samples will be read soon."""
        windows: dict[int, list[int]] = {}
        for plan, position in map(self._plan_of, indices):
            windows.setdefault(plan.sources[position], []).append(plan.windows[position])
        for source, numbers in windows.items():
            self.datasets[source].prefetch(numbers, self.sequence_length)

    def batch(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Token ids of the samples `indices`, shape [len(indices), sequence_length]; none of them may be short."""
        out = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for row, i in enumerate(indices):
            plan, position = self._plan_of(i)
            out[row] = self._cuts[plan.sources[position]][plan.windows[position]]
        return out
