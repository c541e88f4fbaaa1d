"""Where a formula claims to be exact, torch's counter finds the same operations in real passes.

torch counts a fused attention as dense, causal or not. So the real models are compared with the dense formula, and
a plain model that computes allowed pairs only is compared with the others.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from inference.autoregressive_sampler import sample_autoregressive
from inference.likelihood import autoregressive_nll, masked_bound
from inference.sampler import SamplerConfig, sample
from parallel.layout import chunk_rows
from pretrain.feed import Feed
from pretrain.flops import (
    FlopCount,
    Recompute,
    attended_in_documents,
    attended_positions,
    autoregressive_sampling_flops,
    block_diffusion_flops_per_token,
    bound_flops,
    diffusion_sampling_flops,
    forward_flops,
    forward_flops_per_token,
    hardware_flops_per_token,
    likelihood_flops,
    training_flops_per_token,
)
from pretrain.model import Transformer
from pretrain.objectives.autoregressive import AutoregressiveSamples
from pretrain.objectives.base import SampleObjective
from pretrain.objectives.documents import DocumentSamples
from pretrain.objectives.masked import MaskedSamples
from pretrain.objectives.noise import NoiseSource
from pretrain.shape import ModelShape
from tests.support.models import local_model
from tests.support.tiny import BOS, MASK, PAD, CountedTokens, tiny_config

EOS = 127
aten = torch.ops.aten
CPU_KERNELS: dict[Any, Callable[..., int]] = {  # the counter knows the CUDA kernels only
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(
        g, q, k, v
    ),
    aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1],
}


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    with FlopCounterMode(display=False, custom_mapping=CPU_KERNELS) as counter:
        yield counter.get_total_flops


def random_shape(seed: int) -> dict[str, int]:
    """Odd layer counts, vocabularies and features, grouped queries, heads of any even width."""
    source = random.Random(seed)
    kv_heads, group, head = source.choice([1, 2, 3]), source.choice([1, 2, 3]), 2 * source.randint(1, 6)
    return {
        "layers": source.randint(1, 4),
        "width": kv_heads * group * head,
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "ffn": source.randint(1, 40),
        "vocabulary": source.randint(MASK + 1, 200),
    }


RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")


class ShortDocuments(CountedTokens):
    """Documents of four tokens, the last of them EOS, and what is left of the window."""

    def tokens(self, index: int) -> np.ndarray:
        tokens = super().tokens(index)
        tokens[3::4] = EOS
        return tokens


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("seed", range(24))
def test_hardware_flops_of_a_real_training_pass(seed: int, documents: bool) -> None:
    kind, recompute = ("masked", "autoregressive")[seed % 2], RECOMPUTE[seed % 3]
    length, batch = 5 + 3 * seed, 1 + seed % 3
    masked = {"objective__random_length": 0.0} if kind == "masked" else {}
    most = (1, 7)[seed // 6 % 2]  # rows of the head at a time
    config = tiny_config(
        kind, model=random_shape(seed), train__sequence_length=length, train__head_chunk=most,
        data__document_mask=documents, **masked,
    )  # fmt: skip
    noise = NoiseSource(seed, length, batch, 1e-3, 0.0, stratified=True)
    objective: SampleObjective = MaskedSamples(noise, MASK, PAD) if kind == "masked" else AutoregressiveSamples(BOS)
    if documents:
        objective = DocumentSamples(objective, EOS, BOS if kind == "autoregressive" else None)
    (micro_batch,) = Feed(ShortDocuments(length), objective, batch, batch, 0, 1).step(0).micro_batches
    assert (micro_batch.documents_BS is not None) == documents
    model = local_model(config, recompute=recompute).train()
    with counted() as total:
        model(micro_batch)[0].backward()
    positions, rows, chunk = batch * length, len(micro_batch.rows_R), chunk_rows(most, batch * length)
    filled_up = -(-rows // chunk) * chunk - rows
    work = (config.model, length, False, rows / positions)
    expected = hardware_flops_per_token(*work, recompute=recompute)
    filling = 3 * forward_flops(config.model, 0, 1.0).head * filled_up
    assert total() == pytest.approx(expected.total * positions + filling, rel=1e-12)
    useful = training_flops_per_token(*work)
    assert expected.total - expected.recompute == pytest.approx(useful.total, rel=1e-12)


class Pairs(nn.Module):
    """Matrix products of the layers and the head, and nothing else; each query meets its allowed keys only."""

    def __init__(self, shape: ModelShape, allowed_LM: torch.Tensor) -> None:
        super().__init__()
        self.shape, self.allowed_LM = shape, allowed_LM
        kv_width = shape.kv_heads * shape.head_width
        sizes = [(shape.width, shape.width + 2 * kv_width), (shape.width, shape.width)]
        sizes += [(shape.width, 2 * shape.ffn), (shape.ffn, shape.width)]
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in sizes) for _ in range(shape.layers)
        )
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, x_LD: torch.Tensor, head_rows: int) -> torch.Tensor:
        for qkv, out, up, down in self.layers:
            x_LD = x_LD + out(self.attention(qkv(x_LD)))
            gate_LF, value_LF = up(x_LD).chunk(2, dim=-1)
            x_LD = x_LD + down(gate_LF.sigmoid() * value_LF)
        return self.head(x_LD[:head_rows])

    def attention(self, qkv_LE: torch.Tensor) -> torch.Tensor:
        heads_LNH = qkv_LE.unflatten(-1, (-1, self.shape.head_width))
        n, k = self.shape.heads, self.shape.kv_heads
        q_NLH, k_KLH, v_KLH = heads_LNH.transpose(0, 1).split([n, k, k])
        k_NLH, v_NLH = k_KLH.repeat_interleave(n // k, 0), v_KLH.repeat_interleave(n // k, 0)
        rows = []
        for i, allowed_M in enumerate(self.allowed_LM):
            weights_N1M = (q_NLH[:, i : i + 1] @ k_NLH[:, allowed_M].transpose(1, 2)).softmax(-1)
            rows.append(weights_N1M @ v_NLH[:, allowed_M])
        return torch.cat(rows, dim=1).transpose(0, 1).flatten(1)


def documents_mask(lengths: list[int], causal: bool) -> torch.Tensor:
    mask = torch.block_diag(*[torch.ones(n, n) for n in lengths]).bool()
    return mask.tril() if causal else mask


def block_diffusion_mask(length: int, block: int) -> torch.Tensor:
    """Noisy then clean half: noisy sees its own noisy block and earlier clean ones, clean its own and earlier clean."""
    number = torch.arange(length) // block
    q, k = number[:, None], number[None, :]
    never = torch.zeros(length, length, dtype=torch.bool)
    return torch.cat([torch.cat([q == k, q > k], 1), torch.cat([never, q >= k], 1)])


LENGTH, BLOCK, DOCUMENTS = 12, 3, [5, 1, 4, 2]
KINDS: dict[str, tuple[torch.Tensor, Callable[[ModelShape, float], FlopCount], int]] = {
    "bidirectional": (
        torch.ones(LENGTH, LENGTH).bool(),
        lambda shape, rows: training_flops_per_token(shape, LENGTH, False, rows),
        LENGTH,
    ),
    "causal": (
        torch.ones(LENGTH, LENGTH).bool().tril(),
        lambda shape, rows: training_flops_per_token(shape, LENGTH, True, rows),
        LENGTH,
    ),
    "documents": (
        documents_mask(DOCUMENTS, causal=False),
        lambda shape, rows: forward_flops(shape, attended_in_documents(DOCUMENTS, False), rows).times(3),
        LENGTH,
    ),
    "causal documents": (
        documents_mask(DOCUMENTS, causal=True),
        lambda shape, rows: forward_flops(shape, attended_in_documents(DOCUMENTS, True), rows).times(3),
        LENGTH,
    ),
    "blocks": (
        block_diffusion_mask(LENGTH, BLOCK),
        lambda shape, rows: block_diffusion_flops_per_token(shape, LENGTH, BLOCK, rows),
        LENGTH,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_allowed_pairs_are_what_the_formula_counts(kind: str, seed: int) -> None:
    allowed_LM, formula, clean = KINDS[kind]
    shape = ModelShape(**random_shape(seed))
    rows = (1, 5, 6, 11, 12)[seed]
    x_LD = torch.randn(len(allowed_LM), shape.width, requires_grad=True)  # as the embedding's output is
    with counted() as total:
        Pairs(shape, allowed_LM)(x_LD, rows).sum().backward()
    assert total() == pytest.approx(formula(shape, rows / clean).total * clean, rel=1e-12)


def test_pairs_of_block_diffusion_and_of_causal_attention() -> None:
    for length, block in ((12, 3), (12, 12), (20, 1)):
        assert block_diffusion_mask(length, block).sum() == length**2 + length * block
    assert attended_positions(12, causal=False) / attended_positions(12, causal=True) == 2 * 12 / 13


def dense_minus_causal(shape: ModelShape, length: int) -> float:
    """What a kernel that masks computes in vain for one causal sequence: the counter includes it."""
    parts = [forward_flops_per_token(shape, length, causal).attention * length for causal in (False, True)]
    return parts[0] - parts[1]


@pytest.mark.parametrize("seed", range(3))
def test_flops_of_inference(seed: int) -> None:
    shape = ModelShape(**random_shape(seed))
    masked, causal = model_of("masked", shape), model_of("autoregressive", shape)
    tokens_BL = torch.randint(0, 100, (2, 9))
    with counted() as total:
        masked_bound(masked.logits, tokens_BL, MASK, draws=3, seed=0, batch_rows=4)
    assert total() == pytest.approx(2 * bound_flops(shape, 9, draws=3).total, rel=1e-12)
    with counted() as total:
        autoregressive_nll(causal.logits, tokens_BL, BOS)
    exact = likelihood_flops(shape, 9).total + dense_minus_causal(shape, 9)
    assert total() == pytest.approx(2 * exact, rel=1e-12)
    prompt_BP = tokens_BL[:, :3]
    with counted() as total:
        sample(masked.logits, prompt_BP, SamplerConfig(length=6, block_length=3, steps=4), MASK, seed=0)
    assert total() == pytest.approx(2 * diffusion_sampling_flops(shape, 3, 6, steps=4).total, rel=1e-12)
    with counted() as total:
        sample_autoregressive(causal.logits, prompt_BP, 5, BOS, seed=0)
    exact = autoregressive_sampling_flops(shape, 4, 5, cached=False).total  # BOS and the prompt
    exact += sum(dense_minus_causal(shape, n) for n in range(4, 9))
    assert total() == pytest.approx(2 * exact, rel=1e-12)


def model_of(kind: str, shape: ModelShape) -> Transformer:
    return local_model(tiny_config(kind, model=shape.model_dump())).eval()
