"""Which source a sample comes from: exact long-run weights, random order, no state."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from data_pipeline.order import Indices, Permutation, derive_key
from runtime.errors import UserError

BLOCK = 1024


class Mixture:
    """Interleaves sources by weight: sample i has a source and a rank among that source's samples.

    After every block of `BLOCK` samples, a source of (normalised) weight w has given within 1 of w * n of the
    n samples so far: the remainder of a block is carried to the next (error diffusion). Inside a block the
    order is a keyed permutation. Raises UserError for weights that are not positive and finite.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
            raise UserError(f"data.mixture: weights must be positive finite numbers (given: {list(weights)})")
        total = sum(map(Fraction, weights))
        self.weights = [Fraction(w) / total for w in weights]
        self._cumulative = list(accumulate(self.weights))
        self._seed = seed

    def counts(self, blocks: int) -> list[int]:
        """How many samples each source gives in the first `blocks` blocks; they sum to `blocks * BLOCK`."""
        ends = [math.floor(c * blocks * BLOCK) for c in self._cumulative]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

    def block(self, number: int) -> tuple[Indices, Indices]:
        """Source and rank of samples [number * BLOCK, (number + 1) * BLOCK), each of shape [BLOCK].

        The ranks of a source over all blocks are 0, 1, 2 ..., each used exactly once.
        """
        if len(self.weights) == 1:
            begin = number * BLOCK
            return np.zeros(BLOCK, dtype=np.int64), np.arange(begin, begin + BLOCK)
        before, after = self.counts(number), self.counts(number + 1)
        given = [b - a for a, b in zip(before, after, strict=True)]
        sources = np.repeat(np.arange(len(given)), given)
        ranks = np.concatenate([np.arange(a, b) for a, b in zip(before, after, strict=True)])
        order = Permutation(BLOCK, derive_key(self._seed, "mixture", number)).map(np.arange(BLOCK))
        return sources[order], ranks[order]

    def source_and_rank(self, i: int) -> tuple[int, int]:
        """The source of sample `i`, and which of that source's samples it is."""
        block, position = divmod(i, BLOCK)
        sources, ranks = self.block(block)
        return int(sources[position]), int(ranks[position])
