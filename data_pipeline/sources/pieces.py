"""The files of a source, cut into pieces that can be read apart, and the documents of a piece."""

import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.sources.config import (
    Arrow,
    Chats,
    DebianPackage,
    FileSource,
    JsonLines,
    Parquet,
    Preferences,
    PythonStdlib,
    SourceConfig,
    Storage,
    TextFiles,
)
from data_pipeline.sources.conversations import from_chat, from_preference
from data_pipeline.sources.debian import PackageUnavailable, fetch_package, unpack_package
from data_pipeline.sources.document import SourceDocument
from data_pipeline.sources.json_lines import from_record, objects
from data_pipeline.sources.plain_text import read_text
from data_pipeline.sources.storage import File, find_files
from data_pipeline.sources.streams import Damaged, is_packed
from data_pipeline.sources.tables import count_parts, records
from runtime.errors import UserError, one_line
from runtime.logs import log

_ENDINGS = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather", ".ipc"),
    "text": ("",),
}
_RECORDS = (*_ENDINGS["jsonl"], *_ENDINGS["parquet"], *_ENDINGS["arrow"])


class Piece(NamedTuple):
    """A part of a file: bytes of a jsonl file, row groups, record batches, or [0, 1) for a file as a whole."""

    file: File
    begin: int
    end: int
    bytes: int
    """Its share of the file."""


@dataclass(frozen=True)
class Opened:
    """The files of one source, in order. `skipped` says why there are none."""

    origin: str
    files: list[File]
    skipped: str | None = None


def open_source(source: SourceConfig, workspace: Path, cache: Path) -> Opened:
    """Find (or fetch into `cache` and unpack below `workspace`) the files of `source`.

    Raises UserError naming the source if there are none and it is not optional.
    """
    if isinstance(source, DebianPackage):
        found = _debian(source, workspace, cache)
    elif isinstance(source, PythonStdlib):
        found = Opened(f"Python {platform.python_version()}", _local_files(_stdlib_files()))
    else:
        files = find_files(source.patterns, source.storage, _wanted(source))
        found = Opened(", ".join(source.patterns), files)
    if not found.files and found.skipped is None:
        raise UserError(f"source {source.name!r}: no file matches in {found.origin}: check its `glob` or `include`")
    return found


def kind_of_file(source: FileSource, path: str) -> str:
    """jsonl, parquet, arrow or text: by the kind of the source, or for conversations by the file's ending."""
    kind: str = source.kind  # type: ignore[attr-defined]
    if kind not in ("chats", "preferences"):
        return kind
    name = path.removesuffix(".gz").removesuffix(".zst")
    return next((table for table in ("parquet", "arrow") if name.endswith(_ENDINGS[table])), "jsonl")


def _wanted(source: FileSource) -> Callable[[str], bool]:
    """Which files of a directory are the source's, by their names."""
    endings = _ENDINGS.get(source.kind, _RECORDS)  # type: ignore[attr-defined]
    return lambda name: name.removesuffix(".gz").removesuffix(".zst").endswith(endings)


def _local_files(paths: list[Path]) -> list[File]:
    return [File(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in paths]


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages", "__pycache__"}
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if path.is_file() and not foreign & set(path.relative_to(root).parts)
    ]


def _debian(source: DebianPackage, workspace: Path, cache: Path) -> Opened:
    try:
        deb = fetch_package(source.package, cache)
        root = workspace / source.name
        root.mkdir(parents=True)
        unpack_package(deb, root)
    except PackageUnavailable as error:
        reason = one_line(error)
        if not source.optional:
            raise UserError(
                f"source {source.name!r}: {reason}: mend that, or set `optional: true` to go without"
            ) from None
        log.warning("source %s is left out: %s", source.name, reason)
        return Opened(source.package, [], skipped=reason)
    found = {path for pattern in source.include for path in root.glob(pattern)}
    # Links are left out: their targets are listed themselves, or lie outside the package.
    files = [
        path for path in sorted(found) if path.is_file() and path.resolve() == root.resolve() / path.relative_to(root)
    ]
    return Opened(deb.name, _local_files(files))


def cut(source: SourceConfig, files: list[File], piece_bytes: int) -> list[Piece]:
    """All pieces of the files, in order; larger files are cut where their format allows.

    Raises UserError naming a table that cannot be opened, unless the source skips damaged files.
    """
    return [piece for file in files for piece in _cut_file(source, file, piece_bytes)]


def _cut_file(source: SourceConfig, file: File, piece_bytes: int) -> list[Piece]:
    kind = kind_of_file(source, file.path) if isinstance(source, FileSource) else "text"
    if kind == "jsonl" and not is_packed(file.path):
        borders = [*range(0, max(file.bytes, 1), piece_bytes), file.bytes]
        return [Piece(file, begin, end, end - begin) for begin, end in pairwise(borders)]
    if kind not in ("parquet", "arrow"):
        return [Piece(file, 0, 1, file.bytes)]
    assert isinstance(source, FileSource)
    try:
        parts = count_parts(file, source.storage, kind)
    except Damaged as error:
        if source.damaged == "skip":
            return [Piece(file, 0, 1, file.bytes)]
        raise damage(source, file, error) from None
    step = max(1, parts * piece_bytes // max(file.bytes, 1))
    borders = [*range(0, parts, step), parts]
    return [Piece(file, begin, end, file.bytes * (end - begin) // parts) for begin, end in pairwise(borders)]


def damage(source: SourceConfig | FileSource, file: File, error: Damaged) -> UserError:
    """The error for a file of `source` that cannot be read to its end."""
    return UserError(
        f"source {source.name!r}: {file.path} cannot be read to its end ({one_line(error)}): "
        "restore the file, leave it out, or set `damaged: skip`"
    )


def read_piece(source: SourceConfig, piece: Piece, limit: int) -> Iterator[SourceDocument]:
    """The documents of a piece in their order, each of at most about `limit` bytes. Raises Damaged and UserError."""
    file = piece.file
    storage = source.storage if isinstance(source, FileSource) else Storage()
    if isinstance(source, TextFiles | DebianPackage):
        yield from read_text(file, storage, source.split, source.markup, limit)
    elif isinstance(source, PythonStdlib):
        yield from read_text(file, storage, "file", "none", limit)
    elif isinstance(source, Chats):
        fields = [source.messages_field] if source.messages_field else [source.prompt_field, source.response_field]
        yield from (from_chat(row, source) for row in _rows(source, piece, fields, limit))
    elif isinstance(source, Preferences):
        fields = [source.prompt_field, source.chosen_field, source.rejected_field]
        yield from (from_preference(row, source) for row in _rows(source, piece, fields, limit))
    else:
        rows = _rows(source, piece, [source.field], limit)
        yield from (from_record(row, source.field, source.id_field, source.metadata_fields) for row in rows)


def _rows(
    source: JsonLines | Parquet | Arrow | Chats | Preferences, piece: Piece, fields: list[str], limit: int
) -> Iterator[Any]:
    """The records of a piece, with at least the given fields and those kept beside them."""
    file, begin, end, _ = piece
    kind = kind_of_file(source, file.path)
    if kind == "jsonl":
        return objects(file, source.storage, begin, end, limit)
    named = [*fields, *([source.id_field] if source.id_field else []), *source.metadata_fields]
    return records(file, source.storage, kind, begin, end, named, limit)
