"""Datasets without data: the manifest and the table of shards of a dataset of any size, and no shard."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline.config import BuildConfig
from data_pipeline.files import FileInfo
from data_pipeline.manifest import DatasetManifest, SourceInfo, SplitInfo, TokenizerInfo
from data_pipeline.shard_table import ShardTable
from data_pipeline.shards import default_shard_tokens

MOST_TOKENS = 10**14
"""A table of 1.7 GB."""
_VOCABULARY = 126_464  # LLaDA's
_DOCUMENT_TOKENS = 1000
_HEADER_BYTES = 10_000  # what a shard holds beside its tokens
_BATCH_TOKENS = 1 << 20
_DIGEST_BYTES = 16
_TOKENIZER = "0" * 32  # all datasets have the same


def write_synthetic(path: Path, name: str, tokens: int, seed: int) -> None:
    """What a rank reads when it opens a dataset of `tokens` tokens, built with the defaults; digests are random."""
    table = _table(tokens, np.random.default_rng(seed))
    documents = int(table.documents.sum())
    values = {
        "sources": [{"kind": "text", "name": name, "licence": "none", "glob": name}],
        "tokenizer": {"kind": "existing", "path": "tokenizer.model"},
    }
    manifest = DatasetManifest(
        dtype="uint32",
        batch_tokens=_BATCH_TOKENS,
        tokenizer=TokenizerInfo(
            file=FileInfo(name="tokenizer.model", bytes=0, digest=_TOKENIZER),
            vocabulary=_VOCABULARY,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            mask_id=3,
        ),
        sources=[SourceInfo(name=name, licence="none", origin=name, documents=documents, tokens=tokens)],
        splits={"train": SplitInfo(tokens=tokens, documents=documents, shards=table)},
        build=BuildConfig.parse(values, "synthetic"),
    )
    path.mkdir(parents=True)
    manifest.save(path)


def _table(tokens: int, source: np.random.Generator) -> ShardTable:
    shard_tokens = default_shard_tokens("uint32")
    count = -(-tokens // shard_tokens)
    sizes = np.full(count, shard_tokens)
    sizes[-1] = tokens - (count - 1) * shard_tokens
    documents = -(-sizes // _DOCUMENT_TOKENS)
    batches = np.concatenate([[0], np.cumsum(-(-sizes // _BATCH_TOKENS))])

    def digests(number: int) -> pa.Array:
        drawn = pa.py_buffer(source.bytes(_DIGEST_BYTES * number))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(_DIGEST_BYTES), number, [None, drawn])

    return ShardTable.of_columns(
        {
            "tokens": sizes,
            "documents": documents,
            "file": [f"train-{number:05d}.arrow" for number in range(count)],
            "file_bytes": 4 * sizes + _HEADER_BYTES,
            "file_digest": digests(count),
            "offsets": [f"train-{number:05d}.documents.arrow" for number in range(count)],
            "offsets_bytes": 34 * documents,
            "offsets_digest": digests(count),
            "batches": pa.ListArray.from_arrays(pa.array(batches, pa.int32()), digests(int(batches[-1]))),
        }
    )
