"""Head and cross-entropy on the rows that count, a chunk at a time.

Half the positions of a masked batch need no logits. The rows that do are taken in chunks; each chunk's
gradient is computed right after its loss, so that the logits of one chunk are the most that ever exists:
peak memory is chunk x V/T floats instead of S x B x V. Legend: R rows, D width, V vocabulary, T tensor ranks.
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
        for start in range(0, hidden_RD.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            logits_RV = F.linear(hidden_RD[rows], weight_VD).float()
            logits_RV[:, local_vocabulary:] = float("-inf")  # padding of the vocabulary is no token
            losses_R[rows], grad_RV = _cross_entropy(logits_RV, targets_R[rows], weights_R[rows], parallel)
            grad_RV = grad_RV.to(hidden_RD.dtype)
            torch.mm(grad_RV, weight_VD, out=grad_hidden_RD[rows])
            grad_weight_VD.addmm_(grad_RV.t(), hidden_RD[rows])
        ctx.save_for_backward(grad_hidden_RD, grad_weight_VD)
        ctx.mark_non_differentiable(losses_R)
        return (losses_R * weights_R).sum(), losses_R

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor, _grad_losses: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden_RD, grad_weight_VD = ctx.saved_tensors
        scale = grad_sum.to(grad_hidden_RD.dtype)
        return grad_hidden_RD * scale, grad_weight_VD * scale, None, None, None, None, None


def _cross_entropy(
    logits_RV: torch.Tensor, targets_R: torch.Tensor, weights_R: torch.Tensor, parallel: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy per row and the gradient of the weighted sum to this rank's logits, both float32."""
    with torch.enable_grad():
        leaf = logits_RV.detach().requires_grad_()
        if parallel:
            from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

            losses_R = vocab_parallel_cross_entropy(leaf.clone(), targets_R)
        else:
            losses_R = F.cross_entropy(leaf, targets_R, reduction="none")
        (grad_RV,) = torch.autograd.grad(losses_R, leaf, weights_R)
    return losses_R.detach(), grad_RV


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

    `weight_VD` is this rank's shard of the head, its first `local_vocabulary` rows real, the others padding.
    `hidden_RD` must be such that its gradient is summed over tensor ranks by the caller's collective.
    """
    return _ChunkedLoss.apply(
        hidden_RD, weight_VD, targets_R, weights_R, chunk_rows, local_vocabulary, mesh.layout.tensor > 1
    )
