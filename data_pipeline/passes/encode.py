"""Third pass: text to token ids, part by part; shards are cut from them afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipeline.config import BuildConfig, ExistingTokenizer
from data_pipeline.passes.learn import kept_batches
from data_pipeline.passes.select import KEEP, Selected
from data_pipeline.passes.workshop import Unit, Workshop
from data_pipeline.rows import Part, Rows, held_out, load_rows
from data_pipeline.shards import DOCUMENT_COLUMNS, token_dtype
from data_pipeline.tokenizer import Tokenizer

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class EncodeTask:
    """A part, what stays of it, and the tokenizer's file."""

    part: Part
    keep: Path
    tokenizer: Path
    special: dict[str, str]
    validation: float


def token_file(directory: Path, split: str) -> Path:
    """The ids of an encoded part, one after the other, without header."""
    return directory / f"{split}.tokens"


def table_file(directory: Path, split: str) -> Path:
    """The documents of an encoded part: `DOCUMENT_COLUMNS`, `end` counted from the part's first token."""
    return directory / f"{split}.documents.arrow"


def encode_parts(
    config: BuildConfig, selected: Sequence[Selected], tokenizer: Tokenizer, file: Path, workshop: Workshop
) -> list[Path]:
    """The directories of the encoded parts, in order. `file` holds the tokenizer."""
    special = config.tokenizer.special if isinstance(config.tokenizer, ExistingTokenizer) else {}
    units = []
    for one in selected:
        task = EncodeTask(one.part, one.directory / KEEP, file, special, config.validation)
        depends = [
            one.part.directory,
            one.part.source,
            one.counts["digest"],
            tokenizer.digest,
            special,
            config.validation,
        ]
        units.append(Unit(depends, task))
    return workshop.run("encode", encode_part, units)


def encode_part(task: EncodeTask, directory: Path) -> None:
    """Unit: ids of the documents that stay, each closed by EOS, by split."""
    tokenizer = Tokenizer.load(task.tokenizer, task.special)
    keep = np.load(task.keep)
    rows = load_rows(task.part.directory)[keep]
    held = held_out(rows, task.validation)
    lengths = np.zeros(len(rows), dtype=np.int64)
    names: list[pa.RecordBatch] = []
    begin = 0
    dtype = token_dtype(tokenizer.vocabulary)
    with open(token_file(directory, "train"), "wb") as train, open(token_file(directory, "validation"), "wb") as rest:
        for batch in kept_batches(task.part.directory, keep):
            names.append(batch.select([1, 2]))
            ids, sizes = tokenizer.encode_documents(batch.column(0).to_pylist(), dtype)
            end = begin + len(sizes)
            lengths[begin:end] = sizes
            apart = np.repeat(held[begin:end], sizes)
            (ids[~apart] if apart.any() else ids).tofile(train)
            ids[apart].tofile(rest)
            begin = end
    table = pa.Table.from_batches(names) if names else None
    for split, chosen in zip(SPLITS, (~held, held), strict=True):
        _write_table(table_file(directory, split), task.part.source, rows[chosen], lengths[chosen], table, chosen)


def _write_table(file: Path, source: int, rows: Rows, lengths: Any, names: pa.Table | None, chosen: Any) -> None:
    digests = np.stack([rows["high"], rows["low"]], axis=1).astype(">u8").tobytes()
    kept = names.filter(pa.array(chosen)) if names is not None else None
    columns = [
        pa.array(np.cumsum(lengths), pa.int64()),
        pa.array(np.full(len(rows), source), pa.uint16()),
        pa.array(rows["bytes"], pa.int64()),
        pa.Array.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(digests)]),
        *(
            kept.column(number).combine_chunks() if kept is not None else pa.nulls(0, pa.string())
            for number in range(2)
        ),
    ]
    with pa.ipc.new_file(str(file), DOCUMENT_COLUMNS) as out:
        out.write_batch(pa.RecordBatch.from_arrays(columns, schema=DOCUMENT_COLUMNS))
