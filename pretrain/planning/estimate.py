"""Seconds of a step under a layout, before it runs; and the devices that layouts are planned for.

They rank layouts; they are no promise: traffic is known (`pretrain.planning.traffic`), but time follows from the
device's data sheet and one assumed efficiency.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.layout import ParallelConfig
from pretrain.config import RunConfig
from pretrain.hardware_flops import hardware_flops
from pretrain.planning.memory import Memory
from pretrain.planning.traffic import traffic
from pretrain.stage_cut import imbalance


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


def step_seconds(config: RunConfig, layout: ParallelConfig, world: int, device: Device) -> float:
    """Seconds of a step: compute of the busiest stage with the pipeline's bubble, then traffic at each axis' bandwidth.

    Tensor and context traffic stay in a node while their product fits one; nothing is assumed to overlap.
    """
    flops = hardware_flops(config.model_copy(update={"parallel": layout}))
    work = flops.total * config.train.tokens_per_step / world * imbalance(config, layout)
    bubble = (layout.pipeline - 1) / (config.micro_batches(world) * layout.virtual_pipeline)
    sent = traffic(config, layout, world)
    inside = layout.tensor * layout.context <= device.ranks_per_node
    near = device.node_bandwidth if inside else device.network_bandwidth
    far = device.node_bandwidth if world <= device.ranks_per_node else device.network_bandwidth
    communication = (sent.tensor + sent.context) / near + (sent.pipeline + sent.data) / far
    return work / (device.flops * device.efficiency) * (1 + bubble) + communication
