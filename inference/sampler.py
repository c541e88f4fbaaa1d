"""Samplers of a masked-diffusion model: start from masks, predict all, commit some, repeat.

Shapes: B sequences, P prompt tokens, L response tokens, K tokens of a block, N masked tokens, V ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from inference.choice import choose_tokens
from inference.predictor import Predictor, predict_logits
from inference.randomness import Purpose, SequenceKey, gumbels, uniforms
from runtime.errors import UserError
from runtime.settings import Settings


class SamplerConfig(Settings):
    """How a response is unmasked.

    length: tokens of the response. block_length: tokens of a block, blocks are finished from left to right
    (None: one block, pure diffusion). steps: forward passes in all (None: one per token).
    temperature: 0 is greedy. remasking: `low_confidence` commits the most confident predictions
    (LLaDA, Alg. 5), `random` keeps each prediction by chance (Alg. 4).
    """

    length: int = Field(gt=0)
    block_length: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    remasking: Literal["low_confidence", "random"] = "low_confidence"

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.block_length or self.length

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.length // self.block

    @property
    def forwards(self) -> int:
        """Forward passes in all."""
        return self.steps or self.length

    @model_validator(mode="after")
    def _steps_fit_blocks(self) -> Self:
        if self.length % self.block:
            divisors = [n for n in range(1, self.length + 1) if self.length % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - self.block))
            raise ValueError(f"block_length: {self.block} does not divide length {self.length}: use {nearest}")
        if self.forwards % self.blocks:
            nearest = max(1, round(self.forwards / self.blocks)) * self.blocks
            raise ValueError(f"steps: {self.forwards} cannot be shared evenly by {self.blocks} blocks: use {nearest}")
        if self.remasking == "low_confidence" and self.forwards > self.length:
            raise ValueError(
                f"steps: {self.forwards} steps have only {self.length} tokens to commit: use {self.length}"
            )
        return self


@dataclass(frozen=True)
class SampleResult:
    """A finished batch of samples.

    tokens: int64 [B, P+L]. revealed_at: int64 [B, L], the forward pass (from 0) that committed each token.
    confidence: float64 [B, L], the model's probability of each token when it was committed.
    forwards: forward passes of the whole batch.
    """

    tokens: torch.Tensor
    revealed_at: torch.Tensor
    confidence: torch.Tensor
    forwards: int


def commit_counts(masked: int, steps: int) -> list[int]:
    """Tokens to commit at each of `steps` steps: `masked` in all, as even as can be, the larger first."""
    return [masked // steps + (step < masked % steps) for step in range(steps)]


@torch.no_grad()
def sample(
    predict: Predictor,
    prompt_BP: torch.Tensor,
    config: SamplerConfig,
    mask_id: int,
    seed: int,
    *,
    forbidden_ids: Sequence[int] = (),
    first_index: int = 0,
) -> SampleResult:
    """Append `config.length` tokens to every prompt (P may be 0). Source: LLaDA, arXiv 2502.09992.

    The model always sees the whole response: blocks to come stand there as masks. Committed tokens are never
    revisited. The mask id is never chosen, nor are `forbidden_ids` (pad, for instance; with EOS among them
    the response never ends early). Random numbers depend on (seed, first_index + row, step, position) alone.
    Raises UserError if a prompt holds the mask id.
    """
    if (prompt_BP == mask_id).any():
        raise UserError(f"prompt: it holds the mask id {mask_id}: give a prompt without masks")
    batch, prompt = prompt_BP.shape
    masks_BL = torch.full((batch, config.length), mask_id, dtype=torch.int64, device=prompt_BP.device)
    tokens_BT = torch.cat([prompt_BP, masks_BL], dim=1)
    revealed_at_BL = torch.full_like(masks_BL, -1)
    confidence_BL = torch.zeros_like(masks_BL, dtype=torch.float64)
    forbidden = sorted({mask_id, *forbidden_ids})
    keys = [SequenceKey(seed, first_index + row) for row in range(batch)]
    for step, span, (index, steps) in _schedule(config):
        block_BK = tokens_BT[:, prompt:][:, span]  # a view: what is committed below is written to the tokens
        logits_BKV = predict_logits(predict, tokens_BT)[:, prompt:][:, span]
        masked_BK = block_BK == mask_id
        chosen_BK, trust_BK = _predict_masked(
            logits_BKV, masked_BK, config.temperature, forbidden, keys=keys, step=step
        )
        if config.remasking == "random":
            commit_BK = masked_BK & _by_chance(masked_BK, 1 / (steps - index), keys, step)
        else:
            commit_BK = _most_confident(trust_BK, commit_counts(config.block, steps)[index])
        block_BK[commit_BK] = chosen_BK[commit_BK]
        revealed_at_BL[:, span][commit_BK] = step
        confidence_BL[:, span][commit_BK] = trust_BK[commit_BK]
    return SampleResult(tokens_BT, revealed_at_BL, confidence_BL, config.forwards)


def _schedule(config: SamplerConfig) -> Iterator[tuple[int, slice, tuple[int, int]]]:
    """For every forward pass: its number, the span of its block, (step, steps) inside the block."""
    steps = config.forwards // config.blocks
    for step in range(config.forwards):
        start = step // steps * config.block
        yield step, slice(start, start + config.block), (step % steps, steps)


def _predict_masked(
    logits_BKV: torch.Tensor,
    masked_BK: torch.Tensor,
    temperature: float,
    forbidden_ids: Sequence[int],
    *,
    keys: Sequence[SequenceKey],
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen ids [B, K] and their confidence [B, K]; −inf where nothing is masked."""
    places_N2 = masked_BK.nonzero().tolist()
    vocabulary = logits_BKV.shape[-1]

    def gumbel_row(row: int) -> np.ndarray:
        sequence, position = places_N2[row]
        return gumbels(vocabulary, keys[sequence], step, position)

    ids_N, confidence_N = choose_tokens(logits_BKV[masked_BK], temperature, forbidden_ids, gumbel_row)
    chosen_BK = torch.zeros_like(masked_BK, dtype=torch.int64).masked_scatter(masked_BK, ids_N)
    nothing_BK = torch.full_like(masked_BK, -torch.inf, dtype=torch.float64)
    return chosen_BK, nothing_BK.masked_scatter(masked_BK, confidence_N)


def _most_confident(confidence_BK: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the `count` most confident positions of every row; of equals, the leftmost."""
    order_BK = confidence_BK.argsort(dim=1, descending=True, stable=True)
    chosen_BK = torch.zeros_like(confidence_BK, dtype=torch.bool)
    return chosen_BK.scatter(1, order_BK[:, :count], True)


def _by_chance(masked_BK: torch.Tensor, chance: float, keys: Sequence[SequenceKey], step: int) -> torch.Tensor:
    """Mark every position independently with probability `chance`: (t−s)/t of the step from t to s."""
    count = masked_BK.shape[1]
    drawn_BK = np.stack([uniforms(Purpose.REVEAL, count, key, step) for key in keys])
    return torch.from_numpy(drawn_BK < chance).to(masked_BK.device)
