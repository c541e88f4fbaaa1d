"""The Transformer of LLaDA (2502.09992, table 5): pre-RMSNorm, SwiGLU, RoPE, no biases, untied embeddings.

`causal` is the only difference between the masked-diffusion model (False) and its autoregressive baseline (True).
There is no time input: the noise level is visible in the number of masks (2502.09992, section 2).

Shapes: S sequence (S/T under sequence parallelism), B batch, D width, N query heads and K key/value heads of this
tensor rank, H head width, F features, R counting rows, V vocabulary, T tensor ranks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from parallel.context import ContextPeers, gather_sequence, local_positions
from parallel.engines.base import LEVEL_BINS, STATISTICS
from parallel.layers import Embedding, RMSNorm, VocabularyHead, column_linear, row_linear
from parallel.mesh import Mesh
from parallel.ring import ring_attention
from parallel.stages import Stage
from pretrain.batch import MicroBatch
from pretrain.shape import ModelShape


def rotary_table(positions: torch.Tensor, head_width: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [S, 1, 1, H] in float32 for rotate-half RoPE (Su et al. 2021; layout of the LLaMA code)."""
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width
    angles = torch.outer(positions.float(), theta**-exponents)
    angles_SH = torch.cat((angles, angles), dim=-1)[:, None, None, :]
    return angles_SH.cos(), angles_SH.sin()


