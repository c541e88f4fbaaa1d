"""What a recipe means before it costs anything: parameters, FLOPs, memory per rank, layouts."""

from __future__ import annotations

from typing import Any

from parallel.layout import ParallelConfig, padded_vocabulary
from pretrain.config import RunConfig
from pretrain.flops import six_nd, training_flops_per_token
from runtime.errors import UserError


def plan(config: RunConfig, world: int | None = None) -> dict[str, Any]:
    """The plan of a run on `world` ranks (default: one copy of the model) as JSON-ready values; see docs/contract.md.

    `flops.per_token_exact` counts the head on every position, as published figures do;
    `flops.per_token_computed` counts it on the rows that need it, which is what a step does and MFU uses.
    """
    train, shape = config.train, config.model
    world = world or config.parallel.model_size
    counts = shape.parameters()
    causal, length = config.objective.causal, train.sequence_length
    exact = training_flops_per_token(shape, length, causal)
    computed = training_flops_per_token(shape, length, causal, config.objective.head_rows)
    per_token_6nd = six_nd(counts.non_embedding_matrices, 1)
    tokens = train.total_tokens
    return {
        "name": config.name,
        "parameters": {"total": counts.total, "non_embedding": counts.non_embedding, "embedding": counts.embedding},
        "steps": train.steps,
        "tokens": tokens,
        "tokens_per_step": train.tokens_per_step,
        "flops": {
            "per_token_exact": exact.total,
            "per_token_computed": computed.total,
            "per_token_6nd": per_token_6nd,
            "total_exact": exact.total * tokens,
            "total_computed": computed.total * tokens,
            "total_6nd": per_token_6nd * tokens,
            "components": {"projections": exact.projections, "attention": exact.attention, "head": exact.head},
        },
        "world": world,
        "memory": {"per_rank": memory_per_rank(config, config.parallel, world)},
        "layouts": rank_layouts(config, world),
    }


def memory_per_rank(config: RunConfig, layout: ParallelConfig, world: int) -> dict[str, int]:
    """Bytes on the fullest rank by component; activations without recomputation unless the layout says so.

    Weights and gradients: 4 + 4 bytes a parameter in fp32; 2 + 4 in bf16 (gradients are reduced in fp32).
    Optimizer: two fp32 moments, in bf16 also a fp32 master, over data-parallel ranks with ZeRO-1.
    Activations per layer and token (counted from what the backward pass keeps): 2 norms, q k v, attention output,
    gate, up, their product, each of its own width. Logits: one chunk in fp32 and its gradient.
    """
    train, shape = config.train, config.model
    data, ranks = layout.data_size(world), layout.tensor
    norms = shape.parameters().norms
    vocabulary = padded_vocabulary(shape.vocabulary, ranks)
    matrices = shape.parameters().non_embedding_matrices + 2 * vocabulary * shape.width
    local = matrices // ranks + norms
    half = train.precision == "bf16"
    element = 2 if half else 4
    state = local * (12 if half else 8) // (data if layout.zero else 1)
    tokens = train.micro_batch * train.sequence_length
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    sharded = 3 * shape.ffn + 2 * queries + 2 * keys
    whole = 6 * shape.width  # block input, two normed inputs and their float32 copies, residual
    if layout.recompute == "full":
        sharded, whole = 0, shape.width
    per_token = sharded // ranks + whole // (ranks if layout.sequence else 1)
    activations = shape.layers * tokens * per_token * element
    chunk = min(train.head_chunk, tokens)
    return {
        "weights": local * element,
        "gradients": local * 4,
        "optimizer": state,
        "activations": activations,
        "logits": 2 * chunk * (vocabulary // ranks) * 4,
        "total": local * (element + 4) + state + activations + 2 * chunk * (vocabulary // ranks) * 4,
    }


def rank_layouts(config: RunConfig, world: int) -> list[dict[str, Any]]:
    """Layouts that are valid for `world` ranks, least memory per rank first."""
    rows: list[dict[str, Any]] = []
    for layout in _candidates(world):
        try:
            candidate = RunConfig.parse({**config.model_dump(), "parallel": layout.model_dump()}, config.name)
            candidate.micro_batches(world)
        except UserError:
            continue
        memory = memory_per_rank(candidate, layout, world)["total"]
        rows.append({"layout": layout.describe(world), "parallel": layout.model_dump(), "memory_bytes": memory})
    return sorted(rows, key=lambda row: row["memory_bytes"])


def _candidates(world: int) -> list[ParallelConfig]:
    sizes = [n for n in (1, 2, 4, 8) if world % n == 0]
    return [
        ParallelConfig(engine=engine, tensor=tensor, sequence=sequence, zero=1)
        for engine in ("megatron", "deepspeed")
        for tensor in sizes
        for sequence in ({tensor > 1} if engine == "megatron" else {False})
    ]
