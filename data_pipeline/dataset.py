"""A dataset as a stream of tokens, and the samples of a run as a pure function of (seed, index)."""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.config import DataConfig, RemoteConfig, is_remote
from data_pipeline.files import FileInfo
from data_pipeline.order import Indices, Permutation, derive_key
from data_pipeline.places import Batch, Split, open_place
from data_pipeline.plan import SamplePlan, Segment
from data_pipeline.sample_order import SampleOrder
from data_pipeline.shards import Tokens
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.windows import open_windows
from runtime.errors import UserError
from runtime.files import digest_bytes

_CHUNK = 1024
_CHUNKS_KEPT = 8


class TokenDataset:
    """The token stream of one split: all shards one after the other, each document closed by EOS."""

    def __init__(self, path: str | Path, split: Split = "train", remote: RemoteConfig | None = None) -> None:
        """Raises UserError if `path` (a directory or a URL) is no dataset or has no such split. Opens no shard yet."""
        self._place = open_place(path, remote)
        self.path = self._place.path
        self.manifest = self._place.manifest()
        self.split = split
        if split not in self.manifest.splits:
            raise UserError(f"{self.path} has no split {split!r}: it has {', '.join(self.manifest.splits)}")
        info = self.manifest.splits[split]
        self.tokens: int = info.tokens
        self._batch_tokens = self.manifest.batch_tokens
        self.shards = self._place.shards(self.manifest, split)
        self._shard_starts: list[int] = info.shards.starts.tolist()

    @property
    def tokenizer_digest(self) -> str:
        """xxh3-128 of the tokenizer file that made the shards."""
        return self.manifest.tokenizer.file.digest

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer in the dataset. Raises UserError if it is not the one that made the shards."""
        return self._place.tokenizer(self.manifest.tokenizer)

    def check_files(self) -> None:
        """Raise UserError naming the first shard that is missing or not as long as it was; reads no tokens."""
        self._place.check(self.shards.table)

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

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which ranges (begin, length) of the stream will be read soon: what an object store holds of them is
        fetched beside the reading."""
        wanted = [batch for begin, length in ranges for batch in self.batches(begin, length)]
        self._place.prefetch(self.shards, wanted)

    def beside(self, name: str) -> Any | None:
        """What a JSON file beside the shards holds, or None if there is none. Raises UserError if it cannot be read."""
        return self._place.beside(name)

    def mapped(self, file: FileInfo) -> Any:
        """A file beside the shards as pyarrow reads one. Raises UserError if it is missing or has another length."""
        return self._place.mapped(file)

    def batches(self, begin: int, length: int) -> Iterator[Batch]:
        """The record batches that hold tokens [begin, begin + length) of the stream."""
        end = begin + length
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


class _Chunk(NamedTuple):
    """Where consecutive samples come from; lists, since they are read one at a time."""

    sources: list[int]
    epochs: list[int]
    windows: list[int]


