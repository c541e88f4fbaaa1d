"""Estimates of a layout before it runs: memory of the fullest rank, bytes it sends, seconds of a step.

They rank layouts; they are no promise. Memory and traffic are counted from what the engines keep and send, time from
the device's data sheet and one assumed efficiency (`Device`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from parallel.layout import ParallelConfig, chunk_rows, padded_vocabulary
from parallel.stages import Stage, split_stages
from pretrain.config import RunConfig
from pretrain.flops import training_flops_per_token

_FP32 = 4


@dataclass(frozen=True)
class Device:
    """Data-sheet figures: dense bf16 FLOP/s, bytes of memory, bytes/s to peers in the node and between nodes.

    `efficiency`: share of the peak that a rank's own kernels reach; an assumption, the same for every layout.
    """

    name: str
    flops: float
    memory: float
    node_bandwidth: float
    network_bandwidth: float
    ranks_per_node: int = 8
    efficiency: float = 0.5

    def holds(self, needed: Memory) -> bool:
        """Whether a tenth of the memory stays free."""
        return needed.total < 0.9 * self.memory


DEVICES = {
    "h200": Device("h200", 989e12, 141e9, 450e9, 50e9),
    "h100": Device("h100", 989e12, 80e9, 450e9, 50e9),
    "a100": Device("a100", 312e12, 80e9, 300e9, 25e9),
    "b200": Device("b200", 2250e12, 180e9, 900e9, 50e9),
}


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


@dataclass(frozen=True)
class Traffic:
    """Bytes that the busiest rank sends in a step, by axis, for ring collectives."""

    tensor: float
    pipeline: float
    context: float
    data: float

    @property
    def total(self) -> float:
        """All axes."""
        return self.tensor + self.pipeline + self.context + self.data


def stages_of(config: RunConfig, layout: ParallelConfig) -> list[Stage]:
    """The model's chunks in order of depth, balanced by FLOPs: the head weighs as many layers as it costs."""
    flops = training_flops_per_token(
        config.model, config.train.sequence_length, config.objective.causal, config.objective.head_rows
    )
    layer = (flops.projections + flops.attention) / config.model.layers
    return split_stages(config.model.layers, layout.chunks, head_cost=flops.head / layer)


def parameters_per_rank(config: RunConfig, layout: ParallelConfig) -> list[int]:
    """Parameters on each pipeline rank (its chunks together, one tensor rank's share)."""
    shape, ranks = config.model, layout.tensor
    counts = shape.parameters()
    layer = counts.non_embedding_matrices // shape.layers // ranks + 2 * shape.width
    vocabulary = padded_vocabulary(shape.vocabulary, ranks) // ranks * shape.width
    stages = stages_of(config, layout)
    return [
        sum(
            len(s.layers) * layer + s.embeds * vocabulary + s.has_head * (vocabulary + shape.width)
            for s in stages[rank :: layout.pipeline]
        )
        for rank in range(layout.pipeline)
    ]


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
    stages, micro_batches = stages_of(config, layout), config.micro_batches(world)
    needed = []
    for rank, parameters in enumerate(parameters_per_rank(config, layout)):
        mine = stages[rank :: layout.pipeline]
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


def traffic(config: RunConfig, layout: ParallelConfig, world: int) -> Traffic:
    """Bytes the busiest rank sends in a step. A ring all-reduce of n bytes over r ranks sends 2·n·(r-1)/r of them.

    Tensor: two all-reduces forward and two backward a layer (with sequence parallelism the same bytes as gathers and
    scatters, and one more gather in the backward pass of each column-parallel layer). Context: keys and values
    gathered forward, their gradients scattered backward; in a ring keys and values travel forward and again backward,
    their gradients in fp32 backward; recomputation sends once more what the forward pass does. Data: gradients
    reduced in fp32 and weights gathered. Pipeline: activations forward, gradients backward, between chunks.
    """
    train, shape = config.train, config.model
    element = 2 if train.precision == "bf16" else _FP32
    data = layout.data_size(world) * layout.context
    micro_batches = config.micro_batches(world)
    tokens = train.micro_batch * train.sequence_length // layout.context
    layers = max(len(s.layers) for s in stages_of(config, layout)) * layout.virtual_pipeline
    hidden = tokens * shape.width * element
    around_tensor = 2 * (layout.tensor - 1) / layout.tensor
    reductions = 4 * (1.25 if layout.sequence else 1.0) + (2 if layout.recompute == "full" else 0)
    keys = 2 * tokens * shape.kv_heads * shape.head_width // layout.tensor * element
    ring = layout.context_exchange == "ring"
    again = layout.recompute == "full" or (layout.recompute == "selective" and not ring)
    exchanged = keys * (2 + again + (_FP32 / element if ring else 0))
    parameters = max(parameters_per_rank(config, layout))
    share = (data - 1) / data
    gathers = 2 if layout.zero == 3 else 1
    return Traffic(
        tensor=layers * micro_batches * hidden * reductions * around_tensor,
        pipeline=2 * micro_batches * layout.virtual_pipeline * hidden / (layout.tensor if layout.sequence else 1)
        if layout.pipeline > 1
        else 0.0,
        context=layers * micro_batches * exchanged * (layout.context - 1),
        data=parameters * share * (_FP32 + element * gathers),
    )


def step_seconds(config: RunConfig, layout: ParallelConfig, world: int, device: Device) -> float:
    """Seconds of a step: compute with the pipeline's bubble, then traffic at the bandwidth of each axis.

    Tensor and context traffic stay in a node while their product fits one; nothing is assumed to overlap.
    """
    train = config.train
    flops = training_flops_per_token(
        config.model, train.sequence_length, config.objective.causal, config.objective.head_rows
    )
    work = flops.total * (4 / 3 if layout.recompute == "full" else 1.0) * train.tokens_per_step / world
    stages = stages_of(config, layout)
    worst = max(len(s.layers) for s in stages) * len(stages) / config.model.layers
    bubble = (layout.pipeline - 1) / (config.micro_batches(world) * layout.virtual_pipeline)
    sent = traffic(config, layout, world)
    inside = layout.tensor * layout.context <= device.ranks_per_node
    near = device.node_bandwidth if inside else device.network_bandwidth
    far = device.node_bandwidth if world <= device.ranks_per_node else device.network_bandwidth
    communication = (sent.tensor + sent.context) / near + (sent.pipeline + sent.data) / far
    return work / (device.flops * device.efficiency) * worst * (1 + bubble) + communication
