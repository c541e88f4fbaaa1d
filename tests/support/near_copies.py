"""Near-duplicates planted at known similarities, and who drops them: a build's passes, or datasketch's usual loop."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

import numpy as np
from datasketch import MinHash, MinHashLSH

from data_pipeline.dedup.exact import DROPPED
from data_pipeline.dedup.near import PAIRS, ChainTask, PairTask, drop_later, find_pairs
from data_pipeline.dedup.signatures import choose_bands, save_bands, shingles, sign
from data_pipeline.rows import Part, save_parts
from data_pipeline.stages.n_grams import plain_words

N, PERMUTATIONS, THRESHOLD = 3, 128, 0.8
WORDS = [f"w{n}" for n in range(4000)]


def words_of(source: Random, count: int = 120) -> list[str]:
    return source.choices(WORDS, k=count)


def altered(words: list[str], changes: int, source: Random) -> list[str]:
    """The words with a block of them replaced: the similarity falls with the size of the block."""
    begin = source.randrange(len(words) - changes + 1)
    return [*words[:begin], *source.choices(WORDS, k=changes), *words[begin + changes :]]


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the sets of word n-grams, by their definition."""
    one, two = (
        {tuple(words[i : i + N]) for i in range(len(words) - N + 1)} for words in (plain_words(a), plain_words(b))
    )
    return len(one & two) / len(one | two)


def plant(changes_of_copies: Iterable[int]) -> tuple[list[str], dict[int, tuple[int, float]]]:
    """Texts, and for each planted copy its number, the original's, and the similarity of both."""
    source = Random(5)
    texts, copies = [], {}
    for changes in changes_of_copies:
        words = words_of(source)
        texts += [" ".join(words), " ".join(altered(words, changes, source)) + "."]
        copies[len(texts) - 1] = (len(texts) - 2, similarity(*texts[-2:]))
    return texts, copies


def dropped_by_us(texts: list[str], tmp_path: Path, cuts: int = 3) -> set[int]:
    """The rows that the two passes drop, with the texts spread over parts."""
    parts, first = [], 0
    for number, chosen in enumerate(np.array_split(np.arange(len(texts)), cuts)):
        directory = tmp_path / f"part-{number}"
        directory.mkdir(parents=True)
        signatures = sign([shingles(texts[row], N) for row in chosen], PERMUTATIONS)
        save_bands(directory, signatures, np.arange(len(chosen)), THRESHOLD)
        parts.append(Part(directory, 0, first, len(chosen)))
        first += len(chosen)
    save_parts(parts, tmp_path / "parts.json")
    files = []
    for band in range(choose_bands(THRESHOLD, PERMUTATIONS)[0]):
        for bucket in range(2):
            place = tmp_path / f"{band}-{bucket}"
            place.mkdir()
            find_pairs(PairTask(tmp_path / "parts.json", [], band, bucket, 1, THRESHOLD), place)
            files.append(place / PAIRS)
    drop_later(ChainTask(files, 0, len(texts)), tmp_path)
    return set(np.load(tmp_path / DROPPED).tolist())


def dropped_by_datasketch(texts: list[str]) -> set[int]:
    """datasketch's usual loop: a document that meets an earlier kept one, and looks alike, is dropped."""
    index, dropped = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS), set()
    signatures = []
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch([int(gram).to_bytes(8, "little") for gram in shingles(text, N)])
        signatures.append(signature)
        if any(signature.jaccard(signatures[other]) >= THRESHOLD for other in index.query(signature)):
            dropped.add(number)
        else:
            index.insert(number, signature)
    return dropped
