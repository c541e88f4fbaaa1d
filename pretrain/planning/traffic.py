"""Bytes that a rank sends in an optimizer step, by axis: what the engines' collectives come to.

Counted as ring algorithms send: n bytes over r ranks are 2·n·(r-1)/r of an all-reduce and n·(r-1)/r of an all-gather
(n gathered) or a reduce-scatter (n scattered). `tests/pretrain/test_traffic.py` compares every formula with the calls
that the engines make. Left out are the loop's agreement, the statistics and the gradient norm: a few hundred bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from parallel.layout import ParallelConfig, chunk_rows
from parallel.stages import Stage
from pretrain.config import RunConfig
from pretrain.stage_cut import chunks_by_rank, parameters_per_rank

_FP32 = 4
_ZERO3_REUSE = 1_000_000_000
"""DeepSpeed's `stage3_max_reuse_distance`: parameters used again within so many elements stay gathered."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a step, by axis."""

    tensor: float
    pipeline: float
    context: float
    data: float

    @property
    def total(self) -> float:
        """All axes."""
        return self.tensor + self.pipeline + self.context + self.data

    def as_dict(self) -> dict[str, float]:
        """Axes and `total`, for JSON."""
        return {**asdict(self), "total": self.total}


def traffic(config: RunConfig, layout: ParallelConfig, world: int) -> Traffic:
    """What the busiest pipeline rank sends."""
    return max(traffic_by_stage(config, layout, world), key=lambda sent: sent.total)


def traffic_by_stage(config: RunConfig, layout: ParallelConfig, world: int) -> list[Traffic]:
    """What each pipeline rank sends."""
    micro_batches = config.micro_batches(world)
    parameters = parameters_per_rank(config, layout)
    return [
        Traffic(
            tensor=_tensor(config, layout, chunks, micro_batches),
            pipeline=_pipeline(config, layout, chunks, micro_batches),
            context=_context(config, layout, chunks) * micro_batches,
            data=_data(config, layout, world, held),
        )
        for chunks, held in zip(chunks_by_rank(config, layout), parameters, strict=True)
    ]


def _element(config: RunConfig) -> int:
    return 2 if config.train.precision == "bf16" else _FP32


def _tokens(config: RunConfig, layout: ParallelConfig) -> int:
    """Tokens of a micro-batch that a context rank has."""
    return config.train.micro_batch * config.train.sequence_length // layout.context


def _hidden(config: RunConfig, layout: ParallelConfig) -> int:
    """Bytes of a micro-batch's activations between layers."""
    return _tokens(config, layout) * config.model.width * _element(config)


def _tensor(config: RunConfig, layout: ParallelConfig, chunks: list[Stage], micro_batches: int) -> float:
    """Per micro-batch and layer an all-reduce of the activations after attention and after the feed-forward, and two of
    their gradients; one after the embedding. With sequence parallelism each is a scatter and a gather, and the inputs
    of the column-parallel layers are gathered once more for their weights' gradients. Full recomputation goes forward
    again up to the last matrix. The head: gradients of the counting rows, and three numbers a row of its chunks for
    the softmax; with sequence parallelism the activations are gathered and their gradients scattered, and once a step
    the gradients of the norms are summed.
    """
    ranks, width = layout.tensor, config.model.width
    around = 2 * (ranks - 1) / ranks
    layers = sum(len(chunk.layers) for chunk in chunks)
    embeds, head = (sum(getattr(chunk, name) for chunk in chunks) for name in ("embeds", "has_head"))
    again = layout.recompute == "full"
    softmax = 3 * _FP32 * _rows_of_chunks(config, layout)
    if layout.sequence:
        passes = layers * (5 + again * 1.5) + embeds + head
        norms = _FP32 * width * (2 * layers + head)
        return around * (micro_batches * (passes * _hidden(config, layout) + head * softmax) + norms)
    passes = layers * (4 + again) + embeds + head * config.objective.head_rows
    return around * micro_batches * (passes * _hidden(config, layout) + head * softmax)


def _rows_of_chunks(config: RunConfig, layout: ParallelConfig) -> float:
    """Rows of a micro-batch that go through the head, the filling of the last chunk included (half a chunk, unless
    every position counts).
    """
    tokens, share = _tokens(config, layout), config.objective.head_rows
    chunk = chunk_rows(config.train.head_chunk, tokens)
    return -(-tokens // chunk) * chunk if share == 1 else max(chunk, tokens * share + chunk / 2)


def _pipeline(config: RunConfig, layout: ParallelConfig, chunks: list[Stage], micro_batches: int) -> float:
    """Per micro-batch a chunk sends its activations to the next one, and their gradients to the one before."""
    borders = sum((not chunk.has_head) + (not chunk.embeds) for chunk in chunks)
    return micro_batches * borders * _hidden(config, layout) / (layout.tensor if layout.sequence else 1)


def _context(config: RunConfig, layout: ParallelConfig, chunks: list[Stage]) -> float:
    """Per layer: keys and values to every other context rank forward, and their gradients back.

    In a ring keys and values travel forward and again backward, and then their gradients in fp32. Recomputation sends
    once more what the forward pass does; a ring has nothing to recompute inside attention.
    """
    shape, element = config.model, _element(config)
    keys_values = 2 * _tokens(config, layout) * shape.kv_heads * shape.head_width // layout.tensor
    layers = sum(len(chunk.layers) for chunk in chunks)
    ring = layout.context_exchange == "ring"
    again = layout.recompute == "full" or (layout.recompute == "selective" and not ring)
    passes = (2 + again) * element + (_FP32 if ring else 0)
    return layers * (layout.context - 1) * keys_values * passes


def _data(config: RunConfig, layout: ParallelConfig, world: int, parameters: int) -> float:
    """Gradients summed, and weights gathered where ranks update a part each.

    megatron reduces once a step, in fp32. DeepSpeed reduces in the weights' type: ZeRO-1 all of it once a step,
    ZeRO-2 all of it after every micro-batch, ZeRO-3 scattered after every micro-batch, for which it gathers the
    weights forward, and backward again those that are not used again soon.
    """
    ranks = layout.data_size(world) * layout.context
    share, element, micro_batches = (ranks - 1) / ranks, _element(config), config.micro_batches(world)
    if layout.engine == "megatron":
        return share * parameters * (2 * _FP32 if layout.zero == 0 else _FP32 + element)
    if layout.zero < 3:
        return share * parameters * element * (2 * (micro_batches if layout.zero == 2 else 1) + 1)
    kept = min(parameters, _ZERO3_REUSE // (3 if layout.recompute == "full" else 2))
    return share * element * micro_batches * (3 * parameters - kept)
