"""The data path: windows against a flat memory-mapped file, and assembled batches against the step they feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.timing import Spread, interleave, ratio, seconds
from bench.workload import Workload, build_feed, open_reader
from data_pipeline.dataset import SampleReader
from data_pipeline.loader import Loader

_ROUNDS = 9
_TOKENS_PER_ROUND = 2_000_000
_FEED_STEPS = 200
OURS, WINDOWS, GATHER = (
    "SampleReader through Loader",
    "flat memmap, a copy per window",
    "flat memmap, one gather a batch",
)


@dataclass(frozen=True)
class WindowResult:
    """Batches of `batch` windows of `length` tokens as int64: tokens/s by contender, and our time over each."""

    length: int
    batch: int
    rates: dict[str, Spread]
    ratios: dict[str, Spread]


@dataclass(frozen=True)
class FeedResult:
    """`Feed.step`: tokens with noise, digest and collation. Seconds per step, and tokens/s."""

    workload: str
    seconds: Spread
    rate: Spread


def measure_windows(workload: Workload, data: Path, scratch: Path, length: int, batch: int) -> WindowResult:
    """Read the same windows in the same order; the flat file's reader is given their numbers, ours finds them."""
    config = workload.config(data)
    config = config.model_copy(update={"train": config.train.model_copy(update={"sequence_length": length})})
    reader = open_reader(config)
    flat = _flat_copy(reader, scratch / f"flat-{length}.bin")
    batches = _TOKENS_PER_ROUND // (length * batch)
    samples = [range(b * batch, (b + 1) * batch) for b in range(batches)]
    numbers = [np.array([reader.locate(i)[2] for i in indices]) for indices in samples]
    windows = flat[: flat.size // length * length].reshape(-1, length)

    def gather(b: int) -> npt.NDArray[np.int64]:
        return windows[numbers[b]].astype(np.int64)

    def copy_each(b: int) -> npt.NDArray[np.int64]:
        return np.stack([flat[n * length : (n + 1) * length].astype(np.int64) for n in numbers[b].tolist()])

    def ours() -> None:
        with Loader(lambda b: reader.batch(samples[b]), 0, batches) as loader:
            for _ in loader:
                pass

    assert all(np.array_equal(gather(b), reader.batch(samples[b])) for b in (0, batches - 1)), "not the same windows"
    assert np.array_equal(copy_each(0), gather(0)), "not the same windows"
    contenders: dict[str, Callable[[int], float]] = {
        OURS: lambda _: seconds(ours),
        WINDOWS: lambda _: seconds(lambda: _drain(copy_each, batches)),
        GATHER: lambda _: seconds(lambda: _drain(gather, batches)),
    }
    times = interleave(contenders, _ROUNDS)
    tokens = batches * batch * length
    return WindowResult(
        length=length,
        batch=batch,
        rates={name: Spread.of([tokens / t for t in taken]) for name, taken in times.items()},
        ratios={name: ratio(times[OURS], taken) for name, taken in times.items()},
    )


def _drain(assemble: Callable[[int], object], count: int) -> None:
    for b in range(count):
        assemble(b)


def _flat_copy(reader: SampleReader, path: Path) -> npt.NDArray[np.unsignedinteger]:
    """The training stream as one flat file of the shards' own type, memory-mapped."""
    stream = np.concatenate(
        [shard.batch(n) for shard in reader.datasets[0].shards for n in range(len(shard.info.batches))]
    )
    stream.tofile(path)
    return np.memmap(path, dtype=stream.dtype, mode="r")


def measure_feeds(workloads: Sequence[Workload], data: Path) -> list[FeedResult]:
    """Assembling a step's micro-batches, one after the other on this thread."""
    return [_measure_feed(workload, data) for workload in workloads]


def _measure_feed(workload: Workload, data: Path) -> FeedResult:
    config = workload.config(data)
    feed, tokens = build_feed(config), config.train.tokens_per_step
    feed.step(0)
    times = [seconds(partial(feed.step, step)) for step in range(1, _FEED_STEPS)]
    return FeedResult(workload.name, Spread.of(times), Spread.of([tokens / t for t in times]))
