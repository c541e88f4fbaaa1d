"""What to take instead of a layout that does not work."""

from __future__ import annotations

import itertools
import math

from pydantic import ValidationError

from parallel.layout import ParallelConfig
from pretrain.config import RunConfig
from pretrain.layout_fit import with_axes
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
        try:
            layout = with_axes(given, **axes, recompute=again)
            candidate = RunConfig.parse({**config.model_dump(), "parallel": layout.model_dump()}, config.name)
            candidate.micro_batches(world)
        except (UserError, ValidationError):
            continue
        if device is None or device.holds(memory(candidate, candidate.parallel, world)):
            far = sum(abs(math.log2(size / getattr(given, axis))) for axis, size in axes.items())
            found.append((far + (again != given.recompute), candidate.parallel.model_size, candidate.parallel))
    return min(found, key=lambda row: row[:2])[2] if found else None


def require_divides(config: RunConfig, world: int) -> int:
    """Micro-batches per step and data-parallel rank on `world` ranks.

    Raises UserError, naming the nearest layout that works, if layout or batch do not divide them.
    """
    try:
        return config.micro_batches(world)
    except UserError as error:
        reason, _, other = str(error).partition(": ")
        raise UserError(f"{reason}: {mend(config, world)}, or {other}") from None


def mend(config: RunConfig, world: int, device: Device | None = None) -> str:
    """What to set for the nearest layout that works on `world` ranks (and fits `device`), or that none does."""
    nearest = nearest_layout(config, world, device)
    if nearest is None:
        return "no layout works there, take another number of ranks or another train.global_batch"
    return f"set {keys_of(nearest, config.parallel)}"


def keys_of(layout: ParallelConfig, other: ParallelConfig) -> str:
    """The keys in which `layout` differs from `other`, as overrides."""
    before = other.model_dump()
    changed = {key: value for key, value in layout.model_dump().items() if value != before[key]}
    return " ".join(f"parallel.{key}={str(value).lower()}" for key, value in changed.items())
