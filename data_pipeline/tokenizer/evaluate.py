"""How well a tokenizer fits the text of a dataset, source by source."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.manifest import DatasetManifest
from data_pipeline.places import open_shards
from data_pipeline.tokenizer.base import Tokenizer
from runtime.errors import UserError
from runtime.progress import ProgressBar

_BATCH = 256


def evaluate_tokenizer(path: Path, other: Path | None, documents: int, progress: bool = True) -> dict[str, Any]:
    """Bytes per token, byte pieces, vocabulary in use and round trip, over about `documents` of each source.

    The text is that of the dataset at `path` (training split, the first documents); the tokenizer is `other`, or the
    dataset's own. Raises UserError if the dataset holds conversations, whose text is not kept as such.
    """
    manifest = DatasetManifest.load(path)
    if manifest.form != "text":
        raise UserError(f"{path} holds {manifest.form}, not text: give the dataset of text that goes with it")
    own = Tokenizer.load(path / manifest.tokenizer.file.name)
    tokenizer = own if other is None else Tokenizer.load(other)
    spelt = np.array([tokenizer.piece(number).startswith("<0x") for number in range(tokenizer.vocabulary)])
    used = np.zeros(tokenizer.vocabulary, dtype=np.int64)
    sources = {}
    with ProgressBar("evaluate", len(manifest.sources), progress) as bar:
        for number, source in enumerate(manifest.sources):
            counts = {"documents": 0, "bytes": 0, "tokens": 0, "byte_pieces": 0, "not_exact": 0}
            for texts in _texts(path, manifest, own, number, documents):
                for text, ids in zip(texts, tokenizer.encode_arrays(texts), strict=True):
                    counts["documents"] += 1
                    counts["bytes"] += len(text.encode())
                    counts["tokens"] += ids.size
                    counts["byte_pieces"] += int(spelt[ids].sum())
                    counts["not_exact"] += tokenizer.decode(ids.tolist()) != text
                    used += np.bincount(ids, minlength=used.size)
            sources[source.name] = {**counts, "bytes_per_token": counts["bytes"] / max(counts["tokens"], 1)}
            bar.advance(1, source.name)
    total = {key: sum(of[key] for of in sources.values()) for key in ("documents", "bytes", "tokens", "not_exact")}
    return {
        "vocabulary": tokenizer.vocabulary,
        "used": int(np.count_nonzero(used)),
        **total,
        "bytes_per_token": total["bytes"] / max(total["tokens"], 1),
        "sources": sources,
    }


def _texts(path: Path, manifest: DatasetManifest, own: Tokenizer, source: int, documents: int) -> Iterator[list[str]]:
    """The first training documents of a source, decoded, some at a time."""
    batch: list[str] = []
    for shard in open_shards(path, manifest, "train"):
        ends, sources = shard.documents()
        for row in np.flatnonzero(sources == source):
            if not documents:
                break
            begin = int(ends[row - 1]) if row else 0
            ids = [number for view in shard.tokens(begin, int(ends[row]) - 1) for number in view.tolist()]
            batch.append(own.decode(ids))
            documents -= 1
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch
