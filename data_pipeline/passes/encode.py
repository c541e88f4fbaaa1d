"""Third pass: text to token ids, part by part; shards are cut from them afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.chat_template import ChatTemplate
from data_pipeline.config import BuildConfig, Form
from data_pipeline.passes.learn import kept_batches
from data_pipeline.passes.select import KEEP, Selected
from data_pipeline.passes.workshop import Unit, Workshop
from data_pipeline.rows import Part, Rows, held_out, load_rows
from data_pipeline.shards import DOCUMENT_COLUMNS, SPANS, token_dtype
from data_pipeline.sources.conversations import ROLES, from_text
from data_pipeline.tokenizer import Tokenizer

SPLITS: Sequence[Literal["train", "validation"]] = ("train", "validation")


@dataclass(frozen=True)
class EncodeTask:
    """A part, what stays of it, and the tokenizer: its file and what that digests to."""

    part: Part
    keep: Path
    tokenizer: Path
    digest: str
    special: dict[str, str | int]
    """The ids that the manifest will name: beside the file stands no manifest yet."""
    validation: float
    form: Form


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
    special = tokenizer.special_ids
    units = []
    for one in selected:
        task = EncodeTask(
            one.part, one.directory / KEEP, file, tokenizer.digest, special, config.validation, config.form
        )
        depends = [
            one.part.directory,
            one.part.source,
            one.counts["digest"],
            tokenizer.digest,
            special,
            config.validation,
            config.form,
        ]
        units.append(Unit(depends, task))
    return workshop.run("encode", encode_part, units)


class Encoded(NamedTuple):
    """Documents of a batch of texts: ids one after the other, tokens of each, spans of each if they have some."""

    ids: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    spans: list[list[dict[str, int]]] | None


class _Encoder:
    """Texts to documents; a record of preferences is two, the chosen one first."""

    def __init__(self, tokenizer: Tokenizer, form: Form) -> None:
        self.documents = 2 if form == "preferences" else 1
        self._tokenizer, self._dtype = tokenizer, token_dtype(tokenizer.vocabulary)
        self._template = None if form == "text" else ChatTemplate(tokenizer)

    def encode(self, texts: list[str]) -> Encoded:
        if self._template is None:
            return Encoded(*self._tokenizer.encode_documents(texts, self._dtype), None)
        found = self._template.encode([conversation for text in texts for conversation in from_text(text)])
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *(one for one, _ in found)]).astype(self._dtype)
        spans = [[{"role": ROLES.index(s.role), "begin": s.begin, "end": s.end} for s in of] for _, of in found]
        return Encoded(ids, np.array([one.size for one, _ in found], dtype=np.int64), spans)


@lru_cache(maxsize=1)
def _load(file: Path, digest: str, special: tuple[tuple[str, str | int], ...]) -> Tokenizer:
    """The tokenizer, loaded once for all units of a process: a large vocabulary takes its time."""
    tokenizer = Tokenizer.load(file, dict(special))
    assert tokenizer.digest == digest, f"{file} is the build's own"
    return tokenizer


def encode_part(task: EncodeTask, directory: Path) -> None:
    """Unit: ids of the documents that stay, each closed by EOS, by split."""
    encoder = _Encoder(_load(task.tokenizer, task.digest, tuple(sorted(task.special.items()))), task.form)
    keep = np.load(task.keep)
    rows = load_rows(task.part.directory)[keep].repeat(encoder.documents)
    held = held_out(rows, task.validation)
    lengths = np.zeros(len(rows), dtype=np.int64)
    beside: list[pa.Table] = []
    begin = 0
    with open(token_file(directory, "train"), "wb") as train, open(token_file(directory, "validation"), "wb") as rest:
        for batch in kept_batches(task.part.directory, keep):
            found = encoder.encode(batch.column(0).to_pylist())
            end = begin + len(found.lengths)
            lengths[begin:end] = found.lengths
            apart = np.repeat(held[begin:end], found.lengths)
            (found.ids[~apart] if apart.any() else found.ids).tofile(train)
            found.ids[apart].tofile(rest)
            beside.append(_beside(batch, encoder.documents, found))
            begin = end
    table = pa.concat_tables(beside) if beside else None
    for split, chosen in zip(SPLITS, (~held, held), strict=True):
        _write_table(table_file(directory, split), task.part.source, rows[chosen], lengths[chosen], table, chosen)


def _beside(batch: pa.RecordBatch, documents: int, found: Encoded) -> pa.Table:
    """Name, metadata and spans of each document of a batch."""
    names = batch.select([1, 2]).take(np.repeat(np.arange(batch.num_rows), documents))
    spans = pa.nulls(names.num_rows, SPANS) if found.spans is None else pa.array(found.spans, SPANS)
    return pa.table([*names.columns, spans], names=["id", "metadata", "spans"])


def _write_table(file: Path, source: int, rows: Rows, lengths: Any, beside: pa.Table | None, chosen: Any) -> None:
    digests = np.stack([rows["high"], rows["low"]], axis=1).astype(">u8").tobytes()
    kept = beside.filter(pa.array(chosen)).combine_chunks() if beside is not None else None
    columns = [
        pa.array(np.cumsum(lengths), pa.int64()),
        pa.array(np.full(len(rows), source), pa.uint16()),
        pa.array(rows["bytes"], pa.int64()),
        pa.Array.from_buffers(pa.binary(16), len(rows), [None, pa.py_buffer(digests)]),
        *(
            pa.nulls(0, DOCUMENT_COLUMNS.field(n).type) if kept is None else kept[n]
            for n in ("id", "metadata", "spans")
        ),
        pa.array(rows["language"].astype(str), pa.string(), mask=rows["language"] == b""),
    ]
    with pa.ipc.new_file(str(file), DOCUMENT_COLUMNS) as out:
        out.write_table(pa.table(columns, schema=DOCUMENT_COLUMNS))
