"""Rules about what repeats inside a document (Rae et al. 2021, table A1)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.fates import Fate
from data_pipeline.stages.config import Repetition
from data_pipeline.stages.n_grams import Hashes, hash_words, n_grams


def judge_repetition(text: str, rules: Repetition) -> Fate:
    """The first rule that a document breaks, or KEPT."""
    for parts, count, characters, fate in (
        (text.split("\n\n"), rules.paragraphs, rules.paragraph_characters, Fate.REPEATED_PARAGRAPHS),
        (text.split("\n"), rules.lines, rules.line_characters, Fate.REPEATED_LINES),
    ):
        share, share_of_characters = repeated_parts([part for part in parts if part.strip()])
        if share > count or share_of_characters > characters:
            return fate
    words = text.split()
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    hashes = hash_words(words)
    if any(top_share(hashes, lengths, n) > most for n, most in rules.top_n_grams.items()):
        return Fate.FREQUENT_N_GRAM
    if any(repeated_share(hashes, lengths, n) > most for n, most in rules.repeated_n_grams.items()):
        return Fate.REPEATED_N_GRAMS
    return Fate.KEPT


def repeated_parts(parts: Sequence[str]) -> tuple[float, float]:
    """Share of the parts that stood before, and of the characters in them."""
    seen: set[str] = set()
    repeated = characters = 0
    for part in parts:
        if part in seen:
            repeated, characters = repeated + 1, characters + len(part)
        seen.add(part)
    return repeated / max(len(parts), 1), characters / max(sum(map(len, parts)), 1)


def top_share(words: Hashes, lengths: npt.NDArray[np.int64], n: int) -> float:
    """Share of the words' characters that the most frequent n-gram covers; 0 if none comes twice."""
    grams = n_grams(words, n)
    if not len(grams):
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    most = counts.max()
    if most < 2:
        return 0.0
    size = max(int(lengths[begin : begin + n].sum()) for begin in first[counts == most])
    return min(1.0, int(most) * size / max(int(lengths.sum()), 1))


def repeated_share(words: Hashes, lengths: npt.NDArray[np.int64], n: int) -> float:
    """Share of the words' characters inside n-grams that stood before; what overlaps counts once."""
    grams = n_grams(words, n)
    if not len(grams):
        return 0.0
    _, first = np.unique(grams, return_index=True)
    again = np.ones(len(grams), dtype=bool)
    again[first] = False
    begins = np.flatnonzero(again)
    borders = np.zeros(len(words) + 1, dtype=np.int64)
    np.add.at(borders, begins, 1)
    np.add.at(borders, begins + n, -1)
    covered = np.cumsum(borders[:-1]) > 0
    return float(lengths[covered].sum() / max(int(lengths.sum()), 1))
