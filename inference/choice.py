"""One token from a row of logits: greedy or by the Gumbel-max trick, with its probability."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from inference.predictor import row_chunks
from runtime.errors import UserError


def choose_tokens(
    logits_NV: torch.Tensor,
    temperature: float,
    forbidden_ids: Sequence[int],
    gumbel_row: Callable[[int], NDArray[np.float64]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one id in every row; return (ids int64 [N], confidence float64 [N]).

    The choice is argmax(z + τ·g) in float64, g standard Gumbel numbers, which is LLaDA's
    argmax exp(z)/(−ln u)^τ in logarithms: a sample of softmax(z/τ). With τ = 0 it is argmax z and
    `gumbel_row` is not called; otherwise `gumbel_row(n)` gives the V numbers of row n.
    Confidence is the probability of the chosen id under softmax(z), whatever the temperature, over the
    ids that are not forbidden. Raises UserError for a forbidden id that is no id of the model.
    """
    rows, vocabulary = logits_NV.shape
    _check_forbidden(forbidden_ids, vocabulary)
    ids_N = torch.empty(rows, dtype=torch.int64, device=logits_NV.device)
    confidence_N = torch.empty(rows, dtype=torch.float64, device=logits_NV.device)
    for part in row_chunks(rows, vocabulary):
        scores_NV = logits_NV[part].to(torch.float64, copy=True)
        scores_NV[:, list(forbidden_ids)] = -torch.inf
        noisy_NV = scores_NV
        if temperature > 0:
            noise_NV = np.stack([gumbel_row(row) for row in range(part.start, part.stop)])
            noisy_NV = scores_NV + temperature * torch.from_numpy(noise_NV).to(scores_NV.device)
        ids_N[part] = noisy_NV.argmax(dim=-1)
        log_softmax_NV = torch.log_softmax(scores_NV, dim=-1)
        confidence_N[part] = log_softmax_NV.gather(1, ids_N[part, None])[:, 0].exp()
    return ids_N, confidence_N


def _check_forbidden(forbidden_ids: Sequence[int], vocabulary: int) -> None:
    for token in forbidden_ids:
        if not 0 <= token < vocabulary:
            raise UserError(
                f"forbidden_ids: {token} is no id of this model, whose ids are 0 … {vocabulary - 1}: "
                "use the tokenizer the model was trained with"
            )
    if len(set(forbidden_ids)) >= vocabulary:
        raise UserError(f"forbidden_ids: all {vocabulary} ids of the model are forbidden: leave some")
