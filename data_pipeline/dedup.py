"""Exact duplicates, found by digest."""

import xxhash


class SeenTexts:
    """Remembers texts by their xxh3-128 (16 bytes each)."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, text: bytes) -> bool:
        """Note `text`; whether it is new."""
        before = len(self._digests)
        self._digests.add(xxhash.xxh3_128_digest(text))
        return len(self._digests) > before


def fraction_of(text: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the text and seed alone: chooses splits and samples."""
    return (xxhash.xxh3_64_intdigest(text, seed & (1 << 64) - 1) >> 11) / (1 << 53)
