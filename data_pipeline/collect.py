"""Every source's documents, once each, spooled to disk with their split, so that later passes agree."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from data_pipeline.config import BuildConfig, SourceConfig
from data_pipeline.corpora import Corpus, open_corpus
from data_pipeline.dedup import SeenTexts, fraction_of
from data_pipeline.manifest import SourceInfo
from runtime.errors import UserError
from runtime.progress import ProgressBar

_CHUNK_BYTES = 1 << 22
_SCHEMA = pa.schema([("text", pa.large_string()), ("source", pa.uint16()), ("validation", pa.bool_())])


@dataclass(frozen=True)
class Document:
    """A document that was kept; `source` counts as in the configuration."""

    text: str
    source: int
    split: Literal["train", "validation"]


@dataclass(frozen=True)
class Collection:
    """The spooled documents, and what was counted on the way."""

    spool: Path
    sources: list[SourceInfo]
    train_bytes: int
    count: int

    def chunks(self) -> Iterator[list[Document]]:
        """Documents in their order, some megabytes at a time."""
        with pa.memory_map(str(self.spool)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                columns = (column.to_pylist() for column in batch.columns)
                yield [
                    Document(text, source, "validation" if held else "train")
                    for text, source, held in zip(*columns, strict=True)
                ]

    def documents(self) -> Iterator[Document]:
        """Documents in their order."""
        for chunk in self.chunks():
            yield from chunk


class _Spool:
    def __init__(self, out: Any) -> None:
        self._out = out
        self._rows: tuple[list[str], list[int], list[bool]] = ([], [], [])
        self._bytes = 0

    def add(self, text: str, size: int, source: int, validation: bool) -> None:
        for column, value in zip(self._rows, (text, source, validation), strict=True):
            column.append(value)  # type: ignore[attr-defined]
        self._bytes += size
        if self._bytes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._rows[0]:
            self._out.write_batch(
                pa.RecordBatch.from_arrays(
                    [pa.array(c, t) for c, t in zip(self._rows, _SCHEMA.types, strict=True)], schema=_SCHEMA
                )
            )
        self._rows, self._bytes = ([], [], []), 0


def collect(config: BuildConfig, workspace: Path, cache: Path, show_progress: bool) -> Collection:
    """Read all sources into a spool file below `workspace`, dropping what was seen before.

    Raises UserError naming a source that gives no document, or if nothing is left to train on.
    """
    corpora = [open_corpus(source, workspace, cache) for source in config.sources]
    seen, infos, train_bytes = SeenTexts(), [], 0
    spool_file = workspace / "documents.arrows"
    files = sum(len(corpus.files) for corpus in corpora)
    with (
        ProgressBar("collect", files, show_progress) as bar,
        pa.ipc.new_stream(str(spool_file), _SCHEMA) as out,
    ):
        spool = _Spool(out)
        for number, (source, corpus) in enumerate(zip(config.sources, corpora, strict=True)):
            counts = dict.fromkeys(("documents", "duplicates", "undecodable", "empty", "bytes"), 0)
            for text in _kept(source, corpus, counts, seen, bar):
                data = text.encode()
                validation = fraction_of(data, config.seed) < config.validation
                spool.add(text, len(data), number, validation)
                train_bytes += 0 if validation else len(data)
            infos.append(
                SourceInfo(
                    name=source.name,
                    licence=source.licence,
                    origin=corpus.origin,
                    skipped=corpus.skipped,
                    **counts,
                )
            )
            _refuse_barren(infos[-1])
        spool.flush()
    if not train_bytes:
        raise UserError("sources: no text is left to train on: add a source, or lower `validation`")
    return Collection(spool_file, infos, train_bytes, sum(info.documents for info in infos))


def _kept(
    source: SourceConfig, corpus: Corpus, counts: dict[str, int], seen: SeenTexts, bar: ProgressBar
) -> Iterator[str]:
    for file in corpus.files:
        for text in corpus.read(file):
            if text is None:
                counts["undecodable"] += 1
            elif not text.strip():
                counts["empty"] += 1
            else:
                data = text.encode()
                if source.max_bytes is not None and counts["bytes"] + len(data) > source.max_bytes:
                    return
                if not seen.add(data):
                    counts["duplicates"] += 1
                    continue
                counts["documents"] += 1
                counts["bytes"] += len(data)
                yield text
        bar.advance(1, source.name)


def _refuse_barren(info: SourceInfo) -> None:
    if info.skipped is None and not info.documents and not info.duplicates:
        seen = f"{info.undecodable} undecodable, {info.empty} empty"
        raise UserError(f"source {info.name!r} gives no document ({seen}): check its files, `field` and `max_bytes`")
