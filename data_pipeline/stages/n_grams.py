"""Words and word n-grams as 64-bit hashes, in numpy."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Hashes = npt.NDArray[np.uint64]
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def plain_words(text: str) -> list[str]:
    """Words in lower case without punctuation; in Chinese, Japanese and Korean every character is one."""
    return _WORD.findall(text.lower())


def hash_words(words: Sequence[str]) -> Hashes:
    """The xxh3-64 of each word."""
    return np.array([xxhash.xxh3_64_intdigest(word.encode()) for word in words], dtype=np.uint64)


def mix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def n_grams(words: Hashes, n: int) -> Hashes:
    """A hash of every n words in a row; shape [len(words) - n + 1], or empty."""
    count = max(len(words) - n + 1, 0)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        total = total * _BASE + words[offset : offset + count]
    return mix(total)
