"""How a layout cuts a model along its depth: layers, cost and parameters of each pipeline stage."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.layout import ParallelConfig, padded_vocabulary
from parallel.stages import Stage, split_stages
from pretrain.config import RunConfig
from pretrain.hardware_flops import hardware_flops

_FLOPS_PER_BYTE = 100
"""What a GPU computes while it moves a byte of its memory: half the dense bf16 peak over the bandwidth of the data
sheet is 103 on an H200, 148 on an H100, 76 on an A100.
"""


@dataclass(frozen=True)
class EndCosts:
    """What the input embedding and the output head cost in a micro-batch, in layers."""

    embedding: float
    head: float


def end_costs(config: RunConfig, layout: ParallelConfig) -> EndCosts:
    """Costs by time: FLOPs that are computed, recomputation included, and the bytes of the weights' gradients.

    After each micro-batch a gradient as large as the weights is written in their type, read, and added to a sum in
    fp32 (read and written). That is all that the embedding costs: it looks up, and multiplies nothing. Tensor ranks
    divide every part alike, context ranks the tokens only.
    """
    train, shape = config.train, config.model
    flops = hardware_flops(config.model_copy(update={"parallel": layout}))
    tokens = train.micro_batch * train.sequence_length / layout.context
    per_weight = _FLOPS_PER_BYTE * (2 * (2 if train.precision == "bf16" else 4) + 8)
    layers = (flops.total - flops.head) * tokens + per_weight * shape.parameters().non_embedding_matrices
    layer, vocabulary = layers / shape.layers, per_weight * shape.vocabulary * shape.width
    return EndCosts(vocabulary / layer, (flops.head * tokens + vocabulary) / layer)


def stages_of(config: RunConfig, layout: ParallelConfig) -> list[Stage]:
    """The model's chunks in order of depth, balanced by time: embedding and head weigh as many layers as they cost."""
    costs = end_costs(config, layout)
    return split_stages(config.model.layers, layout.chunks, costs.embedding, costs.head)


def chunks_by_rank(config: RunConfig, layout: ParallelConfig) -> list[list[Stage]]:
    """The chunks of each pipeline rank, by depth."""
    stages = stages_of(config, layout)
    return [stages[rank :: layout.pipeline] for rank in range(layout.pipeline)]


def imbalance(config: RunConfig, layout: ParallelConfig) -> float:
    """Cost of the busiest pipeline rank over the mean: what a step takes longer than with an even cut."""
    costs = end_costs(config, layout)
    by_rank = [
        sum(len(c.layers) + c.embeds * costs.embedding + c.has_head * costs.head for c in chunks)
        for chunks in chunks_by_rank(config, layout)
    ]
    return max(by_rank) * len(by_rank) / sum(by_rank)


def parameters_per_rank(config: RunConfig, layout: ParallelConfig) -> list[int]:
    """Parameters on each pipeline rank (its chunks together, one tensor rank's share, vocabulary padding included)."""
    shape, ranks = config.model, layout.tensor
    layer = shape.parameters().non_embedding_matrices // shape.layers // ranks + 2 * shape.width
    vocabulary = padded_vocabulary(shape.vocabulary, ranks) // ranks * shape.width
    return [
        sum(len(c.layers) * layer + c.embeds * vocabulary + c.has_head * (vocabulary + shape.width) for c in chunks)
        for chunks in chunks_by_rank(config, layout)
    ]
