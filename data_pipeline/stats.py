"""What a dataset holds, as numbers and as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import DatasetManifest
from data_pipeline.passes.worker import processes_for, spread
from data_pipeline.shards import ShardTask
from runtime.progress import ProgressBar

_POWERS = 64


def dataset_stats(path: Path, progress: bool = True, processes: int | None = None) -> dict[str, Any]:
    """Documents, tokens, bytes per token, counts by source and split, and documents by length.

    `document_lengths` maps a power of two L to the number of documents with L <= tokens < 2 L, for each source too.
    Raises UserError naming a documents' file that is missing or damaged.
    """
    manifest = DatasetManifest.load(path)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    tasks = [ShardTask(path, shard, manifest.form_of_shards()) for shard in shards]
    processes = processes or processes_for(sum(shard.offsets.bytes for shard in shards))
    lengths = np.zeros((len(manifest.sources), _POWERS), dtype=np.int64)
    with ProgressBar("stats", len(shards), progress) as bar:
        for _, counts in spread(count_lengths, tasks, processes):
            lengths += counts
            bar.advance(1)
    documents, tokens, text = (
        sum(getattr(s, what) for s in manifest.sources) for what in ("documents", "tokens", "bytes")
    )
    return {
        "digest": manifest.digest,
        "form": manifest.form,
        "vocabulary": manifest.tokenizer.vocabulary,
        "documents": documents,
        "tokens": tokens,
        "bytes": text,
        "bytes_per_token": _ratio(text, tokens - documents),
        "splits": {
            name: {"tokens": s.tokens, "documents": s.documents, "shards": len(s.shards)}
            for name, s in manifest.splits.items()
        },
        "sources": {
            s.name: {
                **s.model_dump(mode="json", exclude={"name"}),
                "bytes_per_token": _ratio(s.bytes, s.tokens - s.documents),
                "document_lengths": _by_power(row),
            }
            for s, row in zip(manifest.sources, lengths, strict=True)
        },
        "document_lengths": _by_power(lengths.sum(axis=0)),
    }


def _ratio(text: int, tokens: int) -> float:
    """Bytes for each token that stands for text; a document's EOS does not."""
    return text / tokens if tokens > 0 else 0.0


def count_lengths(task: ShardTask) -> npt.NDArray[np.int64]:
    """Documents of a shard by source and power of two, shape [sources, powers]."""
    counts = np.zeros((task.form["sources"], _POWERS), dtype=np.int64)
    ends, sources = task.reader().documents()
    powers = np.frexp(np.diff(ends, prepend=0))[1] - 1
    np.add.at(counts, (sources.astype(np.int64), powers), 1)
    return counts


def _by_power(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    return {1 << power: int(count) for power, count in enumerate(counts) if count}


def plot_lengths(stats: dict[str, Any], file: Path) -> None:
    """A histogram of document lengths by source, as a picture (PNG or what the ending of `file` says)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    powers = sorted(stats["document_lengths"])
    bottom = np.zeros(len(powers))
    for name, source in stats["sources"].items():
        heights = np.array([source["document_lengths"].get(power, 0) for power in powers])
        axes.bar(range(len(powers)), heights, bottom=bottom, width=0.9, label=name)
        bottom += heights
    axes.set_xticks(range(len(powers)), [f"{power:,}" for power in powers], rotation=45)
    axes.set_xlabel("tokens (from this many to twice as many)")
    axes.set_ylabel("documents")
    axes.set_title(f"{stats['documents']:,} documents, {stats['tokens']:,} tokens")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)
