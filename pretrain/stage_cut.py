"""How a layout cuts a model along its depth: layers and parameters of each pipeline stage."""

from __future__ import annotations

from parallel.layout import ParallelConfig, padded_vocabulary
from parallel.stages import Stage, split_stages
from pretrain.config import RunConfig
from pretrain.flops import training_flops_per_token


def stages_of(config: RunConfig, layout: ParallelConfig) -> list[Stage]:
    """The model's chunks in order of depth, balanced by FLOPs: the head weighs as many layers as it costs."""
    flops = training_flops_per_token(
        config.model, config.train.sequence_length, config.objective.causal, config.objective.head_rows
    )
    layer = (flops.projections + flops.attention) / config.model.layers
    return split_stages(config.model.layers, layout.chunks, head_cost=flops.head / layer)


def chunks_by_rank(config: RunConfig, layout: ParallelConfig) -> list[list[Stage]]:
    """The chunks of each pipeline rank, by depth."""
    stages = stages_of(config, layout)
    return [stages[rank :: layout.pipeline] for rank in range(layout.pipeline)]


def parameters_per_rank(config: RunConfig, layout: ParallelConfig) -> list[int]:
    """Parameters on each pipeline rank (its chunks together, one tensor rank's share, vocabulary padding included)."""
    shape, ranks = config.model, layout.tensor
    layer = shape.parameters().non_embedding_matrices // shape.layers // ranks + 2 * shape.width
    vocabulary = padded_vocabulary(shape.vocabulary, ranks) // ranks * shape.width
    return [
        sum(len(c.layers) * layer + c.embeds * vocabulary + c.has_head * (vocabulary + shape.width) for c in chunks)
        for chunks in chunks_by_rank(config, layout)
    ]
