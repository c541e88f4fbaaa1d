"""Bytes on a rank under a layout, by what they are for.

State follows from what the engines keep; activations from what each operation of the model saves for its backward
pass. `tests/pretrain/test_memory.py` compares both with the tensors that live in a step; `bench.memory` with processes.
Left out: what the framework itself takes, fragmentation, and what the optimizer's update needs while no activations
are there (with DeepSpeed about 12 bytes a parameter of its shard).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import get_args

from parallel.layout import ParallelConfig, chunk_rows, padded_vocabulary
from parallel.stages import Stage
from pretrain.config import RunConfig
from pretrain.stage_cut import chunks_by_rank, parameters_per_rank

_FP32 = 4
BUCKET, MOST_LIVE = 500_000_000, 1_000_000_000
"""Elements: DeepSpeed's `reduce_bucket_size`, and with ZeRO-3 its `stage3_max_live_parameters`, by default."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank. `buffers`: what DeepSpeed reduces gradients in and gathers weights into (megatron reduces and
    gathers in place); `logits`: all that the head needs.
    """

    weights: int
    gradients: int
    buffers: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All components."""
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        """Components and `total`, for JSON."""
        return {**asdict(self), "total": self.total}


def memory(config: RunConfig, layout: ParallelConfig, world: int) -> Memory:
    """Memory of the fullest rank."""
    return max(memory_by_stage(config, layout, world), key=lambda needed: needed.total)


def memory_by_stage(config: RunConfig, layout: ParallelConfig, world: int) -> list[Memory]:
    """Memory of a rank of each pipeline stage."""
    micro_batches = config.micro_batches(world)
    shares = zip(parameters_per_rank(config, layout), chunks_by_rank(config, layout), strict=True)
    needed = []
    for rank, (parameters, chunks) in enumerate(shares):
        state = _state(config, layout, world, parameters)
        logits = _head(config, layout) if chunks[-1].has_head else 0
        activations = _activations(config, layout, chunks, rank, micro_batches)
        activations += max(0, _backward(config, layout) - logits)  # the head's part is gone when a layer's begins
        needed.append(Memory(*state, activations, logits))
    return needed


def activations_by_recompute(config: RunConfig, layout: ParallelConfig, world: int) -> dict[str, int]:
    """Activations of the fullest rank under each mode of `parallel.recompute`."""
    modes = get_args(ParallelConfig.model_fields["recompute"].annotation)
    return {mode: memory(config, layout.model_copy(update={"recompute": mode}), world).activations for mode in modes}


def _element(config: RunConfig) -> int:
    return 2 if config.train.precision == "bf16" else _FP32


def _state(config: RunConfig, layout: ParallelConfig, world: int, parameters: int) -> tuple[int, int, int, int]:
    """Bytes of weights, gradients, buffers and optimizer.

    megatron: weights in their type, gradients in fp32; two fp32 moments and for bf16 weights a fp32 master, which
    ZeRO-1 divides by the ranks with the same weights. DeepSpeed has the master for fp32 weights too and gradients in
    the weights' type, and copies them into a bucket to reduce them: ZeRO-1 keeps all of them between micro-batches,
    ZeRO-2 a share, ZeRO-3 also cuts the weights and gathers what it soon needs.
    """
    element = _element(config)
    shards = layout.data_size(world) * layout.context
    if layout.engine == "megatron":
        state = parameters * (12 if element == 2 else 8)
        return parameters * element, parameters * _FP32, 0, state // (shards if layout.zero else 1)
    optimizer = 0 if layout.offload != "none" else parameters * 12 // shards
    gradients = parameters * element // (shards if layout.zero >= 2 else 1)
    bucket = min(parameters, BUCKET) * element if layout.zero >= 2 else 0
    if layout.zero < 3:
        return parameters * element, gradients, bucket, optimizer
    cut = 0 if layout.offload == "parameters" else parameters * element // shards
    return cut, gradients, bucket + min(parameters, MOST_LIVE) * element, optimizer


