"""Ring attention against a dense softmax in float64; the ranks of the ring are threads of this process."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from parallel.ring import Sight, attend, attend_gradients, merge, ring_attention, ring_backward, ring_forward
from pretrain.planning.estimate import traffic
from tests.support.tiny import tiny_config

BATCH, HEADS, WIDTH = 3, 4, 6
CAUSAL, FULL, PADDED = "causal", "full", "padded"


@dataclass(frozen=True)
class ThreadPeers:
    """A place in a ring of threads; what is sent is copied as late as can be, so that a change on its way shows."""

    rank: int
    size: int
    inboxes: Sequence[queue.Queue[torch.Tensor]]
    sent: list[int] = field(default_factory=list)

    def pass_on(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        self.sent.append(tensor.nbytes)
        self.inboxes[(self.rank + 1) % self.size].put(tensor)
        return lambda: self.inboxes[self.rank].get(timeout=60).clone()


def on_ring(size: int, work: Callable[[ThreadPeers], Any]) -> list[Any]:
    """What `work` returns on each rank."""
    inboxes: list[queue.Queue[torch.Tensor]] = [queue.Queue() for _ in range(size)]
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        results[rank] = work(ThreadPeers(rank, size, inboxes))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None for result in results), "a rank failed"
    assert all(inbox.empty() for inbox in inboxes), "a message that nobody waits for"
    return results


def inputs(length: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """q, k, v and the gradient of the output, sequence first; scores far apart, so that maxima matter."""
    generator = torch.Generator().manual_seed(length * 10 + kv_heads)
    heads = (HEADS, kv_heads, kv_heads, HEADS)
    drawn = [torch.randn(length, BATCH, n, WIDTH, generator=generator, dtype=torch.float64) for n in heads]
    drawn[0] *= 6
    return tuple(tensor.to(dtype) for tensor in drawn)


def lengths_of(kind: str, length: int) -> torch.Tensor | None:
    """Logical lengths: one key, a whole part and one key, everything."""
    return torch.tensor([1, length // 2 + 1, length]) if kind == PADDED else None


def dense(kind: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output and gradients of q, k, v by an explicit softmax in float64."""
    q, k, v = (tensor.double().requires_grad_() for tensor in tensors[:3])
    length, groups = len(q), HEADS // k.shape[2]
    wide_k, wide_v = (tensor.repeat_interleave(groups, dim=2) for tensor in (k, v))
    scores = torch.einsum("qbnh,kbnh->bnqk", q, wide_k) / WIDTH**0.5
    seen = torch.ones(BATCH, 1, length, length, dtype=torch.bool)
    if kind == CAUSAL:
        seen = seen.tril()
    lengths = lengths_of(kind, length)
    if lengths is not None:
        seen = seen & (torch.arange(length) < lengths[:, None])[:, None, None, :]
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    out = torch.einsum("bnqk,kbnh->qbnh", weights, wide_v)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), tensors[3].double())


