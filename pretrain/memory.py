"""Bytes on a rank under a layout, by what they are for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from parallel.layout import ParallelConfig, chunk_rows, padded_vocabulary
from pretrain.config import RunConfig
from pretrain.stage_cut import chunks_by_rank, parameters_per_rank

_FP32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All components."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def as_dict(self) -> dict[str, int]:
        """Components and `total`, for JSON."""
        return {**asdict(self), "total": self.total}


def memory(config: RunConfig, layout: ParallelConfig, world: int) -> Memory:
    """Memory of the fullest rank."""
    return max(memory_by_stage(config, layout, world), key=lambda needed: needed.total)


def memory_by_stage(config: RunConfig, layout: ParallelConfig, world: int) -> list[Memory]:
    """Memory of a rank of each pipeline stage.

    Weights and gradients: 4 + 4 bytes a parameter in fp32; 2 + 4 in bf16, whose gradients are reduced in fp32.
    Optimizer: two fp32 moments, in bf16 also a fp32 master. ZeRO divides by the data ranks: the optimizer from 1,
    gradients from 2, weights at 3. Activations: what the backward pass keeps of a layer (two norms' inputs in their
    own type and outputs, q k v, attention output, gate, up, their product), times the micro-batches that a
    stage holds. Logits: a chunk of rows in fp32, its gradient, and the softmax in between.
    """
    train, shape = config.train, config.model
    shards = layout.data_size(world) * layout.context
    half = train.precision == "bf16"
    element = 2 if half else _FP32
    tokens = train.micro_batch * train.sequence_length // layout.context
    chunk = chunk_rows(train.head_chunk, tokens)
    logits = 3 * chunk * (padded_vocabulary(shape.vocabulary, layout.tensor) // layout.tensor) * _FP32
    micro_batches = config.micro_batches(world)
    needed = []
    shares = zip(parameters_per_rank(config, layout), chunks_by_rank(config, layout), strict=True)
    for rank, (parameters, mine) in enumerate(shares):
        kept = sum(len(s.layers) for s in mine) * tokens * _activations_per_token(config, layout) * element
        state = 0 if layout.offload != "none" else parameters * (12 if half else 8)
        needed.append(
            Memory(
                weights=parameters * element // (shards if layout.zero == 3 else 1),
                gradients=parameters * _FP32 // (shards if layout.zero >= 2 else 1),
                optimizer=state // (shards if layout.zero else 1),
                activations=kept * min(layout.pipeline - rank, micro_batches),
                logits=logits if mine[-1].has_head else 0,
            )
        )
    return needed


def _activations_per_token(config: RunConfig, layout: ParallelConfig) -> int:
    """Elements that a layer keeps per token of this rank."""
    shape = config.model
    along_sequence = layout.tensor if layout.sequence else 1
    if layout.recompute == "full":
        return shape.width // along_sequence
    queries, keys = shape.heads * shape.head_width, 2 * shape.kv_heads * shape.head_width
    gathered = keys * (layout.context - 1) if layout.context_exchange == "gather" else 0
    cut = (3 * shape.ffn + 2 * queries + keys + gathered) // layout.tensor
    return cut + 6 * shape.width // along_sequence