class SampleReader:
    """Sample i of a run, for any i >= 0: a pure function of (data, sequence_length, seed, i).

    Every epoch over a source visits each of its windows once, in an order of its own. `digest` identifies the
    token streams, weights and packing: with equal digest, length, seed and split, all samples are equal.
    """

    def __init__(
        self,
        config: DataConfig,
        sequence_length: int,
        seed: int,
        split: Split = "train",
        global_batch: int | None = None,
    ) -> None:
        """`global_batch`: samples of a step, for segments that begin with a step.

        Raises UserError for a source that is missing, too short for a sample, or of another tokenizer.
        """
        assert sequence_length >= 1
        segments = config.segments_from(global_batch)
        self.names = config.paths()
        config.check_caps(self.names)
        self.sequence_length = sequence_length
        self.datasets = [TokenDataset(path, split, config.remote) for path in self.names]
        self.remote = any(is_remote(path) for path in self.names)
        self.manifests = [dataset.manifest for dataset in self.datasets]
        self._streams = [manifest.stream_digest for manifest in self.manifests]
        self._check_tokenizers()
        self._cuts = [open_windows(dataset, sequence_length, config.packing) for dataset in self.datasets]
        self.windows = [windows.count for windows in self._cuts]
        self._check_lengths(split)
        self._chunks: OrderedDict[int, _Chunk] = OrderedDict()
        self._foretold: frozenset[int] = frozenset()
        self._settings: list[list[object]] = []
        subset: Permutation | None = None
        if config.unique_tokens is not None:
            subset = Permutation(self.windows[0], derive_key(0, "unique", self._streams[0]))
            self.windows[0] = self._fewer(config.unique_tokens)
            self._settings.append(["unique windows", self.windows[0]])
        if config.packing != "stream":
            self._settings.append(["packing", config.packing])
        if config.document_mask:
            self._settings.append(["document mask"])
        numbers = {name: number for number, name in enumerate(self.names)}
        self.plan = SamplePlan(
            [Segment(start, {numbers[path]: weight for path, weight in weighed}) for start, weighed in segments],
            [self._cap(source, config.cap_of(name)) for source, name in enumerate(self.names)],
            derive_key(seed, "mixture"),
        )
        keys = [derive_key(seed, "order", stream) for stream in self._streams]
        self._order = SampleOrder(self.plan, self.windows, keys, subset)

    def _check_tokenizers(self) -> None:
        first = self.datasets[0]
        for dataset in self.datasets:
            others = dataset.manifest.tokenizer.special_ids
            if dataset.tokenizer_digest != first.tokenizer_digest or first.manifest.tokenizer.contradicts(others):
                raise UserError(
                    f"data.mixture: {dataset.path} and {first.path} were made with different tokenizers: "
                    "build one with `tokenizer: {kind: existing}` and the other's path"
                )

    def _check_lengths(self, split: str) -> None:
        for dataset, windows in zip(self.datasets, self.windows, strict=True):
            if not windows:
                raise UserError(
                    f"{dataset.path}: its {split} split has {dataset.tokens} tokens, less than one sample of "
                    f"{self.sequence_length}: lower train.sequence_length or build a larger dataset"
                )

    def _fewer(self, tokens: int) -> int:
        count = min(self.windows[0], tokens // self.sequence_length)
        if not count:
            raise UserError(f"data.unique_tokens={tokens} is less than one sample of {self.sequence_length}: raise it")
        return count

    def _cap(self, source: int, epochs: float | None) -> int | None:
        if epochs is None:
            return None
        samples = int(Fraction(epochs) * self.windows[source])
        if not samples:
            raise UserError(
                f"data.max_epochs: {epochs} epochs of {self.names[source]} are less than a sample: raise it"
            )
        return samples

    def windows_of(self, source: int) -> int:
        """Windows of a source, those that `data.unique_tokens` leaves out included: their numbers are below it."""
        return self._cuts[source].count

    def digest_before(self, samples: int) -> str:
        """Identifies all that decides the first `samples` samples: two runs with the same one may share them."""
        identity = [*self.plan.identity(samples, self._streams), *self._settings]
        return digest_bytes(json.dumps(identity).encode())

    @property
    def digest(self) -> str:
        """Identifies all samples."""
        return self.digest_before(1 << 62)

    def require(self, samples: int) -> None:
        """Raise UserError if the sources do not last for so many samples."""
        end = self.plan.end
        if end is not None and samples > end:
            raise UserError(
                f"data.max_epochs: no source is left after sample {end}, the run takes {samples}: "
                "raise it, add a source, or lower train.steps"
            )

    def locate(self, i: int) -> tuple[str, int, int]:
        """(path of the source, epoch over it, window in it) of sample `i`."""
        chunk, position = self._chunk_of(i)
        return self.names[chunk.sources[position]], chunk.epochs[position], chunk.windows[position]

    def places(self, begin: int, end: int) -> tuple[Indices, Indices, Indices]:
        """Source (its place in `names`), epoch and window of samples [begin, end), each [end - begin]."""
        return self._order.places(begin, end)

    def _chunk_of(self, i: int) -> tuple[_Chunk, int]:
        assert i >= 0, "samples are counted from 0"
        number, position = divmod(i, _CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            places = self.places(number * _CHUNK, (number + 1) * _CHUNK)
            chunk = self._chunks[number] = _Chunk(*(part.tolist() for part in places))
            if len(self._chunks) > _CHUNKS_KEPT:
                self._chunks.popitem(last=False)
        if position >= len(chunk.sources):
            self.require(i + 1)
        return chunk, position

    def tokens(self, i: int) -> npt.NDArray[np.int64]:
        """Token ids of sample `i`, shape [sequence_length], or fewer if the packing gives short ones.

        Raises DamagedBatch naming a damaged shard and batch.
        """
        chunk, position = self._chunk_of(i)
        return self._cuts[chunk.sources[position]][chunk.windows[position]].astype(np.int64)

    def prefetch(self, indices: Iterable[int]) -> None:
        """Say which samples will be read soon; those that the plan does not have are passed over.

        Those of the call before are known, so that a step tells of one more step and pays for no more. What is far
        ahead is worked out apart from what is read: it may be thousands of chunks away, where many ranks share a step.
        """
        wanted = frozenset(indices)
        fresh = np.array(sorted(wanted - self._foretold), dtype=np.int64)
        self._foretold = wanted
        for run in np.split(fresh, np.flatnonzero(np.diff(fresh) != 1) + 1):
            if run.size:
                self._prefetch_run(int(run[0]), int(run[-1]) + 1)

    def _prefetch_run(self, begin: int, end: int) -> None:
        sources, _, windows = self.places(begin, end)
        for source in np.unique(sources).tolist():
            numbers, ranges = windows[sources == source].tolist(), self._cuts[source].ranges
            self.datasets[source].prefetch(part for number in numbers for part in ranges(number))

    def batch(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Token ids of the samples `indices`, shape [len(indices), sequence_length]; none of them may be short."""
        out = np.empty((len(indices), self.sequence_length), dtype=np.int64)
        for row, i in enumerate(indices):
            chunk, position = self._chunk_of(i)
            out[row] = self._cuts[chunk.sources[position]][chunk.windows[position]]
        return out
