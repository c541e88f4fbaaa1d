"""What a recipe means before it costs anything: parameters, FLOPs, memory per rank, layouts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from parallel.layout import ParallelConfig
from pretrain.config import RunConfig
from pretrain.planning.cost import checkpoints, duration, flops
from pretrain.planning.estimate import DEVICES, Device, step_seconds
from pretrain.planning.interruptions import Interruptions, interruption_plan
from pretrain.planning.memory import activations_by_recompute, memory
from pretrain.planning.nearest_layout import require_divides
from pretrain.planning.traffic import traffic
from pretrain.stage_cut import stages_of
from runtime.errors import UserError, suggestion

_MOST_LAYOUTS = 24
_DEEPEST_PIPELINE = 16


def plan(
    config: RunConfig,
    world: int | None = None,
    device: str = "h200",
    mfu: float = 0.4,
    interruptions: Interruptions | None = None,
) -> dict[str, Any]:
    """The plan of a run on `world` ranks (default: one copy of the model) as JSON-ready values; see docs/contract.md.

    `flops.per_token_exact` counts the head on every position, as published figures do;
    `flops.per_token_computed` counts it on the rows that need it, which is what a step does and MFU uses.
    Raises UserError, with the nearest layout, if the recipe's own does not fit `world`, or the device is unknown.
    """
    if device not in DEVICES:
        raise UserError(f"--device {device!r} is none of {', '.join(DEVICES)}{suggestion(device, DEVICES)}")
    train, layout = config.train, config.parallel
    world = world or layout.model_size
    require_divides(config, world)
    counts = config.model.parameters()
    time = duration(config, world, DEVICES[device], mfu)
    saved = checkpoints(config, time["step_seconds"])
    return {
        "name": config.name,
        "parameters": {"total": counts.total, "non_embedding": counts.non_embedding, "embedding": counts.embedding},
        "steps": train.steps,
        "tokens": train.total_tokens,
        "tokens_per_step": train.tokens_per_step,
        "flops": flops(config),
        "world": world,
        "device": device,
        "time": time,
        "checkpoints": saved,
        "interruptions": interruption_plan(
            config, world, saved["bytes"], time["step_seconds"], interruptions or Interruptions()
        ),
        "memory": {
            "per_rank": memory(config, layout, world).as_dict(),
            "activations_by_recompute": activations_by_recompute(config, layout, world),
        },
        "stages": [f"{s.first}-{s.last - 1}" for s in stages_of(config, layout)],
        "layouts": rank_layouts(config, world, DEVICES[device]),
    }


def rank_layouts(
    config: RunConfig, world: int, device: Device, most: int | None = _MOST_LAYOUTS
) -> list[dict[str, Any]]:
    """Valid layouts for `world` ranks: those that fit the device's memory first, by estimated seconds a step.

    At most `most` of them. `selective` recomputation is offered where it saves memory.
    """
    rows: list[dict[str, Any]] = []
    for layout in _candidates(world):
        try:
            candidate = RunConfig.parse({**config.model_dump(), "parallel": layout.model_dump()}, config.name)
            candidate.micro_batches(world)
        except UserError:
            continue
        needed = memory(candidate, layout, world)
        if layout.recompute == "selective" and needed.total >= memory(candidate, _kept(layout), world).total:
            continue
        rows.append(
            {
                "layout": layout.describe(world)
                + ("" if layout.recompute == "none" else f" recompute-{layout.recompute}"),
                "parallel": layout.model_dump(),
                "memory_bytes": needed.total,
                "fits": device.holds(needed),
                "step_seconds": step_seconds(candidate, layout, world, device),
                "sent_bytes": traffic(candidate, layout, world).total,
                "stages": [f"{s.first}-{s.last - 1}" for s in stages_of(candidate, layout)],
            }
        )
    rows.sort(key=lambda row: (not row["fits"], row["step_seconds"] if row["fits"] else row["memory_bytes"]))
    return rows[:most]


def _candidates(world: int) -> Iterator[ParallelConfig]:
    sizes = [n for n in (1, 2, 4, 8) if world % n == 0]
    depths = [n for n in range(1, _DEEPEST_PIPELINE + 1) if world % n == 0]
    megatron = itertools.product(sizes, depths, (1, 2), sizes, ("none", "selective", "full"))
    for tensor, pipeline, virtual, context, recompute in megatron:
        if recompute == "selective" and context == 1:
            continue  # fused attention keeps no scores: all that it saves are gathered keys and values
        if world % (tensor * pipeline * context) == 0 and (virtual == 1 or pipeline > 1):
            yield _layout(
                tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual, context=context,
                sequence=tensor > 1, recompute=recompute,
            )  # fmt: skip
    for zero, tensor, recompute in itertools.product((1, 2, 3), sizes, ("none", "full")):
        yield _layout(engine="deepspeed", zero=zero, tensor=tensor, recompute=recompute)


def _kept(layout: ParallelConfig) -> ParallelConfig:
    return layout.model_copy(update={"recompute": "none"})


def _layout(**values: Any) -> ParallelConfig:
    try:
        return ParallelConfig(**values)
    except ValidationError as error:
        raise AssertionError(f"the planner offers no refused layouts: {error}") from None
