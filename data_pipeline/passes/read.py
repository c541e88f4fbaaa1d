"""First pass: every document of every source once, through the stages that look at one document at a time."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.config import BuildConfig
from data_pipeline.dedup.signatures import Signatures, save_bands, shingles, sign
from data_pipeline.fates import Fate
from data_pipeline.passes.workshop import Unit, Workshop
from data_pipeline.rows import DIGESTS, DOCUMENT, DOCUMENTS, ROW, ROWS, UNMET, Part, load_rows
from data_pipeline.sources.config import FileSource, SourceConfig
from data_pipeline.sources.debian import default_cache
from data_pipeline.sources.document import SourceDocument
from data_pipeline.sources.pieces import Opened, Piece, cut, damage, open_source, read_piece
from data_pipeline.sources.streams import Damaged
from data_pipeline.stages.chain import Chain, Outcome
from data_pipeline.stages.config import NearDuplicates, StagesConfig
from data_pipeline.stages.decontaminate import REFERENCE, ReferenceTask, gather_reference
from runtime.files import read_json, write_json
from runtime.logs import log

_BATCH_BYTES = 1 << 22
_SMALLEST_PART, _LARGEST_PART, _PARTS = 1 << 20, 1 << 26, 64
_MASK = (1 << 64) - 1
_MOST = (1 << 32) - 1


@dataclass(frozen=True)
class ReadTask:
    """Pieces of one source, and what is done to each document."""

    source: SourceConfig
    pieces: list[Piece]
    max_document_bytes: int
    seed: int
    stages: StagesConfig
    reference: Path | None
    """n-grams of the evaluation sets, if documents are compared with them."""


def part_bytes(opened: Sequence[Opened]) -> int:
    """Bytes of input of a unit; the result of a build does not depend on it."""
    total = sum(file.bytes for source in opened for file in source.files)
    return min(max(total // _PARTS, _SMALLEST_PART), _LARGEST_PART)


def read_sources(
    config: BuildConfig,
    opened: Sequence[Opened],
    size: int,
    workshop: Workshop,
    first_source: int = 0,
    before: Sequence[Part] = (),
) -> list[Part]:
    """All parts of all sources, in order, their rows counted on from those `before`.

    Raises UserError naming a file that cannot be read.
    """
    first_row = sum(part.rows for part in before)
    reference = _reference(config, workshop)
    Chain(config.stages, reference)  # what is missing is said now
    units = [
        [_unit(config, source, pieces, reference) for pieces in _grouped(cut(source, found.files, size), size)]
        for source, found in zip(config.sources, opened, strict=True)
    ]
    unlimited = [unit for source, of in zip(config.sources, units, strict=True) if not source.max_bytes for unit in of]
    done = iter(workshop.run("read", read_part, unlimited))
    parts = []
    for number, (source, of) in enumerate(zip(config.sources, units, strict=True)):
        places = _until(workshop, of, source.max_bytes) if source.max_bytes else [next(done) for _ in of]
        _warn_of_unmet(source, places)
        left = source.max_bytes
        for place in places:
            rows, left = _rows_within(place, left)
            parts.append(Part(place, first_source + number, first_row, rows))
            first_row += rows
    return parts


def _warn_of_unmet(source: SourceConfig, places: Sequence[Path]) -> None:
    """One line where a field that is to be kept beside documents is in none of them: its name may be misspelt."""
    keys = source.kept_fields
    for field in sorted(set(keys).intersection(*(read_json(place / UNMET) for place in places)) if places else []):
        log.warning("source %s: no record has the field %r: check its `%s`", source.name, field, keys[field])


def _unit(config: BuildConfig, source: SourceConfig, pieces: list[Piece], reference: Path | None) -> Unit:
    stages = config.stages.model_copy(update={"exact_duplicates": True, "decontaminate": None})
    task = ReadTask(source, pieces, config.max_document_bytes, config.seed, config.stages, reference)
    compared = [config.stages.decontaminate, reference] if reference else None
    return Unit([source, pieces, task.max_document_bytes, task.seed, stages, compared], task)


def _reference(config: BuildConfig, workshop: Workshop) -> Path | None:
    """The n-grams of the evaluation sets. Raises UserError naming a set without files."""
    settings = config.stages.decontaminate
    if settings is None:
        return None
    pieces = []
    for source in settings.against:
        opened = open_source(source, workshop.directory / "evaluation", default_cache())
        pieces += [(source, piece) for piece in cut(source, opened.files, _LARGEST_PART)]
    task = ReferenceTask(pieces, settings.n, config.max_document_bytes)
    (place,) = workshop.run("evaluation", gather_reference, [Unit([pieces, settings.n], task)])
    return place / REFERENCE


def _grouped(pieces: list[Piece], size: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    weight = 0
    for piece in pieces:
        weight += piece.bytes
        group.append(piece)
        if weight >= size:
            yield group
            group, weight = [], 0
    if group:
        yield group


def _until(workshop: Workshop, units: list[Unit], max_bytes: int) -> list[Path]:
    """As many parts of a source as its `max_bytes` needs; some may be read in vain, which changes nothing."""
    places: list[Path] = []
    left: int | None = max_bytes
    step = 2 * workshop.processes
    for begin in range(0, len(units), step):
        fresh = workshop.run("read", read_part, units[begin : begin + step])
        for place in fresh:
            rows, left = _rows_within(place, left)
            places.append(place)
            if rows < len(load_rows(place)):
                return places
    return places


def _rows_within(place: Path, left: int | None) -> tuple[int, int | None]:
    """How many rows of a part fit into `left` bytes, and what then is left."""
    rows = load_rows(place)
    if left is None:
        return len(rows), None
    kept = np.where(rows["fate"] == Fate.KEPT, rows["bytes"], 0)
    total = np.cumsum(kept)
    count = int(np.searchsorted(total, left, side="right"))
    return count, left - (int(total[count - 1]) if count else 0)


def read_part(task: ReadTask, directory: Path) -> None:
    """Unit: write the rows of a part, its kept documents, and their digests in order."""
    chain = Chain(task.stages, task.reference)
    with _PartWriter(directory, task.seed, task.stages.near_duplicates) as out, _Met(task.source, directory) as met:
        for document in _documents(task):
            met.note(document)
            out.add(*_staged(document, chain))
            if task.source.max_bytes is not None and out.bytes > task.source.max_bytes:
                return


def _staged(document: SourceDocument, chain: Chain) -> tuple[SourceDocument, Outcome]:
    """The document with its fate; one without a visible character is empty, before the stages or after."""
    text, fate = document.text, document.fate
    if text is None or fate != Fate.KEPT:
        return document, Outcome("", fate)
    if not text.strip():
        return document, Outcome("", Fate.EMPTY)
    outcome = chain.apply(text)
    empty = outcome.fate == Fate.KEPT and not outcome.text.strip()
    return document, outcome._replace(fate=Fate.EMPTY) if empty else outcome


def _documents(task: ReadTask) -> Iterator[SourceDocument]:
    for piece in task.pieces:
        try:
            yield from read_piece(task.source, piece, task.max_document_bytes)
        except Damaged as error:
            if not isinstance(task.source, FileSource) or task.source.damaged == "stop":
                raise damage(task.source, piece.file, error) from None
            yield SourceDocument(None, Fate.DAMAGED)


class _Met:
    """Writes down which of the source's fields to be kept were in no record."""

    def __init__(self, source: SourceConfig, directory: Path) -> None:
        self._unmet = set(source.kept_fields)
        self._id: str | None = getattr(source, "id_field", None)
        self._file = directory / UNMET

    def note(self, document: SourceDocument) -> None:
        if self._unmet and document.id is not None and self._id is not None:
            self._unmet.discard(self._id)
        if self._unmet and document.metadata is not None:
            self._unmet -= json.loads(document.metadata).keys()

    def __enter__(self) -> "_Met":
        return self

    def __exit__(self, *_: object) -> None:
        write_json(self._file, sorted(self._unmet))