def ring(kind: str, size: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same through `ring_attention` and autograd, each rank with its part of the sequence."""

    def work(peers: ThreadPeers) -> tuple[torch.Tensor, ...]:
        q, k, v, grad = (tensor.chunk(size)[peers.rank].clone() for tensor in tensors)
        leaves = tuple(tensor.requires_grad_() for tensor in (q, k, v))
        out = ring_attention(peers, *leaves, kind == CAUSAL, lengths_of(kind, len(tensors[0])))
        return out.detach(), *torch.autograd.grad(out, leaves, grad)

    return tuple(torch.cat(parts) for parts in zip(*on_ring(size, work), strict=True))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", [FULL, PADDED, CAUSAL])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_output_and_gradients_are_the_dense_ones(size: int, kind: str, kv_heads: int) -> None:
    tensors = inputs(12, kv_heads)
    for found, expected in zip(ring(kind, size, *tensors), dense(kind, *tensors), strict=True):
        assert found.dtype == torch.float64
        assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("kind", [FULL, PADDED, CAUSAL])
def test_blocks_of_queries_change_nothing(kind: str) -> None:
    """Down to one query at a time; the last block is a smaller one."""
    q, k, v, grad = inputs(20, 2)

    def work(block_scores: int, peers: ThreadPeers) -> tuple[torch.Tensor, ...]:
        mine = [tensor.chunk(2)[peers.rank] for tensor in (q, k, v, grad)]
        q_BKGQH, grad_BKGQH = (mine[i].unflatten(2, (2, -1)).permute(1, 2, 3, 0, 4) for i in (0, 3))
        kv_2BKSH = torch.stack((mine[1].permute(1, 2, 0, 3), mine[2].permute(1, 2, 0, 3)))
        sight = Sight(peers.rank, kind == CAUSAL, lengths_of(kind, 20))
        out, lse = ring_forward(q_BKGQH, kv_2BKSH, sight, peers, block_scores)
        grads = ring_backward(grad_BKGQH, q_BKGQH, kv_2BKSH, out, lse, sight, peers, block_scores)
        return out, lse, *grads

    def together(block_scores: int) -> list[torch.Tensor]:
        return [tensor for rank in on_ring(2, lambda peers: work(block_scores, peers)) for tensor in rank]

    whole = together(1 << 30)
    one_query = BATCH * HEADS * 10
    for block_scores in (1, one_query, 3 * one_query, 3 * one_query + 1):
        for found, expected in zip(together(block_scores), whole, strict=True):
            assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", [FULL, PADDED, CAUSAL])
def test_half_precision_only_rounds_what_goes_in_and_out(kind: str) -> None:
    tensors = inputs(16, 2, torch.bfloat16)
    out, *gradients = ring(kind, 4, *tensors)
    expected, *expected_gradients = dense(kind, *tensors)
    assert out.dtype == torch.bfloat16
    assert ((out.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()
    for found, gradient in zip(gradients, expected_gradients, strict=True):
        assert found.dtype == torch.bfloat16
        # the output was rounded before the backward pass used it
        assert (found.double() - gradient).abs().max() <= 2**-7 * gradient.abs().max()


def blocks(keys: int, parts: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(BATCH, 2, 2, 5, WIDTH, generator=generator, dtype=torch.float64)
    kv = torch.randn(2, BATCH, 2, keys, WIDTH, generator=generator, dtype=torch.float64)
    return q, kv, list(kv.chunk(parts, dim=3))


def test_merged_in_any_order_parts_are_the_whole() -> None:
    q, kv, parts = blocks(12, 3)
    out, lse = attend(q, kv, None)
    for order in itertools.permutations(parts):
        merged = attend(q, order[0], None)
        for part in order[1:]:
            merged = merge(*merged, *attend(q, part, None))
        assert torch.allclose(merged[0], out, rtol=1e-13, atol=1e-13)
        assert torch.allclose(merged[1], lse, rtol=1e-13, atol=1e-13)


def test_a_part_of_padding_only_adds_nothing() -> None:
    """Output 0, log-sum-exp -∞, no gradient, nothing changed by merging it, and no NaN anywhere."""
    q, kv, _ = blocks(4, 1)
    nothing = torch.zeros(BATCH, 1, 1, 1, 4, dtype=torch.bool)
    out, lse = attend(q, kv, nothing)
    assert not out.any()
    assert lse.isneginf().all()
    seen = attend(q, kv, None)
    for merged in (merge(*seen, out, lse), merge(out, lse, *seen)):
        assert torch.equal(merged[0], seen[0])
        assert torch.equal(merged[1], seen[1])
    both = merge(out, lse, out, lse)
    assert not both[0].any()
    assert both[1].isneginf().all()
    for total in (seen[1], lse):
        for gradient in attend_gradients(torch.ones_like(q), q, kv, total, torch.ones_like(lse), nothing):
            assert not gradient.any()


def test_huge_scores_stay_finite() -> None:
    q, k, v, grad = inputs(8, 4)
    tensors = (q * 1e5, k, v, grad)
    for found, expected in zip(ring(FULL, 2, *tensors), dense(FULL, *tensors), strict=True):
        assert found.isfinite().all()
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_only_inputs_output_and_log_sum_exp_are_kept() -> None:
    """For the backward pass: no scores, and no keys and values of other ranks."""
    q, k, v, _ = (tensor.requires_grad_() for tensor in inputs(64, 2))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def work(peers: ThreadPeers) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            part = [tensor.chunk(2)[peers.rank].detach().requires_grad_() for tensor in (q, k, v)]
            return ring_attention(peers, part[0], part[1], part[2], False, None)

    held = on_ring(2, work)
    assert all(out.requires_grad for out in held)
    element, tokens = 8, 64 * BATCH
    # q's storage is the whole sequence's here, since a part is a view of it
    assert sum(kept.values()) == element * tokens * (2 * HEADS * WIDTH + 2 * 2 * WIDTH + HEADS)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("size", [2, 4])
def test_what_is_sent_is_what_the_plan_says(size: int, precision: str, dtype: torch.dtype, recompute: str) -> None:
    """Per layer and micro-batch; `full` recomputation runs the forward pass twice."""
    shape = {"model__width": HEADS * WIDTH, "model__heads": HEADS, "model__kv_heads": 2, "model__layers": 1}
    train = {"train__sequence_length": 8, "train__global_batch": BATCH, "train__micro_batch": BATCH}
    ranks = {"parallel__context": size, "parallel__context_exchange": "ring", "parallel__recompute": recompute}
    config = tiny_config(**shape, **train, **ranks, train__precision=precision)
    tensors = inputs(8, 2, dtype)

    def work(peers: ThreadPeers) -> list[int]:
        q, k, v, grad = (tensor.chunk(size)[peers.rank].clone().requires_grad_() for tensor in tensors)
        for _ in range(2 if recompute == "full" else 1):
            out = ring_attention(peers, q, k, v, False, None)
        out.backward(grad)
        return peers.sent

    expected = traffic(config, config.parallel, size).context
    assert [sum(sent) for sent in on_ring(size, work)] == [expected] * size
