"""A keyed random order of n things that is computed, not stored."""

import struct

import numpy as np
import numpy.typing as npt
import xxhash

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_ROUNDS = 8
_TABLE = 64  # up to here a table: a Feistel network on so few bits reaches only a few of the n! orders

Indices = npt.NDArray[np.int64]


def derive_key(seed: int, *parts: int | str) -> int:
    """A 64-bit key that is a pure function of `seed` and `parts`; equal on every machine and Python."""
    state = xxhash.xxh3_64()
    for part in (seed, *parts):
        text = str(part).encode()
        state.update(struct.pack("<BQ", isinstance(part, str), len(text)) + text)
    return state.intdigest()


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def _mix_array(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """A bijection of range(n), 1 <= n <= 2**62, chosen by `key`, in O(1) memory with random access.

    An unbalanced Feistel network on the smallest power of two that holds n, eight rounds of the SplitMix64
    finaliser (Steele, Lea and Flood 2014), with cycle walking back into range(n) (Black and Rogaway 2002).
    The smallest ranges are sorted by a mixed key instead.
    """

    def __init__(self, n: int, key: int) -> None:
        assert 1 <= n <= 1 << 62, f"a permutation of {n} things"
        self.n = n
        self._table: list[int] | None = None
        if n <= _TABLE:
            start = _mix(key & _MASK)
            self._table = sorted(range(n), key=lambda i: _mix((start + (i + 1) * _GOLDEN) & _MASK))
        bits = (n - 1).bit_length()
        self._low_bits = (bits + 1) // 2
        high_bits = bits - self._low_bits
        # (round key, shift of the mixed half, whether the low half is the one that changes)
        self._rounds = [
            (
                _mix((key + (r + 1) * _GOLDEN) & _MASK),
                64 - (self._low_bits if r % 2 else high_bits),
                bool(r % 2),
            )
            for r in range(_ROUNDS)
        ]

    def __call__(self, i: int) -> int:
        """Where index `i` goes."""
        assert 0 <= i < self.n, f"index {i} is outside range({self.n})"
        if self._table is not None:
            return self._table[i]
        low_bits = self._low_bits
        mask = (1 << low_bits) - 1
        while True:
            high, low = i >> low_bits, i & mask
            for key, shift, changes_low in self._rounds:
                if changes_low:
                    low ^= _mix(high ^ key) >> shift
                else:
                    high ^= _mix(low ^ key) >> shift
            i = high << low_bits | low
            if i < self.n:
                return i

    def map(self, indices: npt.ArrayLike) -> Indices:
        """The same values as calling for each of `indices` (any shape), at once."""
        given = np.asarray(indices, dtype=np.int64)
        assert given.size == 0 or (given.min() >= 0 and given.max() < self.n), f"indices outside range({self.n})"
        if self._table is not None:
            return np.array(self._table, dtype=np.int64)[given]
        values = self._scramble(given.ravel().astype(np.uint64))
        outside = np.flatnonzero(values >= np.uint64(self.n))
        while outside.size:
            values[outside] = self._scramble(values[outside])
            outside = outside[values[outside] >= np.uint64(self.n)]
        return values.astype(np.int64).reshape(given.shape)

    def _scramble(self, x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        low_bits = np.uint64(self._low_bits)
        high, low = x >> low_bits, x & np.uint64((1 << self._low_bits) - 1)
        for key, shift, changes_low in self._rounds:
            if changes_low:
                low ^= _mix_array(high ^ np.uint64(key)) >> np.uint64(shift)
            else:
                high ^= _mix_array(low ^ np.uint64(key)) >> np.uint64(shift)
        return (high << low_bits) | low