class _PartWriter:
    """Collects documents; holds some megabytes of text at a time."""

    def __init__(self, directory: Path, seed: int, near: NearDuplicates | None) -> None:
        self.bytes = 0
        self._directory, self._seed, self._near = directory, seed, near
        self._held = 0
        self._columns: tuple[list[Any], ...] = ([], [], [])
        self._rows: list[tuple[Any, ...]] = []
        self._packed: list[np.ndarray[Any, Any]] = []
        self._signatures: list[Signatures] = []
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._file = pa.ipc.new_file(str(directory / DOCUMENTS), DOCUMENT, options=options)

    def add(self, document: SourceDocument, outcome: Outcome) -> None:
        text, fate, language, normalised, *counts = outcome
        if fate != Fate.KEPT:
            self._rows.append((0, 0, 0, 0, 0, fate, b"", 0, 0, 0, 0))
            return
        data = text.encode()
        digest = xxhash.xxh3_128_intdigest(data)
        hashes = (xxhash.xxh3_64_intdigest(data, seed & _MASK) for seed in (self._seed, self._seed + 1))
        found = (language.encode(), normalised, *(min(count, _MOST) for count in counts))
        self._rows.append((digest >> 64, digest & _MASK, *hashes, len(data), fate, *found))
        for column, value in zip(self._columns, (text, document.id, document.metadata), strict=True):
            column.append(value)
        self.bytes += len(data)
        self._held += len(data)
        if self._held >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._packed.append(np.array(self._rows, dtype=ROW))
        if self._columns[0]:
            arrays = [pa.array(column, field.type) for column, field in zip(self._columns, DOCUMENT, strict=True)]
            self._file.write_batch(pa.RecordBatch.from_arrays(arrays, schema=DOCUMENT))
            if self._near:
                sets = [shingles(text, self._near.n) for text in self._columns[0]]
                self._signatures.append(sign(sets, self._near.permutations))
        self._columns, self._rows, self._held = ([], [], []), [], 0

    def __enter__(self) -> "_PartWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._file.close()
            return
        self._flush()
        self._file.close()
        rows = np.concatenate(self._packed)
        np.save(self._directory / ROWS, rows)
        kept = np.flatnonzero(rows["fate"] == Fate.KEPT)
        order = kept[np.lexsort((kept, rows["low"][kept], rows["high"][kept]))]
        table = np.stack([rows["high"][order], rows["low"][order], order.astype(np.uint64)])
        np.save(self._directory / DIGESTS, table)
        if self._near:
            signatures = np.concatenate([sign([], self._near.permutations), *self._signatures])
            save_bands(self._directory, signatures, kept, self._near.threshold)
