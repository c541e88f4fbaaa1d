"""Which layers stand on which pipeline stage."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Stage:
    """A contiguous run of layers [first, last) of one model chunk; the first stage embeds, the last has the head."""

    first: int
    last: int
    embeds: bool
    has_head: bool

    @classmethod
    def whole(cls, layers: int) -> Stage:
        """A model that is not cut."""
        return cls(0, layers, True, True)

    @property
    def layers(self) -> range:
        """Global layer numbers."""
        return range(self.first, self.last)


def split_stages(layers: int, chunks: int, embedding_cost: float = 0.0, head_cost: float = 0.0) -> list[Stage]:
    """Cut `layers` into `chunks` runs so that the costliest run is as cheap as possible.

    Costs are in layers: the embedding weighs on the first run, the head on the last. Among equal cuts the one
    whose costs differ least is taken. With p pipeline ranks and v virtual stages there are p·v chunks, and chunk c
    stands on rank c mod p. Every run has at least one layer.
    """
    assert 1 <= chunks <= layers, "every pipeline chunk needs a layer"

    def cost(first: int, last: int, chunk: int) -> float:
        extra = (embedding_cost if chunk == 0 else 0.0) + (head_cost if chunk == chunks - 1 else 0.0)
        return last - first + extra

    # best[n]: (costliest chunk, sum of squares, cuts) of the first chunks holding n layers
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, (0,))}
    for chunk in range(chunks):
        reached: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for first, (worst, squares, cuts) in best.items():
            for last in range(first + 1, layers - (chunks - 1 - chunk) + 1):
                here = cost(first, last, chunk)
                candidate = (max(worst, here), squares + here * here, (*cuts, last))
                if last not in reached or candidate < reached[last]:
                    reached[last] = candidate
        best = reached
    cuts = best[layers][2]
    return [Stage(a, b, c == 0, c == chunks - 1) for c, (a, b) in enumerate(pairwise(cuts))]
