"""Builds every rank's part of a model without memory or GPUs: torch's fake process group and the meta device.

One process plays one rank of each pipeline stage after the other. Groups are megatron's real ones, collectives do
nothing, and parameters have shapes but no storage, so that a layout for thousands of GPUs is checked on a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from parallel.logical import logical_parameters
from parallel.megatron_config import transformer_config
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.estimate import memory, stages_of
from pretrain.model import Transformer
from runtime.environment import RankInfo


@dataclass(frozen=True)
class StageReport:
    """What a rank of a pipeline stage holds: global layers, parameters, bytes of weights, gradients, optimizer."""

    pipeline_rank: int
    layers: tuple[str, ...]
    parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int


def rehearse(config: RunConfig, world: int) -> list[StageReport]:
    """Build each pipeline stage as its ranks would. Raises UserError if the layout or the batch does not fit `world`.

    All logical tensors must be covered by the stages exactly once (an invariant, checked here for real shapes).
    For a process of its own: it joins and leaves fake process groups.
    """
    config.micro_batches(world)
    reports, covered = [], 0
    for pipeline_rank in range(config.parallel.pipeline):
        report, elements = _build_stage(config, world, pipeline_rank)
        reports.append(report)
        covered += elements
    whole = config.model.parameters().total
    assert covered == whole, f"the stages hold {covered} of {whole} logical elements"
    return reports


def _build_stage(config: RunConfig, world: int, pipeline_rank: int) -> tuple[StageReport, int]:
    """The report of the stage's fullest tensor rank, and the logical elements of all its tensor ranks together."""
    layout, shape = config.parallel, config.model
    first = pipeline_rank * (world // layout.pipeline)  # megatron numbers tensor ranks first, pipeline ranks last
    stages = stages_of(config, layout)[pipeline_rank :: layout.pipeline]
    fullest, sharded, replicated = 0, 0, 0
    for tensor_rank in range(layout.tensor):
        mesh = _join(config, world, first + tensor_rank)
        assert (mesh.pipeline_rank, mesh.tensor_rank) == (pipeline_rank, tensor_rank), "unexpected order of ranks"
        engine_config = transformer_config(mesh, shape.width, shape.heads, config.train.precision)
        with torch.device("meta"):
            models = [
                Transformer(shape, mesh, engine_config, config.objective.causal, config.train.head_chunk, stage)
                for stage in stages
            ]
        held = [(p, blocks) for model in models for p, blocks in logical_parameters(model)]
        fullest = max(fullest, sum(p.numel() for p, _ in held))
        sharded += sum(b.box.numel for p, blocks in held if p.dim() > 1 for b in blocks)
        replicated = sum(b.box.numel for p, blocks in held if p.dim() == 1 for b in blocks)
        dist.destroy_process_group()
    needed = memory(config, layout, world)
    half = config.train.precision == "bf16"
    shards = layout.data_size(world) * layout.context
    report = StageReport(
        pipeline_rank,
        tuple(f"{s.first}-{s.last - 1}" for s in stages),
        fullest,
        fullest * (2 if half else 4) // (shards if layout.zero == 3 else 1),
        fullest * 4 // (shards if layout.zero >= 2 else 1),
        fullest * (12 if half else 8) // (shards if layout.zero else 1),
    )
    assert report.weight_bytes <= needed.weights, "the estimate is below what the stage really holds"
    return report, sharded + replicated


def _join(config: RunConfig, world: int, rank: int) -> Mesh:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    return Mesh.create(config.parallel, RankInfo(rank, world))
