"""Shuffled batches of windows as this project reads them: `python ours.py DATASET FLAT LENGTH BATCH THREAD`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol import serve

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from data_pipeline.loader import Loader

_FOR_EVER = 1 << 40


def main() -> None:
    """Serve, with the prefetch thread or in process."""
    dataset, flat, length, batch, thread = sys.argv[1:]
    reader, size = SampleReader(DataConfig(path=dataset), int(length), seed=0), int(batch)

    def assemble(number: int) -> Any:
        return reader.batch(range(number * size, (number + 1) * size))

    def batches(_epoch: int) -> Iterator[Any]:
        if thread == "thread":
            with Loader(assemble, 0, _FOR_EVER) as loader:
                yield from loader
        yield from map(assemble, range(_FOR_EVER))

    serve(batches, Path(flat), int(length))


if __name__ == "__main__":
    main()
