"""What a source gives."""

from typing import NamedTuple

from data_pipeline.fates import Fate


class SourceDocument(NamedTuple):
    """A document as it was read, or the reason why there is none; `metadata` is a JSON object."""

    text: str | None
    fate: Fate = Fate.KEPT
    id: str | None = None
    metadata: str | None = None


def document(data: bytes | None, id: str | None = None) -> SourceDocument:
    """A document from its bytes; None stands for one that was too large to be held."""
    if data is None:
        return SourceDocument(None, Fate.OVERSIZED, id)
    try:
        return SourceDocument(data.decode(), id=id)
    except UnicodeDecodeError:
        return SourceDocument(None, Fate.UNDECODABLE, id)
