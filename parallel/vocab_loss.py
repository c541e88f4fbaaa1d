"""Head and cross-entropy on the rows that count, a chunk at a time.

Half the positions of a masked batch need no logits. The rows that do are taken in chunks; each chunk's
gradient is computed right after its loss, so that the logits of one chunk are the most that ever exists:
peak memory is chunk x V/T floats instead of S x B x V. How many rows count differs from batch to batch, so the last
chunk is filled up with rows of weight zero: every product has the same shapes.
Legend: R rows, C rows of a chunk, D width, V vocabulary, T tensor ranks.
"""

from typing import Any

import torch
from torch.nn import functional as F

from parallel.mesh import Mesh


class _ChunkedLoss(torch.autograd.Function):
    """(hidden_RD, weight_VD) → (Σ w·CE, CE per row); the gradient is that of the sum."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: torch.Tensor,
        weight_VD: torch.Tensor,
        targets_R: torch.Tensor,
        weights_R: torch.Tensor,
        chunk_rows: int,
        local_vocabulary: int,
        parallel: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        grad_hidden_RD = torch.empty_like(hidden_RD)
        grad_weight_VD = torch.zeros_like(weight_VD)
        losses_R = torch.empty_like(weights_R)
        for start in range(0, max(len(hidden_RD), 1), chunk_rows):
            rows = slice(start, start + chunk_rows)
            hidden_CD, targets_C, weights_C = (_filled(t[rows], chunk_rows) for t in (hidden_RD, targets_R, weights_R))
            logits_CV = F.linear(hidden_CD, weight_VD).float()
            logits_CV[:, local_vocabulary:] = float("-inf")  # padding of the vocabulary is no token
            losses_C, grad_CV = _cross_entropy(logits_CV, targets_C, weights_C, parallel)
            grad_CV = grad_CV.to(hidden_RD.dtype)
            real = len(losses_R[rows])
            losses_R[rows] = losses_C[:real]
            grad_hidden_RD[rows] = torch.mm(grad_CV, weight_VD)[:real]
            grad_weight_VD.addmm_(grad_CV.t(), hidden_CD)
        ctx.save_for_backward(grad_hidden_RD, grad_weight_VD)
        ctx.mark_non_differentiable(losses_R)
        return (losses_R * weights_R).sum(), losses_R

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor, _grad_losses: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden_RD, grad_weight_VD = ctx.saved_tensors
        scale = grad_sum.to(grad_hidden_RD.dtype)
        return grad_hidden_RD * scale, grad_weight_VD * scale, None, None, None, None, None


def _filled(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`rows` with zeros after them, `count` in all."""
    missing = count - len(rows)
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:]))) if missing else rows


def _cross_entropy(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, weights_C: torch.Tensor, parallel: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy per row and the gradient of the weighted sum to this rank's logits, both float32."""
    with torch.enable_grad():
        leaf = logits_CV.detach().requires_grad_()
        if parallel:
            from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

            losses_C = vocab_parallel_cross_entropy(leaf.clone(), targets_C)
        else:
            losses_C = F.cross_entropy(leaf, targets_C, reduction="none")
        (grad_CV,) = torch.autograd.grad(losses_C, leaf, weights_C)
    return losses_C.detach(), grad_CV


def chunked_vocab_loss(
    mesh: Mesh,
    hidden_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_R: torch.Tensor,
    weights_R: torch.Tensor,
    chunk_rows: int,
    local_vocabulary: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of the rows' cross-entropies (nats, scalar) and the unweighted cross-entropy of each row [R].

    The head runs on ⌈R / chunk_rows⌉ chunks of `chunk_rows` rows, at least one, however many rows there are.
    `weight_VD` is this rank's shard of the head, its first `local_vocabulary` rows real, the others padding.
    `hidden_RD` must be such that its gradient is summed over tensor ranks by the caller's collective.
    """
    return _ChunkedLoss.apply(
        hidden_RD, weight_VD, targets_R, weights_R, chunk_rows, local_vocabulary, mesh.layout.tensor > 1
    )
