"""Files of one JSON object a line."""

import json
from collections.abc import Iterator
from typing import Any

from data_pipeline.fates import Fate
from data_pipeline.sources.config import Storage
from data_pipeline.sources.document import SourceDocument
from data_pipeline.sources.storage import File
from data_pipeline.sources.streams import chunks, chunks_of_lines, is_packed, lines


def objects(file: File, storage: Storage, begin: int, end: int, limit: int) -> Iterator[Any]:
    """The value of each line that begins in [begin, end), or the Fate of one that has none; blank lines left out.

    Raises Damaged.
    """
    packed = is_packed(file.path)
    pieces = chunks(file, storage) if packed else chunks_of_lines(file, storage, begin, end)
    for line in lines(pieces, limit):
        if line is None:
            yield Fate.OVERSIZED
        elif line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield Fate.UNDECODABLE


def look_up(record: Any, field: str) -> Any:
    """The value under `field` of an object, or below objects for `a.b`; None if there is none."""
    if not isinstance(record, dict):
        return None
    if field in record:
        return record[field]
    first, dot, rest = field.partition(".")
    return look_up(record.get(first), rest) if dot else None


def from_record(record: Any, field: str, id_field: str | None, metadata_fields: list[str]) -> SourceDocument:
    """A record's document; it has a fate if its text is missing, or cannot be written as UTF-8."""
    if isinstance(record, Fate):
        return SourceDocument(None, record)
    name = None if id_field is None else plain(look_up(record, id_field))
    kept = {key: value for key in metadata_fields if (value := look_up(record, key)) is not None}
    metadata = json.dumps(kept, sort_keys=True, default=str) if kept else None
    text = look_up(record, field)
    if not isinstance(text, str):
        return SourceDocument(None, Fate.WITHOUT_TEXT, name, metadata)
    if not is_text(text):
        return SourceDocument(None, Fate.UNDECODABLE, name, metadata)
    return SourceDocument(text, Fate.KEPT, name, metadata)


def plain(value: Any) -> str | None:
    """A value as text: itself, or as JSON; None if it cannot be written as UTF-8."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if is_text(text) else None


def is_text(text: str) -> bool:
    """JSON can spell lone surrogates, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
