"""What can become of a document on its way into a dataset."""

from enum import IntEnum


class Fate(IntEnum):
    """Why a document was left out, or that it was kept; stored as one byte a document."""

    KEPT = 0
    UNDECODABLE = 1
    """Bytes that are not UTF-8, or a line that is not JSON."""
    WITHOUT_TEXT = 2
    """A record without the configured field, or whose field is not text."""
    EMPTY = 3
    OVERSIZED = 4
    """Longer than `max_document_bytes`."""
    DAMAGED = 5
    """Not a document: the place where a file broke off."""
    TOO_SHORT = 16
    TOO_LONG = 17
    WORD_LENGTH = 18
    SYMBOLS = 19
    DIGITS = 20
    BULLETS = 21
    ELLIPSES = 22
    FEW_LETTERS = 23
    FEW_STOP_WORDS = 24
    REPEATED_LINES = 25
    REPEATED_PARAGRAPHS = 26
    FREQUENT_N_GRAM = 27
    REPEATED_N_GRAMS = 28
    FEW_SENTENCES = 29
    PLACEHOLDER = 30
    BRACES = 31
    LANGUAGE = 48
    CONTAMINATED = 49

    @property
    def key(self) -> str:
        """Its name in a manifest."""
        return self.name.lower()


FILTERS = [fate for fate in Fate if fate >= Fate.TOO_SHORT]
"""What the stages of a build can decide about a single document."""
