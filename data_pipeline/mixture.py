"""Which source a sample comes from: exact long-run weights, random order, no state."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from data_pipeline.order import Indices, Permutation, derive_key
from runtime.errors import UserError

BLOCK = 1024
LONGEST_BLOCK = 1 << 20


class Mixture:
    """Interleaves sources by weight: sample i has a source and a rank among that source's samples.

    After every block of `size` samples, a source of (normalised) weight w has given within 1 of w * n of the
    n samples so far: the remainder of a block is carried to the next (error diffusion). Inside a block the
    order is a keyed permutation. `size` is `BLOCK`, or the next power of two in which the rarest source has a
    sample. Raises UserError for weights that are not positive and finite, or too small for the longest block.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
            raise UserError(f"data.mixture: weights must be positive finite numbers (given: {list(weights)})")
        total = sum(map(Fraction, weights))
        self.weights = [Fraction(w) / total for w in weights]
        self.size = _block_size(self.weights)
        self._cumulative = list(accumulate(self.weights))
        self._seed = seed

    def counts(self, blocks: int) -> list[int]:
        """How many samples each source gives in the first `blocks` blocks; they sum to `blocks * size`."""
        ends = [math.floor(c * blocks * self.size) for c in self._cumulative]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def block(self, number: int, begin: int = 0, end: int | None = None) -> tuple[Indices, Indices]:
        """Source and rank of samples [begin, end) of block `number` (all of them, if not given), each [end - begin].

        The ranks of a source over all blocks are 0, 1, 2 ..., each used exactly once.
        """
        end = self.size if end is None else end
        if len(self.weights) == 1:
            first = number * self.size
            return np.zeros(end - begin, dtype=np.int64), np.arange(first + begin, first + end)
        before, after = self.counts(number), self.counts(number + 1)
        return self.deal(number, before, [b - a for a, b in zip(before, after, strict=True)], begin, end)

    def deal(
        self, number: int, before: Sequence[int], given: Sequence[int], begin: int, end: int
    ) -> tuple[Indices, Indices]:
        """Source and rank of samples [begin, end) of a block in which each source gives `given`, after `before`."""
        assert min(given) >= 0, "no source takes a sample back"
        ends = np.cumsum(given)
        slots = Permutation(int(ends[-1]), derive_key(self._seed, "mixture", number)).map(np.arange(begin, end))
        sources = np.searchsorted(ends, slots, side="right").astype(np.int64)
        return sources, slots + (np.array(before) - ends + given)[sources]

    def source_and_rank(self, i: int) -> tuple[int, int]:
        """The source of sample `i`, and which of that source's samples it is."""
        block, position = divmod(i, self.size)
        sources, ranks = self.block(block, position, position + 1)
        return int(sources[0]), int(ranks[0])


def _block_size(weights: Sequence[Fraction]) -> int:
    """Only sources between others matter: the counts of the first and the last never fall from block to block."""
    rarest = min(weights[1:-1], default=Fraction(1))
    size = BLOCK
    while rarest * size < 1 and size <= LONGEST_BLOCK:
        size *= 2
    if size > LONGEST_BLOCK:
        raise UserError(
            f"data.mixture: a weight of {float(rarest):.3g} of the whole gives less than a sample in {LONGEST_BLOCK}: "
            "raise it or leave that source out"
        )
    return size
