"""MinHash signatures of documents, and the bands by which alike ones meet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.sources.markup import missing
from data_pipeline.stages.n_grams import Hashes, hash_words, mix, n_grams, plain_words

SIGNATURES, BANDS, KEPT_ROWS = "signatures.npy", "bands.npy", "kept_rows.npy"
Signatures = npt.NDArray[np.uint32]
_SEED = 1
_BASE = np.uint64(0xD6E8FEB86659FD93)


def shingles(text: str, n: int) -> Hashes:
    """Different n-grams of the words of a text, as hashes; all its words as one if there are fewer."""
    words = hash_words(plain_words(text))
    grams: Hashes = np.unique(n_grams(words, min(n, max(len(words), 1))))
    return grams


def sign(sets: Sequence[Hashes], permutations: int) -> Signatures:
    """MinHash signatures (rensa's R-MinHash), shape [sets, permutations]; alike sets agree in many places."""
    try:
        from rensa import RMinHash
    except ImportError:
        raise missing("rensa", "stages.near_duplicates") from None
    if not sets:
        return np.zeros((0, permutations), dtype=np.uint32)
    borders = np.cumsum([0, *(len(one) for one in sets)]).tolist()
    matrix: Any = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), borders, permutations, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32)


def choose_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows of a band) with the least sum of false positives and negatives around `threshold`.

    Two sets of similarity s meet in a band with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman and Ullman,
    Mining of Massive Datasets, 3.4.2); its integral below the threshold and that of the rest above it are added.
    """
    nodes, weights = np.polynomial.legendre.leggauss(permutations // 2 + 1)  # exact up to degree bands * rows
    below, above = (nodes + 1) / 2 * threshold, threshold + (nodes + 1) / 2 * (1 - threshold)
    best = (np.inf, 1, 1)
    for bands in range(1, permutations + 1):
        for rows in range(1, permutations // bands + 1):
            wrong = weights @ (1 - (1 - below**rows) ** bands) * threshold
            missed = weights @ (1 - above**rows) ** bands * (1 - threshold)
            best = min(best, (float(wrong + missed), bands, rows))
    return best[1], best[2]


def save_bands(directory: Path, signatures: Signatures, kept_rows: npt.NDArray[np.int64], threshold: float) -> None:
    """Write a part's signatures, and for each band the hashes in order, each with the row it belongs to."""
    bands, rows = choose_bands(threshold, signatures.shape[1])
    table = np.zeros((bands, 2, len(signatures)), dtype=np.uint64)
    for band in range(bands):
        total = np.full(len(signatures), band, dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            total = total * _BASE + signatures[:, column]
        total = mix(total)
        order = np.argsort(total, kind="stable")
        table[band, 0], table[band, 1] = total[order], kept_rows[order].astype(np.uint64)
    np.save(directory / SIGNATURES, signatures)
    np.save(directory / BANDS, table)
    np.save(directory / KEPT_ROWS, kept_rows)
