"""Models small enough to enumerate: a table of p(x_i | context), and a mixing network for longer texts.

Ids 0, 1, 2 are tokens, 3 is the mask.
"""

import itertools
import math
from collections.abc import Iterator

import torch

TOKENS, LENGTH, MASK = 3, 4, 3
TEXTS = list(itertools.product(range(TOKENS), repeat=LENGTH))
SUBSETS = [s for size in range(LENGTH + 1) for s in itertools.combinations(range(LENGTH), size)]


class TablePredictor:
    """An arbitrary p(x_i | context): probabilities for each of the 4^L contexts and L positions."""

    def __init__(self, table_CLV: torch.Tensor) -> None:
        never_CL1 = torch.full((*table_CLV.shape[:2], 1), -torch.inf, dtype=torch.float64)
        self.logits_CLV = torch.cat([table_CLV.double().log_softmax(-1), never_CL1], dim=-1)
        self.rows_seen: list[int] = []

    def __call__(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        self.rows_seen.append(len(tokens_BL))
        powers_L = (TOKENS + 1) ** torch.arange(tokens_BL.shape[1])
        return self.logits_CLV[(tokens_BL * powers_L).sum(1)]

    def log_probabilities(self, text: tuple[int, ...], masked: tuple[int, ...]) -> dict[int, float]:
        """log p(x_i | the tokens that are not masked) of every masked position i."""
        context = torch.tensor([[MASK if i in masked else x for i, x in enumerate(text)]])
        logits_LV = self(context)[0]
        return {i: float(logits_LV[i, text[i]]) for i in masked}


def arbitrary_table(seed: int, length: int = LENGTH) -> TablePredictor:
    """Independent random conditionals: in general no joint distribution has them."""
    shape = ((TOKENS + 1) ** length, length, TOKENS)
    return TablePredictor(1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def conditionals_of(joint: dict[tuple[int, ...], float]) -> TablePredictor:
    """The true conditionals p(x_i | unmasked tokens) of a joint distribution over `TEXTS`."""
    table = torch.empty((TOKENS + 1) ** LENGTH, LENGTH, TOKENS, dtype=torch.float64)
    for context in itertools.product(range(TOKENS + 1), repeat=LENGTH):
        row = sum(token * (TOKENS + 1) ** i for i, token in enumerate(context))
        weights = torch.zeros(LENGTH, TOKENS, dtype=torch.float64)
        for text, probability in joint.items():
            if all(c in (MASK, x) for c, x in zip(context, text, strict=True)):
                for i, x in enumerate(text):
                    weights[i, x] += probability
        table[row] = weights.log()
    return TablePredictor(table)


def every_mask(predictor: TablePredictor, text: tuple[int, ...]) -> Iterator[tuple[int, float]]:
    """For each of the 2^L masks: its size and Σ_masked log p."""
    for masked in SUBSETS:
        yield len(masked), sum(predictor.log_probabilities(text, masked).values())


def exact_bound(predictor: TablePredictor, text: tuple[int, ...]) -> float:
    """The l-form by enumeration: −(1/L) Σ_l (L/l) · mean over masks of size l of Σ_masked log p."""
    sums = every_mask(predictor, text)
    return -sum(value / (size * math.comb(LENGTH, size)) for size, value in sums if size)


class MixingPredictor:
    """A fixed random network in which every token changes every logit; records what it was given."""

    def __init__(self, seed: int, vocabulary: int, longest: int, causal: bool = False) -> None:
        random = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(vocabulary, 16, generator=random, dtype=torch.float64)
        self.place = torch.randn(longest, 16, generator=random, dtype=torch.float64)
        self.head = 2 * torch.randn(16, vocabulary, generator=random, dtype=torch.float64)
        self.causal = causal
        self.seen: list[torch.Tensor] = []

    def __call__(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        self.seen.append(tokens_BL.clone())
        x_BLD = torch.tanh(self.embedding[tokens_BL] * self.place[: tokens_BL.shape[1]])
        mixed_BLD = x_BLD.cumsum(1) if self.causal else x_BLD.sum(1, keepdim=True).expand_as(x_BLD)
        return torch.tanh(mixed_BLD + self.place[: tokens_BL.shape[1]]) @ self.head
