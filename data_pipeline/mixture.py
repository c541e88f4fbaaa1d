"""Which source a sample comes from: exact long-run weights, random order, no state."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

from data_pipeline.order import Permutation, derive_key
from runtime.errors import UserError

BLOCK = 1024


class Mixture:
    """Interleaves sources by weight: sample i has a source and a rank among that source's samples.

    After every block of `BLOCK` samples, a source with (normalised) weight w has given within 1 of w * n of the n
    samples so far: the remainder of one block is carried to the next (error diffusion). Inside a block the order
    is a keyed permutation. Raises UserError for weights that are not positive and finite.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
            raise UserError(f"data.mixture: weights must be positive finite numbers (given: {list(weights)})")
        total = sum(map(Fraction, weights))
        self.weights = [Fraction(w) / total for w in weights]
        self._cumulative = list(accumulate(self.weights))
        self._seed = seed
        self._block = -1
        self._begin: list[int] = []
        self._first_rank: list[int] = []
        self._order = Permutation(BLOCK, 0)

    def counts(self, blocks: int) -> list[int]:
        """How many samples each source gives in the first `blocks` blocks; they sum to `blocks * BLOCK`."""
        ends = [math.floor(c * blocks * BLOCK) for c in self._cumulative]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def source_and_rank(self, i: int) -> tuple[int, int]:
        """The source of sample `i`, and which of that source's samples it is (each rank is used exactly once)."""
        if len(self.weights) == 1:
            return 0, i
        block, position = divmod(i, BLOCK)
        if block != self._block:
            self._enter(block)
        place = self._order(position)
        source = 0
        while place >= self._begin[source + 1]:
            source += 1
        return source, self._first_rank[source] + place - self._begin[source]

    def _enter(self, block: int) -> None:
        before, after = self.counts(block), self.counts(block + 1)
        self._begin = [0, *accumulate(b - a for a, b in zip(before, after, strict=True))]
        self._first_rank = before
        self._order = Permutation(BLOCK, derive_key(self._seed, "mixture", block))
        self._block = block
