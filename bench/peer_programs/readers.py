"""Shuffled batches of windows as each peer reads them, in its own format and by its own means.

`python readers.py NAME FLAT FOLDER LENGTH BATCH WORKERS`: writes the peer's format below FOLDER from the flat uint16
file, then serves. Run in the peers' environment.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from protocol import Batches, serve


class Task(NamedTuple):
    """Windows to read: `flat` is uint16 [windows, length]; `folder` is the peer's own."""

    path: Path
    flat: Any
    folder: Path
    length: int
    batch: int
    workers: int


def flat_mmap(task: Task) -> Batches:
    """Indices shuffled by numpy, one copy a window: the least that one can do."""

    def batches(epoch: int) -> Iterator[Any]:
        order = np.random.default_rng(epoch).permutation(len(task.flat))
        for begin in range(0, len(order) - task.batch + 1, task.batch):
            out = np.empty((task.batch, task.length), dtype=np.int64)
            for row, number in enumerate(order[begin : begin + task.batch].tolist()):
                out[row] = task.flat[number]
            yield out

    return batches


def flat_gather(task: Task) -> Batches:
    """The same with one gather a batch."""

    def batches(epoch: int) -> Iterator[Any]:
        order = np.random.default_rng(epoch).permutation(len(task.flat))
        for begin in range(0, len(order) - task.batch + 1, task.batch):
            yield task.flat[order[begin : begin + task.batch]].astype(np.int64)

    return batches


def _as_int64(rows: list[Any]) -> Any:
    return np.stack([np.asarray(row) for row in rows]).astype(np.int64)


def _tensor(row: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(row))


def _litdata_part(part: tuple[str, int, int]) -> Iterator[Any]:
    path, begin, end = part
    yield _tensor(np.memmap(path, dtype=np.uint16, mode="r")[begin:end].astype(np.int32))


def litdata(task: Task) -> Batches:
    """Chunks of tokens written by `optimize`, read by StreamingDataset with a TokensLoader, shuffled."""
    import litdata
    from litdata.streaming.item_loader import TokensLoader

    size = task.flat.size
    step = 1024 * task.length
    parts = [(str(task.path), begin, min(begin + step, size)) for begin in range(0, size, step)]
    folder = str(task.folder / "chunks")
    litdata.optimize(
        fn=_litdata_part, inputs=parts, output_dir=folder, num_workers=1, chunk_size=step, item_loader=TokensLoader()
    )

    def batches(epoch: int) -> Iterator[Any]:
        data = litdata.StreamingDataset(
            folder, item_loader=TokensLoader(block_size=task.length), shuffle=True, drop_last=True, seed=epoch
        )
        loader = litdata.StreamingDataLoader(data, batch_size=task.batch, num_workers=task.workers)
        yield from (batch.long() for batch in loader)

    return batches


def mosaicml_streaming(task: Task) -> Batches:
    """MDS shards of 64 MB with a window a sample, StreamingDataset with its default shuffle."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    folder = str(task.folder / "mds")
    with MDSWriter(out=folder, columns={"tokens": f"ndarray:uint16:{task.length}"}, size_limit=1 << 26) as out:
        for row in task.flat:
            out.write({"tokens": np.ascontiguousarray(row)})
    data = StreamingDataset(local=folder, shuffle=True, batch_size=task.batch)

    def batches(epoch: int) -> Iterator[Any]:
        loader = DataLoader(
            data, task.batch, num_workers=task.workers, collate_fn=lambda rows: _as_int64([r["tokens"] for r in rows])
        )
        yield from loader

    return batches


def datasets(task: Task) -> Batches:
    """Arrow files with a window a row (fixed-size list), `shuffle`, format numpy, `iter` over batches."""
    import datasets as hf
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(task.flat.reshape(-1)), task.length)
    hf.Dataset(pa.table({"tokens": column})).save_to_disk(str(task.folder / "arrow"))
    data = hf.load_from_disk(str(task.folder / "arrow")).with_format("numpy")

    def batches(epoch: int) -> Iterator[Any]:
        shuffled = data.shuffle(seed=epoch)
        yield from (batch["tokens"].astype(np.int64) for batch in shuffled.iter(task.batch, drop_last_batch=True))

    return batches


class _Rows:
    """Windows as a dataset by index."""

    def __init__(self, task: Task) -> None:
        self._flat = task.flat

    def __len__(self) -> int:
        return len(self._flat)

    def __getitem__(self, index: int) -> Any:
        return self._flat[index]


def torchdata(task: Task) -> Batches:
    """StatefulDataLoader over a flat memory-mapped file, shuffled."""
    import torch
    from torchdata.stateful_dataloader import StatefulDataLoader

    def batches(epoch: int) -> Iterator[Any]:
        loader = StatefulDataLoader(
            _Rows(task),
            task.batch,
            shuffle=True,
            num_workers=task.workers,
            collate_fn=_as_int64,
            drop_last=True,
            generator=torch.Generator().manual_seed(epoch),
        )
        yield from loader

    return batches


def megatron(task: Task) -> Batches:
    """IndexedDataset with a window a document, indices shuffled by numpy."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    prefix = str(task.folder / "tokens")
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16)
    for row in task.flat:
        builder.add_document(row, [len(row)])
    builder.finalize(prefix + ".idx")
    data = IndexedDataset(prefix)

    def batches(epoch: int) -> Iterator[Any]:
        order = np.random.default_rng(epoch).permutation(len(data))
        for begin in range(0, len(order) - task.batch + 1, task.batch):
            yield _as_int64([data[n] for n in order[begin : begin + task.batch].tolist()])

    return batches


READERS: dict[str, Callable[[Task], Batches]] = {
    "flat-mmap": flat_mmap,
    "flat-gather": flat_gather,
    "litdata": litdata,
    "mosaicml-streaming": mosaicml_streaming,
    "datasets": datasets,
    "torchdata": torchdata,
    "megatron-core": megatron,
}


def main() -> None:
    """Prepare and serve."""
    name, flat, folder, length, batch, workers = sys.argv[1:]
    windows = np.memmap(flat, dtype=np.uint16, mode="r").reshape(-1, int(length))
    Path(folder).mkdir(parents=True, exist_ok=True)
    task = Task(Path(flat), windows, Path(folder), int(length), int(batch), int(workers))
    serve(READERS[name](task), Path(flat), int(length))


if __name__ == "__main__":
    main()