def rotate(x_SBNH: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply RoPE to queries or keys."""
    cos, sin = (t.to(x_SBNH.dtype) for t in table)
    first, second = x_SBNH.chunk(2, dim=-1)
    return x_SBNH * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query self-attention over the whole window."""

    def __init__(self, shape: ModelShape, mesh: Mesh, config: Any, name: str, causal: bool) -> None:
        super().__init__()
        ranks, head = mesh.layout.tensor, shape.head_width
        self._heads, self._kv_heads, self._head_width = shape.heads // ranks, shape.kv_heads // ranks, head
        self._causal = causal
        self._mesh = mesh
        self._ring = mesh.layout.context_exchange == "ring"
        self._recompute = mesh.layout.recompute == "selective" and not self._ring  # a ring keeps no scores anyway
        parts = {
            f"{name}.query": shape.heads * head,
            f"{name}.key": shape.kv_heads * head,
            f"{name}.value": shape.kv_heads * head,
        }
        self.qkv = column_linear(mesh, config, shape.width, parts)
        self.output = row_linear(mesh, config, shape.heads * head, shape.width, f"{name}.output")

    def forward(
        self, x_SBD: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[S, B, D] → [S, B, D]; `mask` as `attention_mask` gives it, for the ring exchange logical lengths [B]."""
        n, k, h = self._heads, self._kv_heads, self._head_width
        fused = self.qkv(x_SBD)
        s, b, _ = fused.shape
        q_SBNH, k_SBKH, v_SBKH = fused.view(s, b, n + 2 * k, h).split((n, k, k), dim=2)
        q_SBNH, k_SBKH = rotate(q_SBNH, table), rotate(k_SBKH, table)
        attend = partial(checkpoint, self._attend, use_reentrant=False) if self._recompute else self._attend
        mixed_SBD = attend(q_SBNH, k_SBKH, v_SBKH, mask)
        return self.output(mixed_SBD)

    def _attend(
        self, q_SBNH: torch.Tensor, k_SBKH: torch.Tensor, v_SBKH: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if self._ring:
            return ring_attention(ContextPeers(self._mesh), q_SBNH, k_SBKH, v_SBKH, self._causal, mask).flatten(2)
        k_SBKH, v_SBKH = gather_sequence(self._mesh, k_SBKH), gather_sequence(self._mesh, v_SBKH)
        q, k, v = (t.permute(1, 2, 0, 3) for t in (q_SBNH, k_SBKH, v_SBKH))
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self._causal and mask is None, enable_gqa=self._kv_heads != self._heads
        )
        return mixed.permute(2, 0, 1, 3).flatten(2)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate·x) ⊙ up·x) (Shazeer 2020)."""

    def __init__(self, shape: ModelShape, mesh: Mesh, config: Any, name: str) -> None:
        super().__init__()
        self.gate_up = column_linear(mesh, config, shape.width, {f"{name}.gate": shape.ffn, f"{name}.up": shape.ffn})
        self.down = row_linear(mesh, config, shape.ffn, shape.width, f"{name}.down")

    def forward(self, x_SBD: torch.Tensor) -> torch.Tensor:
        """[S, B, D] → [S, B, D]."""
        gate_SBF, up_SBF = self.gate_up(x_SBD).chunk(2, dim=-1)
        return self.down(F.silu(gate_SBF) * up_SBF)


class Block(nn.Module):
    """x + attention(norm x), then x + feed_forward(norm x)."""

    def __init__(self, shape: ModelShape, mesh: Mesh, config: Any, name: str, causal: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(mesh, f"{name}.attention_norm", shape.width, shape.norm_epsilon)
        self.attention = Attention(shape, mesh, config, f"{name}.attention", causal)
        self.feed_forward_norm = RMSNorm(mesh, f"{name}.feed_forward_norm", shape.width, shape.norm_epsilon)
        self.feed_forward = FeedForward(shape, mesh, config, f"{name}.feed_forward")

    def forward(
        self, x_SBD: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """[S, B, D] → [S, B, D]."""
        x_SBD = x_SBD + self.attention(self.attention_norm(x_SBD), table, mask)
        return x_SBD + self.feed_forward(self.feed_forward_norm(x_SBD))


class Transformer(nn.Module):
    """Token ids to loss (training) or logits (inference); under a pipeline, one stage of that.

    A stage without the embedding takes `input_SBD` from the stage before, one without the head returns activations.
    """

    def __init__(
        self, shape: ModelShape, mesh: Mesh, config: Any, causal: bool, head_chunk: int, stage: Stage | None = None
    ) -> None:
        super().__init__()
        self.shape, self.causal = shape, causal
        self.stage = stage or Stage.whole(shape.layers)
        self.input_SBD: torch.Tensor | None = None
        self._mesh = mesh
        self._recompute = mesh.layout.recompute == "full"
        if self.stage.embeds:
            self.embedding = Embedding(mesh, config, "embedding", shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape, mesh, config, f"blocks.{i}", causal) for i in self.stage.layers)
        if self.stage.has_head:
            self.norm = RMSNorm(mesh, "norm", shape.width, shape.norm_epsilon)
            self.head = VocabularyHead(mesh, "head", shape.vocabulary, shape.width, head_chunk)

    def forward(self, batch: MicroBatch) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Weighted loss sum (nats, scalar) and its statistics [STATISTICS] in float64.

        The statistics are the loss sum, then Σ CE and row count per noise-level bin. A stage without the head
        returns its activations [S, B, D] instead.
        """
        x_SBD = self._hidden(batch.inputs_BS, batch.lengths_B, batch.documents_BS)
        if not self.stage.has_head:
            return x_SBD
        loss_sum, losses_R = self.head(self.norm(x_SBD), batch.rows_R, batch.targets_R, batch.weights_R)
        return loss_sum, _statistics(loss_sum, losses_R, batch.levels_R)

    def logits(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """Float32 logits [B, S, V] of every position; the whole model on one rank."""
        return self.head.logits(self.norm(self._hidden(ids_BS, None))).transpose(0, 1)

    def _hidden(
        self, ids_BS: torch.Tensor, lengths_B: torch.Tensor | None, documents_BS: torch.Tensor | None = None
    ) -> torch.Tensor:
        positions = local_positions(self._mesh, ids_BS.shape[1], ids_BS.device)
        table = rotary_table(positions, self.shape.head_width, self.shape.rope_theta)
        if self._mesh.layout.context_exchange == "ring":
            assert documents_BS is None, "the ring sees no documents"
            mask = lengths_B
        else:
            mask = attention_mask(positions, self._mesh.layout.context, self.causal, lengths_B, documents_BS)
        x_SBD = self.embedding(ids_BS) if self.stage.embeds else self.input_SBD
        assert x_SBD is not None, "a stage without the embedding needs the activations of the one before"
        for block in self.blocks:
            if self._recompute and self.training:
                x_SBD = checkpoint(block, x_SBD, table, mask, use_reentrant=False)
            else:
                x_SBD = block(x_SBD, table, mask)
        return x_SBD


def attention_mask(
    positions: torch.Tensor,
    context_ranks: int,
    causal: bool,
    lengths_B: torch.Tensor | None,
    documents_BS: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """What this rank's queries may see: bool, broadcastable to [B, N, queries, keys], True = may; None = the default.

    The default is everything, or with `causal` on one context rank the lower triangle. A bidirectional query sees
    no padding; for a causal one padding stands at the end, where no counting query looks. With `documents_BS` of the
    whole sequence, a query sees its own document only. RoPE is relative, so positions need not begin anew in each.
    """
    if documents_BS is not None:
        same = documents_BS[:, positions, None] == documents_BS[:, None, :]
        if causal:
            keys = torch.arange(documents_BS.shape[1], device=positions.device)
            same = same & (keys[None, :] <= positions[:, None])
        return same[:, None]
    if causal:
        if context_ranks == 1:
            return None
        keys = torch.arange(len(positions) * context_ranks, device=positions.device)
        return (keys[None, :] <= positions[:, None])[None, None]
    if lengths_B is None:
        return None
    keys = torch.arange(len(positions) * context_ranks, device=positions.device)
    return (keys[None, :] < lengths_B[:, None])[:, None, None, :]


def _statistics(loss_sum: torch.Tensor, losses_R: torch.Tensor, levels_R: torch.Tensor) -> torch.Tensor:
    stats = torch.zeros(STATISTICS, dtype=torch.float64, device=losses_R.device)
    stats[0] = loss_sum.detach()
    stats.index_add_(0, 1 + levels_R, losses_R.double())
    stats.index_add_(0, 1 + LEVEL_BINS + levels_R, torch.ones_like(losses_R, dtype=torch.float64))
    return stats
