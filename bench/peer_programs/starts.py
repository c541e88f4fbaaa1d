"""What it takes each peer to be ready for the first of N shuffled windows: `python starts.py NAME N FOLDER LENGTH`.

Data files are sparse or empty: only what depends on the number of windows is looked at. Prints seconds and
the growth of the process's peak of resident memory, imports excluded. Run in the peers' environment.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK_WINDOWS = 8192  # 64 MiB of uint16 in windows of 4096
Start = Callable[[], Any]


def numpy_permutation(windows: int, folder: Path, length: int) -> Start:
    """An order for a flat file."""
    return lambda: np.random.default_rng(0).permutation(windows)[0]


def torchdata(windows: int, folder: Path, length: int) -> Start:
    """StatefulDataLoader with shuffle: its first index."""
    import torch
    from torchdata.stateful_dataloader import StatefulDataLoader

    del torch

    class Windows:
        def __len__(self) -> int:
            return windows

        def __getitem__(self, index: int) -> int:
            return index

    return lambda: next(iter(StatefulDataLoader(Windows(), 8, shuffle=True)))


def datasets(windows: int, folder: Path, length: int) -> Start:
    """A table of so many rows of nothing, shuffled."""
    import datasets as hf
    import pyarrow as pa

    data = hf.Dataset(pa.table({"tokens": pa.nulls(windows)}))
    return lambda: data.shuffle(seed=0)[0]


def _zeros(tokens: int) -> Any:
    import torch

    yield torch.zeros(tokens, dtype=torch.int32)


def litdata(windows: int, folder: Path, length: int) -> Start:
    """One real chunk, linked under as many names as there must be: the first window of a shuffled StreamingDataset."""
    import litdata
    from litdata.streaming.item_loader import TokensLoader

    data, tokens = folder / "chunks", _CHUNK_WINDOWS * length
    litdata.optimize(
        fn=_zeros, inputs=[tokens], output_dir=str(data), num_workers=1, chunk_size=tokens, item_loader=TokensLoader()
    )
    index = json.loads((data / "index.json").read_text())
    chunk = index["chunks"][0]
    index["chunks"] = [{**chunk, "filename": f"link-{n}.bin"} for n in range(windows // _CHUNK_WINDOWS)]
    for link in index["chunks"]:
        (data / link["filename"]).symlink_to(chunk["filename"])
    (data / "index.json").write_text(json.dumps(index))
    return lambda: next(
        iter(litdata.StreamingDataset(str(data), item_loader=TokensLoader(block_size=length), shuffle=True))
    )


def mosaicml_streaming(windows: int, folder: Path, length: int) -> Start:
    """One real shard, linked under as many names as there must be: the first window of a shuffled StreamingDataset."""
    from streaming import MDSWriter, StreamingDataset

    data = folder / "mds"
    with MDSWriter(out=str(data), columns={"tokens": f"ndarray:uint16:{length}"}, size_limit=1 << 30) as out:
        for _ in range(_CHUNK_WINDOWS):
            out.write({"tokens": np.zeros(length, dtype=np.uint16)})
    index = json.loads((data / "index.json").read_text())
    shard = index["shards"][0]
    index["shards"] = [
        {**shard, "raw_data": {**shard["raw_data"], "basename": f"link-{n}.mds"}}
        for n in range(windows // _CHUNK_WINDOWS)
    ]
    for link in index["shards"]:
        (data / link["raw_data"]["basename"]).symlink_to(shard["raw_data"]["basename"])
    (data / "index.json").write_text(json.dumps(index))
    return lambda: next(iter(StreamingDataset(local=str(data), shuffle=True, batch_size=8)))


def megatron(windows: int, folder: Path, length: int) -> Start:
    """GPTDataset over a sparse file: documents of a million tokens, the indices of one epoch."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, _IndexWriter
    from megatron.core.datasets.utils import Split

    class NoTokenizer:
        vocab_size, eod, unique_identifiers = 65_000, 0, {"kind": "none"}

    size, document = windows * length, 1 << 20
    prefix = str(folder / "tokens")
    with open(prefix + ".bin", "wb") as out:
        out.truncate(2 * size)
    with _IndexWriter(prefix + ".idx", np.uint16) as writer:
        writer.write([document] * (size // document), None, list(range(size // document + 1)))
    assert DType.size(np.uint16) == 2
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=length,
        split="1,0,0",
        blend=([prefix], None),
        tokenizer=NoTokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        add_extra_token_to_sequence=False,
        path_to_cache=None,
        mmap_bin_files=True,
    )

    def start() -> Any:
        data = IndexedDataset(prefix)
        indices = np.arange(len(data.sequence_lengths), dtype=np.int32)
        return GPTDataset(data, prefix, indices, None, Split.train, config)[0]["tokens"][0]

    return start


STARTS: dict[str, Callable[[int, Path, int], Start]] = {
    "flat mmap, numpy.random.permutation": numpy_permutation,
    "torchdata": torchdata,
    "datasets": datasets,
    "litdata": litdata,
    "mosaicml-streaming": mosaicml_streaming,
    "megatron-core": megatron,
}


def _memory(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{what}:\s*(\d+)", status)
    assert found
    return int(found[1]) * 1024


def report(start: Start) -> None:
    """Measure a start, print the figures and end the process: some peers leave threads."""
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    begin = time.perf_counter()
    start()
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "bytes": _memory("VmHWM") - before}), flush=True)
    os._exit(0)


def main() -> None:
    """Measure one."""
    name, windows, folder, length = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    report(STARTS[name](int(windows), Path(folder), int(length)))


if __name__ == "__main__":
    main()
