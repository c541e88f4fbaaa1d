"""How probable a text is: the masked-diffusion bound by Monte Carlo, the autoregressive likelihood exactly.

Shapes: B sequences, L tokens, R rows of one forward pass, D draws. Unit: nats per sequence.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from inference.predictor import Predictor, log_probability, predict_logits
from inference.randomness import Purpose, SequenceKey, uniforms
from runtime.errors import UserError


@dataclass(frozen=True)
class LikelihoodBound:
    """Monte-Carlo estimate of an upper bound of −log p(x).

    nats: float64 [B], nats per sequence. variance: float64 [B], the variance of `nats` by Monte Carlo as if
    draws were independent (stratified levels usually do better), or None with a single draw.
    """

    nats: torch.Tensor
    variance: torch.Tensor | None


def stratified_level(start: int, draw: int, draws: int, length: int) -> int:
    """Tokens that draw `draw` of `draws` masks: ⌊start + draw·length/draws⌋, wrapped to 1 … `length`.

    Every draw is exactly uniform when `start` is uniform on 1 … `length`. Rounding half to even, as LLaDA's
    evaluation code does, would not be: with length 5 and 2 draws, levels 1 and 4 come thrice as often as 2.
    """
    return (start - 1 + draw * length // draws) % length + 1


def draw_mask(key: SequenceKey, draw: int, draws: int, length: int) -> NDArray[np.bool_]:
    """The tokens that draw `draw` of `draws` masks, bool [length]: a pure function of its arguments."""
    start = 1 + int(uniforms(Purpose.LEVEL, 1, key)[0] * length)
    level = stratified_level(start, draw, draws, length)
    order = uniforms(Purpose.SUBSET, length, key, step=draw).argsort(kind="stable")
    masked = np.zeros(length, dtype=np.bool_)
    masked[order[:level]] = True
    return masked


@torch.no_grad()
def masked_bound(
    predict: Predictor,
    tokens_BL: torch.Tensor,
    mask_id: int,
    draws: int,
    seed: int,
    *,
    first_index: int = 0,
    batch_rows: int = 8,
    prompt_length: int = 0,
) -> LikelihoodBound:
    """Estimate −E_{l~U{1..L}} (L/l) Σ_masked log p(x_i | x_l), exactly l tokens masked without replacement.

    The l-form of LLaDA's bound (arXiv 2502.09992): unbiased, finite variance, no ε. The first
    `prompt_length` tokens are a prompt: never masked, never scored, not part of L (its section on inference).
    Draws of row b are a function of (seed, first_index + b), however the batch is cut; `batch_rows` rows go
    through the model at a time. One draw is exact for a single scored token.
    Raises UserError for numbers out of range or tokens that hold the mask id.
    """
    _check_bound(tokens_BL, mask_id, draws, batch_rows, prompt_length)
    batch, length = len(tokens_BL), tokens_BL.shape[1] - prompt_length
    estimates = torch.empty(batch * draws, dtype=torch.float64, device=tokens_BL.device)
    for start in range(0, batch * draws, batch_rows):
        places = [divmod(row, draws) for row in range(start, min(start + batch_rows, batch * draws))]
        keys = [SequenceKey(seed, first_index + sequence) for sequence, _ in places]
        masks = [draw_mask(key, draw, draws, length) for key, (_, draw) in zip(keys, places, strict=True)]
        whole_RL = np.pad(np.stack(masks), ((0, 0), (prompt_length, 0)))
        masked_RL = torch.from_numpy(whole_RL).to(tokens_BL.device)
        clean_RL = tokens_BL[[sequence for sequence, _ in places]]
        masked_nats_R = _masked_nats(predict, clean_RL, masked_RL, mask_id)
        estimates[start : start + len(places)] = masked_nats_R * length / masked_RL.sum(1)
    estimates_BD = estimates.view(batch, draws)
    variance_B = estimates_BD.var(dim=1) / draws if draws > 1 else None
    return LikelihoodBound(estimates_BD.mean(1), variance_B)


def _masked_nats(predict: Predictor, clean_RL: torch.Tensor, masked_RL: torch.Tensor, mask_id: int) -> torch.Tensor:
    """−Σ log p of the masked tokens given the others, float64 [R]."""
    logits_RLV = predict_logits(predict, clean_RL.masked_fill(masked_RL, mask_id))
    scores_RL = torch.zeros_like(masked_RL, dtype=torch.float64)
    scores_RL[masked_RL] = -log_probability(logits_RLV[masked_RL], clean_RL[masked_RL])
    return scores_RL.sum(1)


def _check_bound(tokens_BL: torch.Tensor, mask_id: int, draws: int, batch_rows: int, prompt_length: int) -> None:
    if draws < 1:
        raise UserError(f"draws: {draws} draws estimate nothing: use 1 or more (128 is usual)")
    if batch_rows < 1:
        raise UserError(f"batch_rows: {batch_rows} rows cannot be predicted: use 1 or more")
    if not 0 <= prompt_length < tokens_BL.shape[1]:
        raise UserError(
            f"prompt_length: {prompt_length} leaves nothing to score of {tokens_BL.shape[1]} tokens: "
            f"use 0 … {tokens_BL.shape[1] - 1}"
        )
    if (tokens_BL == mask_id).any():
        raise UserError(f"tokens: the text holds the mask id {mask_id}: use the tokenizer of the model")


@torch.no_grad()
def autoregressive_nll(predict: Predictor, tokens_BL: torch.Tensor, bos_id: int, batch_rows: int = 8) -> torch.Tensor:
    """Exact −log p(x) of a causal model, float64 [B], nats per sequence.

    The model reads [BOS, x_1 … x_{L−1}], so that every one of the L tokens is scored.
    """
    scores = []
    for targets_RL in tokens_BL.split(batch_rows):
        inputs_RL = targets_RL.roll(1, dims=1)
        inputs_RL[:, 0] = bos_id
        logits_RLV = predict_logits(predict, inputs_RL)
        scores_RL = log_probability(logits_RLV.flatten(0, 1), targets_RL.flatten()).view_as(targets_RL)
        scores.append(-scores_RL.sum(1))
    return torch.cat(scores)
