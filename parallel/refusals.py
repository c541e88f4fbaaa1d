"""Which layouts no engine can run, why, and the nearest ones that work."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel.layout import ParallelConfig

_CHOICES: dict[str, tuple[Any, ...]] = {
    "zero": (0, 1, 2, 3),
    "offload": ("none", "optimizer", "parameters"),
    "pipeline": (1,),
    "context": (1,),
    "virtual_pipeline": (1,),
    "context_exchange": ("gather",),
    "sequence": (False,),
    "overlap": (False,),
    "engine": ("megatron", "deepspeed"),
}
"""What a mend may set a key to, in order; it takes the nearest. It adds no ranks and switches nothing on."""
_MOST_OFFERED = 2


def refusal(layout: ParallelConfig) -> str:
    """Why no engine can run `layout`, the key first; empty if one can."""
    if layout.sequence and layout.tensor == 1:
        return "parallel.sequence=true needs tensor ranks"
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        return f"parallel.virtual_pipeline={layout.virtual_pipeline} needs stages"
    if layout.context_exchange == "ring" and layout.context == 1:
        return "parallel.context_exchange=ring needs context ranks"
    return _megatron_refuses(layout) if layout.engine == "megatron" else _deepspeed_refuses(layout)


def _megatron_refuses(layout: ParallelConfig) -> str:
    if layout.zero > 1:
        return f"parallel.zero={layout.zero} is not offered by parallel.engine=megatron"
    if layout.offload != "none":
        return f"parallel.offload={layout.offload} is not offered by parallel.engine=megatron"
    if layout.overlap and layout.zero == 0:
        return "parallel.overlap=true gathers sharded parameters, and parallel.zero=0 has none"
    return ""


def _deepspeed_refuses(layout: ParallelConfig) -> str:
    for axis in ("pipeline", "context"):
        if getattr(layout, axis) > 1:
            return f"parallel.{axis}={getattr(layout, axis)} is not offered by parallel.engine=deepspeed"
    if layout.zero == 0:
        return "parallel.zero=0 with parallel.engine=deepspeed reports no gradient norm"
    for switch in ("sequence", "overlap"):
        if getattr(layout, switch):
            return f"parallel.{switch}=true is not offered by parallel.engine=deepspeed"
    if layout.offload == "parameters" and layout.zero != 3:
        return f"parallel.offload=parameters needs sharded weights, and parallel.zero={layout.zero} keeps them whole"
    return ""


def mends(layout: ParallelConfig) -> list[dict[str, Any]]:
    """The smallest sets of keys that make `layout` one that works, with their nearest values; at most two sets.

    Those that keep the engine come first.
    """
    for count in range(1, len(_CHOICES) + 1):
        found = [change for keys in itertools.combinations(_CHOICES, count) for change in _working(layout, keys)]
        if found:
            return found[:_MOST_OFFERED]
    raise AssertionError("one process without switches always works")


def _working(layout: ParallelConfig, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The nearest change of exactly `keys` that works, if any does."""
    others = [sorted((v for v in _CHOICES[k] if v != getattr(layout, k)), key=_distance(layout, k)) for k in keys]
    for values in itertools.product(*others):
        change = dict(zip(keys, values, strict=True))
        if not refusal(layout.model_copy(update=change)):
            yield change
            return


def _distance(layout: ParallelConfig, key: str) -> Callable[[Any], int]:
    choices, given = _CHOICES[key], getattr(layout, key)
    place = choices.index(given) if given in choices else 0
    return lambda value: abs(choices.index(value) - place)


def offer(changes: list[dict[str, Any]]) -> str:
    """The changes as text, keys as overrides: `set parallel.zero=1 or parallel.engine=deepspeed`."""
    each = (" ".join(f"parallel.{key}={str(value).lower()}" for key, value in c.items()) for c in changes)
    return f"set {' or '.join(each)}"
