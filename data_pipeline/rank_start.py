"""What it costs a rank to start: its datasets opened, and its first sample found."""

import time
from pathlib import Path
from typing import NamedTuple

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from data_pipeline.order import Indices
from data_pipeline.passes.worker import Worker


class Start(NamedTuple):
    """Seconds, and the bytes by which the process grew.

    `bytes` are its own, `mapped` pages of files, which all processes of a machine share, `peak` the most of both.
    """

    seconds: float
    bytes: int
    mapped: int
    peak: int


def open_reader(config: DataConfig, sequence_length: int, seed: int, global_batch: int) -> SampleReader:
    """The samples of a run, as each of its ranks opens them."""
    return SampleReader(config, sequence_length, seed, global_batch=global_batch)


def find_samples(reader: SampleReader, begin: int, end: int) -> tuple[Indices, Indices, Indices]:
    """Source, epoch and window of samples [begin, end), once all is looked up that is known before they are read."""
    places = reader.places(begin, end)
    for source, window in zip(places[0].tolist(), places[2].tolist(), strict=True):
        dataset = reader.datasets[source]
        for shard, batch in dataset.batches(window * reader.sequence_length, reader.sequence_length):
            assert dataset.shards[shard].info.batches[batch], "every record batch has a digest"
    return places


def start_apart(config: DataConfig, small: DataConfig, *run: int) -> Start:
    """`start_of_rank` in a process of its own."""
    worker = Worker()
    try:
        started: Start = worker.do(start_of_rank, config, small, *run)
    finally:
        worker.close()
    return started


def start_of_rank(config: DataConfig, small: DataConfig, *run: int) -> Start:
    """Open the data of a run, `small` ones before, so that neither libraries nor first calls are counted."""
    find_samples(open_reader(small, *run), 0, 1)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here on
    before = _resident()
    begin = time.perf_counter()
    reader = open_reader(config, *run)
    find_samples(reader, 0, 1)
    seconds = time.perf_counter() - begin
    own, mapped, peak = (max(0, now - then) for now, then in zip(_resident(), before, strict=True))
    return Start(seconds, own, mapped, peak)


def _resident() -> tuple[int, int, int]:
    """Bytes of this process: its own, mapped from files, and the most of both so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = {key: value for key, _, value in (line.partition(":") for line in lines)}
    own, mapped, peak = (int(sizes[key].split()[0]) << 10 for key in ("RssAnon", "RssFile", "VmHWM"))
    return own, mapped, peak
