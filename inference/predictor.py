"""What every sampler and scorer asks of a model: token ids in, logits out."""

from collections.abc import Callable, Iterator

import torch

# int64 token ids [B, L], mask ids among them -> logits [B, L, V] of any floating type.
# A masked-diffusion predictor's row i is about token i; a causal predictor's row i is about token i + 1.
Predictor = Callable[[torch.Tensor], torch.Tensor]

_NUMBERS_PER_CHUNK = 1 << 23  # float64 copies of logits stay below 64 MiB


def predict_logits(predict: Predictor, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Call `predict` and check its shape: logits [B, L, V] for tokens [B, L]."""
    logits_BLV = predict(tokens_BL)
    assert logits_BLV.ndim == 3, f"a predictor returns [B, L, V], not {tuple(logits_BLV.shape)}"
    assert logits_BLV.shape[:2] == tokens_BL.shape, (
        f"logits {tuple(logits_BLV.shape)} for tokens {tuple(tokens_BL.shape)}"
    )
    return logits_BLV


def row_chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Cut `rows` rows of `vocabulary` logits into slices small enough for a float64 copy."""
    size = max(1, _NUMBERS_PER_CHUNK // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def log_probability(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """Natural log of the softmax probability of `ids_N`, float64 [N], computed in float64 by chunks."""
    result_N = torch.empty(len(ids_N), dtype=torch.float64, device=logits_NV.device)
    for rows in row_chunks(*logits_NV.shape):
        log_softmax_NV = torch.log_softmax(logits_NV[rows].double(), dim=-1)
        result_N[rows] = log_softmax_NV.gather(1, ids_N[rows, None])[:, 0]
    return result_N
