"""Left-to-right sampling of a causal model, the baseline of the masked-diffusion samplers."""

from collections.abc import Sequence

import numpy as np
import torch

from inference.choice import choose_tokens
from inference.predictor import Predictor, predict_logits
from inference.randomness import SequenceKey, gumbels
from inference.sampler import SampleResult
from runtime.errors import UserError


@torch.no_grad()
def sample_autoregressive(
    predict_causal: Predictor,
    prompt_BP: torch.Tensor,
    length: int,
    bos_id: int,
    seed: int,
    *,
    temperature: float = 0.0,
    forbidden_ids: Sequence[int] = (),
    first_index: int = 0,
) -> SampleResult:
    """Append `length` tokens to every prompt (P may be 0), one forward pass each, without a cache.

    The model reads [BOS, x_1 … x_k]; its last row of logits is about x_{k+1}. BOS is not part of the result
    and is never chosen, nor are `forbidden_ids`. Temperature, confidence and random numbers as in `sample`.
    Raises UserError for a length below 1 or a negative temperature.
    """
    if length < 1:
        raise UserError(f"length: {length} tokens cannot be sampled: use 1 or more")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature: {temperature} is not a finite number from 0 up: use 0 for greedy")
    batch = len(prompt_BP)
    tokens_BT = torch.cat([prompt_BP.new_full((batch, 1), bos_id), prompt_BP], dim=1)
    forbidden = sorted({bos_id, *forbidden_ids})
    confidence_BL = torch.zeros(batch, length, dtype=torch.float64, device=prompt_BP.device)
    for step in range(length):
        logits_BV = predict_logits(predict_causal, tokens_BT)[:, -1]

        def gumbel_row(row: int, step: int = step, count: int = logits_BV.shape[1]) -> np.ndarray:
            return gumbels(count, SequenceKey(seed, first_index + row), step, position=step)

        ids_B, confidence_BL[:, step] = choose_tokens(logits_BV, temperature, forbidden, gumbel_row)
        tokens_BT = torch.cat([tokens_BT, ids_B[:, None]], dim=1)
    revealed_at_BL = torch.arange(length, device=prompt_BP.device).expand(batch, length)
    return SampleResult(tokens_BT[:, 1:], revealed_at_BL, confidence_BL, length)