def _activations(config: RunConfig, layout: ParallelConfig, chunks: list[Stage], rank: int, micro_batches: int) -> int:
    """What the backward pass needs, of all micro-batches that a stage has begun and not ended.

    1F1B begins as many as stages follow, itself included; the interleaved schedule counts in chunks. Between stages a
    chunk's output is held too, and in bf16 its input (else the first norm has it).
    """
    element, tokens = _element(config), _tokens(config, layout)
    along_sequence = layout.tensor if layout.sequence else 1
    width = config.model.width * tokens // along_sequence
    layer = _layer(config, layout)
    layers = sum(len(chunk.layers) for chunk in chunks)
    border = width * element * (1 + (element == 2)) if layout.pipeline > 1 else 0
    if layout.virtual_pipeline == 1:
        begun = min(layout.pipeline - rank, micro_batches)
    else:
        warm_up = 2 * (layout.pipeline - rank - 1) + (layout.virtual_pipeline - 1) * layout.pipeline
        begun = min(warm_up + 1, micro_batches * layout.virtual_pipeline)
    full = layout.recompute == "full"
    kept = (width * element if full else layer) * layers // layout.virtual_pipeline + border
    last_norm = width * (_FP32 + 2 * element) if chunks[-1].has_head else 0
    return kept * begun + (layer if full else 0) + last_norm


def _layer(config: RunConfig, layout: ParallelConfig) -> int:
    """Bytes that a layer keeps of a micro-batch.

    Per token: of each norm its input in fp32, the normalised input and the output; the fused queries, keys and
    values (the values are a view of it), rotated queries and keys, attention's output and log-sum-exp; gate and up,
    silu(gate), and the product. With several context ranks keys and values of all instead of the fused ones. In bf16
    also the rotary angles of each position, four times.
    """
    shape, element, tokens = config.model, _element(config), _tokens(config, layout)
    norms = 2 * shape.width * (_FP32 + 2 * element) // (layout.tensor if layout.sequence else 1)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    gathers = layout.context > 1 and layout.recompute != "selective"
    if not gathers:
        attention = 3 * queries + 3 * keys
    elif layout.context_exchange == "gather":
        attention = 2 * queries + 2 * keys * layout.context
    else:
        attention = 3 * queries + 2 * keys
    cut = (attention + 4 * shape.ffn) * element + _FP32 * shape.heads
    angles = 4 * shape.head_width * element * tokens // config.train.micro_batch if element == 2 else 0
    return tokens * (norms + cut // layout.tensor) + angles


def _backward(config: RunConfig, layout: ParallelConfig) -> int:
    """What a layer's backward pass takes beside what was kept: gradients of gate and up twice, of the product once,
    less the product and silu(gate) that it frees; and gradients of the activations on both sides.
    """
    shape = config.model
    along_sequence = layout.tensor if layout.sequence else 1
    numbers = 2 * shape.ffn // layout.tensor + 2 * shape.width // along_sequence
    return numbers * _tokens(config, layout) * _element(config)


def _head(config: RunConfig, layout: ParallelConfig) -> int:
    """What the head needs beside its weights.

    Hidden rows and their gradient, the gradient of the head's weights, and either a chunk of logits in fp32 with
    softmax and two gradients, or once more both gradients when the backward pass scales them. With sequence
    parallelism also the gathered activations.
    """
    shape, element, tokens = config.model, _element(config), _tokens(config, layout)
    vocabulary = padded_vocabulary(shape.vocabulary, layout.tensor) // layout.tensor
    rows = round(tokens * config.objective.head_rows) * shape.width * element
    gradient = vocabulary * shape.width * element
    chunk = 4 * chunk_rows(config.train.head_chunk, tokens) * vocabulary * _FP32
    gathered = tokens * shape.width * element if layout.sequence else 0
    return 2 * rows + gradient + max(chunk, gradient + rows) + gathered


def _tokens(config: RunConfig, layout: ParallelConfig) -> int:
    """Tokens of a micro-batch that a context rank has."""
    return config.train.micro_batch * config.train.sequence_length // layout.context
