"""Ring attention: keys and values travel round the context ranks; each rank attends to the part that it holds.

Liu, Zaharia & Abbeel 2023 (2310.01889), with parts merged by their log-sum-exp and the backward pass of
FlashAttention-2 (Dao 2023, 2307.08691, section 3.1): scores are computed again from the log-sum-exp, and the gradient
of a part travels on behind it. A rank holds two parts of keys and values, never all, and a block of scores.

All sums are in float32 (float64 for float64 inputs). Shapes: B batch, K key/value heads, G query heads of a key head,
Q queries of this rank, S keys of a part, H head width; kv_2BKSH stacks keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

_BLOCK_SCORES = 1 << 23  # of one block of queries: 32 MiB in float32


class Peers(Protocol):
    """A rank's place in the ring."""

    rank: int
    size: int

    def pass_on(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start sending `tensor` to the next rank; the result waits for what the previous rank sent."""
        ...


@dataclass(frozen=True)
class Sight:
    """What queries of part `rank` of the sequence see: all keys below `lengths_B`; with `causal` no later ones.

    Under `causal`, `lengths_B` plays no part: padding stands at the end, where no counting query looks.
    """

    rank: int
    causal: bool
    lengths_B: torch.Tensor | None = None

    def skips(self, part: int) -> bool:
        """Whether no query sees any key of `part`."""
        return self.causal and part > self.rank

    def mask(self, part: int, keys: int, rows: range, device: torch.device) -> torch.Tensor | None:
        """Which of the `keys` keys of `part` the queries `rows` see: bool, to [B, K, G, rows, keys]; None = all."""
        if self.causal:
            if part < self.rank:
                return None
            queries = torch.arange(rows.start, rows.stop, device=device)
            return torch.arange(keys, device=device)[None, :] <= queries[:, None]
        if self.lengths_B is None:
            return None
        positions = torch.arange(keys, device=device) + part * keys
        return (positions < self.lengths_B[:, None])[:, None, None, None, :]


def attend(
    q_BKGQH: torch.Tensor, kv_2BKSH: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention to one part: output [B, K, G, Q, H] and log-sum-exp of the scores [B, K, G, Q].

    A query that sees no key of the part has output 0 and log-sum-exp -∞.
    """
    scores = _scores(q_BKGQH, kv_2BKSH[0], mask)
    lse = scores.logsumexp(-1)
    weights = scores.sub_(_finite(lse)[..., None]).exp_()
    return (weights.flatten(2, 3) @ kv_2BKSH[1]).view_as(q_BKGQH), lse


def merge(
    out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to two sets of keys, given the attention to each: `attend`'s results [..., H] and [...]."""
    total = torch.logaddexp(lse, other_lse)
    base = _finite(total)
    share, other_share = (lse - base).exp_(), (other_lse - base).exp_()
    return out * share[..., None] + other * other_share[..., None], total


def attend_gradients(
    grad_BKGQH: torch.Tensor,
    q_BKGQH: torch.Tensor,
    kv_2BKSH: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients to queries and to one part's keys and values, of attention to all parts.

    `lse` is that over all parts, `delta` [B, K, G, Q] the sum over H of output times gradient.
    """
    k, v = kv_2BKSH
    weights = _scores(q_BKGQH, k, mask).sub_(_finite(lse)[..., None]).exp_().flatten(2, 3)
    grad, q = grad_BKGQH.flatten(2, 3), q_BKGQH.flatten(2, 3)
    grad_v = weights.transpose(-1, -2) @ grad
    grad_scores = (grad @ v.transpose(-1, -2)).sub_(delta.flatten(2, 3)[..., None]).mul_(weights)
    scale = _scale(q)
    grad_q = ((grad_scores @ k) * scale).view_as(q_BKGQH)
    grad_k = (grad_scores.transpose(-1, -2) @ q) * scale
    return grad_q, torch.stack((grad_k, grad_v))


def ring_forward(
    q_BKGQH: torch.Tensor, kv_2BKSH: torch.Tensor, sight: Sight, peers: Peers, block_scores: int = _BLOCK_SCORES
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of this rank's queries to the keys and values of all ranks: output and log-sum-exp."""
    wide = _wide(q_BKGQH)
    out = q_BKGQH.new_zeros(q_BKGQH.shape, dtype=wide)
    lse = q_BKGQH.new_full(q_BKGQH.shape[:-1], float("-inf"), dtype=wide)
    for part, held in _visits(kv_2BKSH, peers):
        if sight.skips(part):
            continue
        kv = held.to(wide)
        for rows in _blocks(q_BKGQH, kv, block_scores):
            here = slice(rows.start, rows.stop)
            mask = sight.mask(part, kv.shape[3], rows, kv.device)
            block = attend(q_BKGQH[..., here, :].to(wide), kv, mask)
            out[..., here, :], lse[..., here] = merge(out[..., here, :], lse[..., here], *block)
    return out, lse


def ring_backward(
    grad_BKGQH: torch.Tensor,
    q_BKGQH: torch.Tensor,
    kv_2BKSH: torch.Tensor,
    out_BKGQH: torch.Tensor,
    lse: torch.Tensor,
    sight: Sight,
    peers: Peers,
    block_scores: int = _BLOCK_SCORES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients to this rank's queries, keys and values, of `ring_forward`'s output.

    What ranks add to a part's gradient follows the part, a step behind: it leaves the next rank after the first
    exchange, and comes home after the last.
    """
    wide = _wide(q_BKGQH)
    delta = (grad_BKGQH.to(wide) * out_BKGQH).sum(-1)
    grad_q = q_BKGQH.new_zeros(q_BKGQH.shape, dtype=wide)
    own = kv_2BKSH.new_zeros(kv_2BKSH.shape, dtype=wide)
    arriving: Callable[[], torch.Tensor] | None = None
    for part, held in _visits(kv_2BKSH, peers):
        grad_kv = own if part == peers.rank else torch.zeros_like(own)
        if not sight.skips(part):
            kv = held.to(wide)
            for rows in _blocks(q_BKGQH, kv, block_scores):
                here = slice(rows.start, rows.stop)
                grad, q = grad_BKGQH[..., here, :].to(wide), q_BKGQH[..., here, :].to(wide)
                mask = sight.mask(part, kv.shape[3], rows, kv.device)
                to_q, to_kv = attend_gradients(grad, q, kv, lse[..., here], delta[..., here], mask)
                grad_q[..., here, :] += to_q
                grad_kv += to_kv
        if part != peers.rank:
            arriving = peers.pass_on(grad_kv if arriving is None else grad_kv.add_(arriving()))
    return grad_q, own if arriving is None else own.add_(arriving())


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BKGQH: torch.Tensor, kv_2BKSH: torch.Tensor, sight: Sight, peers: Peers) -> torch.Tensor:
        out, lse = ring_forward(q_BKGQH, kv_2BKSH, sight, peers)
        out = out.to(q_BKGQH.dtype)
        ctx.save_for_backward(q_BKGQH, kv_2BKSH, out, lse)
        ctx.sight, ctx.peers = sight, peers
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, kv, out, lse = ctx.saved_tensors
        grad_q, grad_kv = ring_backward(grads[0], q, kv, out, lse, ctx.sight, ctx.peers)
        return grad_q.to(q.dtype), grad_kv.to(kv.dtype), None, None


def ring_attention(
    peers: Peers,
    q_SBNH: torch.Tensor,
    k_SBKH: torch.Tensor,
    v_SBKH: torch.Tensor,
    causal: bool,
    lengths_B: torch.Tensor | None,
) -> torch.Tensor:
    """Grouped-query attention [S/C, B, N, H] of this context rank's queries to the whole sequence.

    `lengths_B`: logical lengths, keys beyond which are not seen (not under `causal`, see `Sight`). Every rank of the
    ring must call it, and its backward pass, in the same order.
    """
    kv_heads = k_SBKH.shape[2]
    q_BKGQH = q_SBNH.unflatten(2, (kv_heads, -1)).permute(1, 2, 3, 0, 4)
    kv_2BKSH = torch.stack((k_SBKH.permute(1, 2, 0, 3), v_SBKH.permute(1, 2, 0, 3)))
    out_BKGQH = _RingAttention.apply(q_BKGQH, kv_2BKSH, Sight(peers.rank, causal, lengths_B), peers)
    return out_BKGQH.permute(3, 0, 1, 2, 4).flatten(2, 3)


def _visits(kv: torch.Tensor, peers: Peers) -> Iterator[tuple[int, torch.Tensor]]:
    """Each part with its number, this rank's own first; the next one travels while a part is in use."""
    for step in range(peers.size):
        arriving = peers.pass_on(kv) if step + 1 < peers.size else None
        yield (peers.rank - step) % peers.size, kv
        if arriving is not None:
            kv = arriving()


def _blocks(q: torch.Tensor, kv: torch.Tensor, block_scores: int) -> Iterator[range]:
    """Ranges of queries whose scores against a part are at most `block_scores`, at least one query each."""
    queries = q.shape[3]
    rows = max(1, block_scores // (q.numel() // (queries * q.shape[4]) * kv.shape[3]))
    for start in range(0, queries, rows):
        yield range(start, min(start + rows, queries))


def _scores(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scaled scores [B, K, G, Q, S], -∞ where `mask` is False."""
    scores = (q.flatten(2, 3) * _scale(q)) @ k.transpose(-1, -2)
    scores = scores.unflatten(2, q.shape[2:4])
    return scores if mask is None else scores.masked_fill_(~mask, float("-inf"))


def _scale(q: torch.Tensor) -> float:
    return q.shape[-1] ** -0.5


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _finite(lse: torch.Tensor) -> torch.Tensor:
    """0 where nothing was seen, so that exp(-∞ - lse) is 0 and not NaN."""
    return lse.masked_fill(lse == float("-inf"), 0.0)
