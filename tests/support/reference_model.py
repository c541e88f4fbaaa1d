"""The model, its loss and its training loop once more, in plain PyTorch and for reading: the truth for layouts.

Nothing is shared with the engines or with the model under test: attention is an explicit softmax over explicit scores,
RoPE multiplies complex numbers, the cross-entropy is dense, AdamW and clipping are written out, and all of it runs in
one process in float64. Weights are a dict from logical name to the whole logical tensor.

Public names:

    logical_shapes(shape) -> dict[str, tuple[int, ...]]
        Names and shapes of all weights of a `pretrain.shape.ModelShape`, in order of depth.
    starting_weights(config, dtype=torch.float64) -> Weights
        What a run of `config` starts from.
    hidden(weights, shape, ids_BS, causal, lengths_B=None, documents_BS=None) -> Tensor [B, S, D]
    logits(weights, shape, ids_BS, causal, lengths_B=None, documents_BS=None) -> Tensor [B, S, V]
    batch_loss(weights, shape, batch, causal) -> scalar Tensor
        Σ weight · cross-entropy (nats) over the counting rows of a `MicroBatch` (masked or autoregressive).
    batch_gradients(weights, shape, batch, causal) -> (scalar Tensor, Weights)
        That sum and its gradient to every weight.
    reference_losses(config, feed, steps, weights=None, dtype=torch.float64) -> ReferenceRun
        Trains from step 0. `feed.step(k)` must give the whole global batch (one data rank, one context rank), in any
        micro-batches. `ReferenceRun.losses` and `.grad_norms` have an entry a step (mean loss per counting token in
        nats; norm before clipping), `.first_gradients` maps logical names to the gradients of the first step's mean
        loss before clipping, `.weights` are the final ones.

Legend: B batch, S sequence, D width, N heads, K key/value heads, H head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pretrain.config import RunConfig
from pretrain.shape import ModelShape

Weights = dict[str, torch.Tensor]


class BatchFeed(Protocol):
    """As `pretrain.feed.Feed` gives steps."""

    @property
    def step(self) -> Callable[[int], Any]: ...


@dataclass(frozen=True)
class ReferenceRun:
    """What a training run showed; see the module's docstring."""

    losses: list[float]
    grad_norms: list[float]
    first_gradients: Weights
    weights: Weights


def logical_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight."""
    width, keys = shape.width, shape.kv_heads * (shape.width // shape.heads)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (shape.vocabulary, width)}
    for i in range(shape.layers):
        block = {
            "attention_norm": (width,),
            "attention.query": (width, width),
            "attention.key": (keys, width),
            "attention.value": (keys, width),
            "attention.output": (width, width),
            "feed_forward_norm": (width,),
            "feed_forward.gate": (shape.ffn, width),
            "feed_forward.up": (shape.ffn, width),
            "feed_forward.down": (width, shape.ffn),
        }
        shapes |= {f"blocks.{i}.{name}": size for name, size in block.items()}
    return shapes | {"norm": (width,), "head": (shape.vocabulary, width)}


def starting_weights(config: RunConfig, dtype: torch.dtype = torch.float64) -> Weights:
    """The weights that a run of `config` starts from."""
    from parallel.logical import Rectangle
    from pretrain.initialise import initial_values

    return {
        name: initial_values(name, size, Rectangle((0,) * len(size), size), config.model, config.train.seed).to(dtype)
        for name, size in logical_shapes(config.model).items()
    }


def hidden(
    weights: Weights,
    shape: ModelShape,
    ids_BS: torch.Tensor,
    causal: bool,
    lengths_B: torch.Tensor | None = None,
    documents_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normed activations [B, S, D] before the head."""
    visible_BSS = _visible(ids_BS, causal, lengths_B, documents_BS)
    x_BSD = weights["embedding"][ids_BS]
    for i in range(shape.layers):
        block = {name.removeprefix(f"blocks.{i}."): w for name, w in weights.items() if name.startswith(f"blocks.{i}.")}
        normed_BSD = _rms_norm(x_BSD, block["attention_norm"], shape.norm_epsilon)
        x_BSD = x_BSD + _attention(normed_BSD, block, shape, visible_BSS)
        normed_BSD = _rms_norm(x_BSD, block["feed_forward_norm"], shape.norm_epsilon)
        x_BSD = x_BSD + _swiglu(normed_BSD, block)
    return _rms_norm(x_BSD, weights["norm"], shape.norm_epsilon)


