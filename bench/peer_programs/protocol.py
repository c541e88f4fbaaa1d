"""How the bench talks to a reader in a process of its own. Knows nothing of the project."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Batches = Callable[[int], Iterator[Any]]
"""From the number of an epoch to its batches: int64 of shape [windows, tokens] in a shuffled order, array or tensor."""


def serve(batches: Batches, flat: Path, length: int) -> None:
    """Check the first batch, say `ready`, then for each number on standard input take so many batches.

    Each answer is one JSON line with the seconds that it took. An epoch that ends is followed by the next.
    """
    epoch = 0
    source = batches(epoch)
    _check(np.asarray(next(source)), flat, length)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            batch = next(source, None)
            if batch is None:
                epoch += 1
                source = batches(epoch)
                batch = next(source)
        print(json.dumps({"seconds": time.perf_counter() - begin, "shape": list(batch.shape)}), flush=True)


def _check(batch: Any, flat: Path, length: int) -> None:
    """A batch must be windows of the stream, int64, and not the first ones in their order."""
    windows = np.memmap(flat, dtype=np.uint16, mode="r").reshape(-1, length)
    places = {row.tobytes(): number for number, row in enumerate(windows)}
    assert batch.dtype == np.int64, batch.dtype
    assert batch.ndim == 2
    assert batch.shape[1] == length, batch.shape
    numbers = [places[row.astype(np.uint16).tobytes()] for row in batch]
    assert numbers != list(range(len(batch))), "not shuffled"
