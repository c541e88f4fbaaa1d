"""Random numbers as a pure function of what they are for; no state, the same on every machine and device."""

import enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError

_WORD = 1 << 64


class Purpose(enum.IntEnum):
    """What a stream of numbers is for. Streams of different purposes never meet."""

    LEVEL = 1
    SUBSET = 2
    GUMBEL = 3
    REVEAL = 4


class SequenceKey(NamedTuple):
    """The key of all random numbers of one sequence: the run's seed and the sequence's global index."""

    seed: int
    sequence: int


def uniforms(purpose: Purpose, count: int, key: SequenceKey, step: int = 0, position: int = 0) -> NDArray[np.float64]:
    """`count` float64 numbers, uniform on the open interval (0, 1).

    Philox4x64 with key (seed, sequence) and counter (running, position, step, purpose); read from raw bits,
    52 per number, so that they do not depend on the version of a library's samplers.
    Raises UserError for a seed outside 0 … 2^64 − 1.
    """
    if not 0 <= key.seed < _WORD:
        raise UserError(f"seed: {key.seed} is outside 0 … 2^64 − 1: use a number inside")
    assert 0 <= key.sequence < _WORD
    words = np.array(key, dtype=np.uint64)
    counter = np.array([0, position, step, int(purpose)], dtype=np.uint64)
    raw = np.random.Philox(key=words, counter=counter).random_raw(count)
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gumbels(count: int, key: SequenceKey, step: int, position: int) -> NDArray[np.float64]:
    """`count` standard Gumbel numbers, −ln(−ln u), float64."""
    return -np.log(-np.log(uniforms(Purpose.GUMBEL, count, key, step, position)))