def logits(
    weights: Weights,
    shape: ModelShape,
    ids_BS: torch.Tensor,
    causal: bool,
    lengths_B: torch.Tensor | None = None,
    documents_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits [B, S, V] of every position."""
    return hidden(weights, shape, ids_BS, causal, lengths_B, documents_BS) @ weights["head"].T


def batch_loss(weights: Weights, shape: ModelShape, batch: Any, causal: bool) -> torch.Tensor:
    """Σ weight · cross-entropy in nats over the counting rows; row r is position r // B of sequence r % B."""
    batch_size = batch.inputs_BS.shape[0]
    logits_BSV = logits(weights, shape, batch.inputs_BS, causal, batch.lengths_B, batch.documents_BS)
    log_normalisers_BS = logits_BSV.exp().sum(-1).log()
    position_R, sequence_R = batch.rows_R // batch_size, batch.rows_R % batch_size
    target_logits_R = logits_BSV[sequence_R, position_R, batch.targets_R]
    return (batch.weights_R * (log_normalisers_BS[sequence_R, position_R] - target_logits_R)).sum()


def batch_gradients(weights: Weights, shape: ModelShape, batch: Any, causal: bool) -> tuple[torch.Tensor, Weights]:
    """`batch_loss` and its gradient to every weight, in the weights' precision."""
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    loss = batch_loss(leaves, shape, batch, causal)
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def reference_losses(
    config: RunConfig,
    feed: BatchFeed,
    steps: int,
    weights: Weights | None = None,
    dtype: torch.dtype = torch.float64,
) -> ReferenceRun:
    """Train `steps` steps with AdamW (Loshchilov & Hutter 2019) and clipping by the global norm."""
    given = starting_weights(config, dtype) if weights is None else weights
    current = {name: w.detach().clone().to(dtype).requires_grad_() for name, w in given.items()}
    first = {name: torch.zeros_like(w) for name, w in current.items()}
    second = {name: torch.zeros_like(w) for name, w in current.items()}
    run = ReferenceRun([], [], {}, current)
    for step in range(steps):
        share = feed.step(step)
        batches = share.micro_batches
        loss = sum(batch_loss(current, config.model, b, config.objective.causal) for b in batches) / share.tokens
        gradients = dict(zip(current, torch.autograd.grad(loss, list(current.values())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        if step == 0:
            run.first_gradients.update(gradients)
        run.losses.append(float(loss.detach()))
        run.grad_norms.append(norm)
        _adamw_step(config, step, norm, current, gradients, first, second)
    return run


@torch.no_grad()
def _adamw_step(
    config: RunConfig, step: int, norm: float, weights: Weights, gradients: Weights, first: Weights, second: Weights
) -> None:
    settings, train = config.optimizer, config.train
    tokens = (step + 1) * train.global_batch * train.sequence_length
    rate = settings.lr * settings.schedule.factor(tokens, train.steps * train.global_batch * train.sequence_length)
    shrink = min(1.0, settings.clip / (norm + 1e-6))
    beta_1, beta_2 = settings.betas
    for name, weight in weights.items():
        gradient = gradients[name] * shrink
        if weight.dim() > 1:  # vectors are not decayed
            weight.mul_(1.0 - rate * settings.weight_decay)
        first[name].mul_(beta_1).add_((1.0 - beta_1) * gradient)
        second[name].mul_(beta_2).add_((1.0 - beta_2) * gradient.square())
        mean = first[name] / (1.0 - beta_1 ** (step + 1))
        deviation = (second[name] / (1.0 - beta_2 ** (step + 1))).sqrt()
        weight.sub_(rate * mean / (deviation + settings.epsilon))


def _visible(
    ids_BS: torch.Tensor, causal: bool, lengths_B: torch.Tensor | None, documents_BS: torch.Tensor | None
) -> torch.Tensor:
    """Which key (last dim) each query sees, bool [B, S, S]."""
    batch, length = ids_BS.shape
    index = torch.arange(length)
    visible_BSS = torch.ones(batch, length, length, dtype=torch.bool)
    if causal:
        visible_BSS &= index[None, None, :] <= index[None, :, None]
    if lengths_B is not None:
        visible_BSS &= index[None, None, :] < lengths_B[:, None, None]
    if documents_BS is not None:
        visible_BSS &= documents_BS[:, None, :] == documents_BS[:, :, None]
    return visible_BSS


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + epsilon).sqrt() * weight


def _swiglu(x_BSD: torch.Tensor, block: Weights) -> torch.Tensor:
    gate_BSF = x_BSD @ block["feed_forward.gate"].T
    return (gate_BSF * gate_BSF.sigmoid() * (x_BSD @ block["feed_forward.up"].T)) @ block["feed_forward.down"].T


def _attention(x_BSD: torch.Tensor, block: Weights, shape: ModelShape, visible_BSS: torch.Tensor) -> torch.Tensor:
    batch, length, width = x_BSD.shape
    head = width // shape.heads

    def heads(name: str, count: int) -> torch.Tensor:
        x_BSNH = (x_BSD @ block[f"attention.{name}"].T).reshape(batch, length, count, head)
        return x_BSNH.repeat_interleave(shape.heads // count, dim=2)

    q_BSNH = _turn(heads("query", shape.heads), shape.rope_theta)
    k_BSNH = _turn(heads("key", shape.kv_heads), shape.rope_theta)
    scores_BNSS = torch.einsum("bqnh,bknh->bnqk", q_BSNH, k_BSNH) / math.sqrt(head)
    exponentials_BNSS = scores_BNSS.exp() * visible_BSS[:, None]
    shares_BNSS = exponentials_BNSS / exponentials_BNSS.sum(-1, keepdim=True)
    mixed_BSNH = torch.einsum("bnqk,bknh->bqnh", shares_BNSS, heads("value", shape.kv_heads))
    return mixed_BSNH.reshape(batch, length, width) @ block["attention.output"].T


def _turn(x_BSNH: torch.Tensor, theta: float) -> torch.Tensor:
    """RoPE: number j and number j + H/2 of a head are one complex number, turned by position · theta^(-2j/H)."""
    head = x_BSNH.shape[-1]
    numbers = torch.complex(x_BSNH[..., : head // 2], x_BSNH[..., head // 2 :])
    rates = torch.tensor([theta ** (-2 * j / head) for j in range(head // 2)], dtype=torch.float64)
    angles = torch.outer(torch.arange(x_BSNH.shape[1], dtype=torch.float64), rates)
    turned = numbers * torch.polar(torch.ones_like(angles), angles)[None, :, None, :].to(numbers.dtype)
    return torch.cat((turned.real, turned.imag), dim=-1)
