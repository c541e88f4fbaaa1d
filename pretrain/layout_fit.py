"""Whether a layout's axes fit the model and the sequence, and the nearest ones that do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from parallel.layout import ParallelConfig
from parallel.refusals import offer

if TYPE_CHECKING:
    from pretrain.config import RunConfig


def misfit(config: RunConfig) -> str:
    """What does not fit and the keys that mend it, those of all axes together; empty if all fits."""
    why = _why(config)
    if not why:
        return ""
    before, after = config.parallel.model_dump(), _nearest(config).model_dump()
    return f"{why}: {offer([{key: value for key, value in after.items() if value != before[key]}])}"


def _why(config: RunConfig) -> str:
    layout, shape, length = config.parallel, config.model, config.train.sequence_length
    for key in ("heads", "kv_heads", "ffn"):
        if getattr(shape, key) % layout.tensor:
            return f"parallel.tensor={layout.tensor} does not divide model.{key}={getattr(shape, key)}"
    if length % layout.context:
        return f"parallel.context={layout.context} does not divide train.sequence_length={length}"
    if layout.sequence and length // layout.context % layout.tensor:
        part = f"train.sequence_length / parallel.context={length // layout.context}"
        return f"parallel.tensor={layout.tensor} does not divide {part}"
    if layout.chunks > shape.layers:
        product = f"parallel.pipeline × parallel.virtual_pipeline = {layout.chunks}"
        return f"{product} needs as many layers, model.layers={shape.layers}"
    return ""


def _nearest(config: RunConfig) -> ParallelConfig:
    """The largest axes below the given ones that fit; switches go with the axis that they need."""
    layout, shape, length = config.parallel, config.model, config.train.sequence_length
    context = _divisor(length, layout.context)
    whole = math.gcd(shape.heads, shape.kv_heads, shape.ffn)
    tensor = _divisor(math.gcd(whole, length // context) if layout.sequence else whole, layout.tensor)
    pipeline = min(layout.pipeline, shape.layers)
    virtual = min(layout.virtual_pipeline, shape.layers // pipeline) if pipeline > 1 else 1
    return with_axes(layout, tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual, context=context)


def with_axes(layout: ParallelConfig, **changes: Any) -> ParallelConfig:
    """`layout` with other values, and without the switches that they leave no use for."""
    values = layout.model_dump() | changes
    if values["tensor"] == 1:
        values["sequence"] = False
    if values["pipeline"] == 1:
        values["virtual_pipeline"] = 1
    if values["context"] == 1:
        values["context_exchange"] = "gather"
    if values["zero"] < 3 and values["offload"] == "parameters":
        values["offload"] = "optimizer"
    return ParallelConfig(**values)


def _divisor(number: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if number % n == 0)


def uncompiled(layout: ParallelConfig) -> str:
    """Why torch.compile cannot compile blocks under `layout`, with the mends; empty if it can.

    A block is one graph only where nothing inside it talks to other ranks; hooks too would break it up.
    """
    modest = {"tensor": min(layout.tensor, 1), "context": min(layout.context, 1), "overlap": False}
    modest["zero"] = min(layout.zero, 2)
    breaks = [key for key, value in modest.items() if getattr(layout, key) != value]
    if not breaks:
        return ""
    before, after = layout.model_dump(), with_axes(layout, **modest).model_dump()
    mend = offer([{key: value for key, value in after.items() if value != before[key]}])
    given = f"parallel.{breaks[0]}={str(before[breaks[0]]).lower()}"
    return f"train.compile=true is not offered with {given}: {mend} or train.compile=false"
