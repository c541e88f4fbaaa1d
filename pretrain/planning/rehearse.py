"""A rehearsal: every rank's part of a model, built on the meta device under a fake process group.

Needs neither GPUs nor the memory of the model, so a layout for thousands of ranks is tried on a laptop. The ranks are
played one after the other by a process of their own (`pretrain.planning.meta_rank`): it patches torch, joins groups
that are not there, and must not see a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from pretrain.config import RunConfig
from pretrain.planning.estimate import DEVICES
from pretrain.planning.memory import Memory, memory_by_stage
from pretrain.planning.nearest_layout import mend, require_divides
from pretrain.stage_cut import parameters_per_rank
from runtime.errors import LacunaError, UserError, suggestion

_MODULE = "pretrain.planning.meta_rank"


@dataclass(frozen=True)
class StageReport:
    """What the fullest rank of a pipeline stage holds.

    `layers`: global numbers of each of its chunks, as `first-last`. `parameters`: built, vocabulary padding included.
    `memory`: bytes, computed from the parameters and the shape.
    """

    pipeline_rank: int
    layers: tuple[str, ...]
    parameters: int
    memory: Memory


@dataclass(frozen=True)
class Rehearsal:
    """A layout that was built. `coordinates`: distinct (pipeline, tensor) ranks, of which data and context ranks are
    copies. `tensors`, `elements`: logical tensors and their elements, each held exactly once. `micro_batches`: per
    step and data rank. `fits`: whether every stage leaves a tenth of the device's memory free.
    """

    layout: str
    world: int
    micro_batches: int
    coordinates: int
    tensors: int
    elements: int
    stages: tuple[StageReport, ...]
    device: str
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = [{**asdict(stage), "memory": stage.memory.as_dict()} for stage in self.stages]
        return {**asdict(self), "stages": stages}


def rehearse(config: RunConfig, world: int, device: str = "h200", show_progress: bool = True) -> Rehearsal:
    """Build every distinct rank of `world`, and take a micro-batch forward and backward through every stage.

    Shapes, divisibility, names and the cover of the logical tensors are checked on what is built; memory is
    arithmetic. Raises UserError, naming the nearest layout that works, if layout or batch do not fit `world`.
    """
    if device not in DEVICES:
        raise UserError(f"--device {device!r} is none of {', '.join(DEVICES)}{suggestion(device, DEVICES)}")
    micro_batches = require_divides(config, world)
    built = _build_apart(config, world, show_progress)
    layout = config.parallel
    needed = memory_by_stage(config, layout, world)
    for stage, expected in zip(built["stages"], parameters_per_rank(config, layout), strict=True):
        assert stage["parameters"] == expected, f"{stage} has not the {expected} parameters of the estimate"
    stages = tuple(
        StageReport(number, tuple(stage["layers"]), stage["parameters"], need)
        for number, (stage, need) in enumerate(zip(built["stages"], needed, strict=True))
    )
    return Rehearsal(
        layout=layout.describe(world),
        world=world,
        micro_batches=micro_batches,
        coordinates=layout.pipeline * layout.tensor,
        tensors=built["tensors"],
        elements=built["elements"],
        stages=stages,
        device=device,
        fits=all(DEVICES[device].holds(need) for need in needed),
    )


def require_fit(config: RunConfig, rehearsal: Rehearsal) -> None:
    """Raise UserError, naming the nearest layout that fits, if a stage needs more than the device has."""
    if rehearsal.fits:
        return
    worst = max(rehearsal.stages, key=lambda stage: stage.memory.total)
    device = DEVICES[rehearsal.device]
    raise UserError(
        f"{config.name}: {rehearsal.layout} needs {worst.memory.total / 1e9:.1f} GB on pipeline rank "
        f"{worst.pipeline_rank}, an {device.name} has {device.memory / 1e9:.0f} GB and a tenth of it is kept free: "
        f"{mend(config, rehearsal.world, device)}"
    )


def _build_apart(config: RunConfig, world: int, show_progress: bool) -> dict[str, Any]:
    """What `pretrain.planning.meta_rank` says of the model under its layout."""
    asked = json.dumps({"config": config.model_dump(mode="json"), "world": world, "progress": show_progress})
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", _MODULE]
    answer = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    try:
        built = json.loads(answer.stdout)
    except ValueError:
        raise LacunaError(f"the rehearsal's process ended with code {answer.returncode}") from None
    if "error" in built:
        raise LacunaError(f"{config.parallel.describe(world)} cannot be built: {built['error']}")
    return dict(built)
