"""What to take instead of a layout that does not work."""

from __future__ import annotations

import itertools
import math

from parallel.layout import ParallelConfig
from pretrain.config import RunConfig
from pretrain.planning.estimate import Device
from pretrain.planning.memory import memory
from runtime.errors import UserError

_WIDEST_AXIS = 64


def nearest_layout(config: RunConfig, world: int, device: Device | None = None) -> ParallelConfig | None:
    """The valid layout of the same engine on `world` ranks whose axes differ least, in powers of two; None if none is.

    With `device`, it must also fit its memory; then recomputing is an option too.
    """
    given = config.parallel
    sizes = [n for n in range(1, min(world, _WIDEST_AXIS) + 1) if world % n == 0]
    recompute = sorted({given.recompute, "full"} if device else {given.recompute}, key=lambda r: r != given.recompute)
    found: list[tuple[float, int, ParallelConfig]] = []
    for tensor, pipeline, context, again in itertools.product(sizes, sizes, sizes, recompute):
        axes = {"tensor": tensor, "pipeline": pipeline, "context": context}
        values = {
            **given.model_dump(), **axes, "recompute": again, "sequence": given.sequence and tensor > 1,
            "virtual_pipeline": given.virtual_pipeline if pipeline > 1 else 1,
            "context_exchange": given.context_exchange if context > 1 else "gather",
        }  # fmt: skip
        try:
            candidate = RunConfig.parse({**config.model_dump(), "parallel": values}, config.name)
            candidate.micro_batches(world)
        except UserError:
            continue
        if device is None or device.holds(memory(candidate, candidate.parallel, world)):
            far = sum(abs(math.log2(size / getattr(given, axis))) for axis, size in axes.items())
            found.append((far + (again != given.recompute), candidate.parallel.model_size, candidate.parallel))
    return min(found, key=lambda row: row[:2])[2] if found else None


def keys_of(layout: ParallelConfig, other: ParallelConfig) -> str:
    """The keys in which `layout` differs from `other`, as overrides."""
    before = other.model_dump()
    changed = {key: value for key, value in layout.model_dump().items() if value != before[key]}
    return " ".join(f"parallel.{key}={str(value).lower()}" for key, value in changed.items())
