"""Ways in which a disk or a careless hand damages files, each a pure function of a seed."""

from __future__ import annotations

import random
from pathlib import Path


def flip_bit(path: Path, seed: int, size: int | None = None) -> str:
    """Flip one bit of the file, or of its first `size` bytes; returns which."""
    data = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange((size or len(data)) * 8)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit % 8} of byte {bit // 8}"


def truncate(path: Path, seed: int) -> str:
    """Cut the file at a random byte; returns where."""
    data = path.read_bytes()
    length = random.Random(seed).randrange(len(data))
    path.write_bytes(data[:length])
    return f"at byte {length}"


def swap(one: Path, other: Path) -> None:
    """Let two files change names."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
