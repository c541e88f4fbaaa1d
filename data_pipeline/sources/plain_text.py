"""Files of text: a document per file, line or fortune, with markup taken away if asked."""

import re
from collections.abc import Iterator

from data_pipeline.fates import Fate
from data_pipeline.sources.config import Storage
from data_pipeline.sources.document import SourceDocument, document
from data_pipeline.sources.markup import MARKUP
from data_pipeline.sources.storage import File
from data_pipeline.sources.streams import Damaged, chunks, lines, whole

_TERMINAL_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FORTUNE_BORDER = re.compile(r"^%\r?$", re.MULTILINE)


def read_text(file: File, storage: Storage, split: str, markup: str, limit: int) -> Iterator[SourceDocument]:
    """Documents of a file; one that cannot be unpacked is undecodable. Raises Damaged for `split: line`."""
    if split == "line":
        yield from (_marked(document(line), markup) for line in lines(chunks(file, storage), limit))
        return
    try:
        data = whole(chunks(file, storage), limit)
    except Damaged:
        yield SourceDocument(None, Fate.UNDECODABLE)
        return
    if split == "fortune":
        yield from fortunes(data)
    elif markup != "none" and data is not None:
        text = MARKUP[markup](data)
        yield SourceDocument(text, Fate.UNDECODABLE if text is None else Fate.KEPT)
    else:
        yield document(data)


def _marked(line: SourceDocument, markup: str) -> SourceDocument:
    if markup == "none" or line.text is None:
        return line
    return line._replace(text=MARKUP[markup](line.text.encode()))


def fortunes(data: bytes | None) -> Iterator[SourceDocument]:
    """The parts of a fortune file between its lines of a single `%`, without terminal colours."""
    found = document(data)
    if found.text is None:
        yield found
        return
    for part in _FORTUNE_BORDER.split(found.text):
        yield SourceDocument(_TERMINAL_COLOUR.sub("", part).strip("\r\n"))
