"""Bytes that this rank sends, counted at torch.distributed's operations while they are called."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

OWN = "own"
"""What the loop and the engines agree on beside the model: counts, statistics, gradient norms, overflow flags."""
_MOST_FLAGS = 2  # numbers in a message that says how the ranks are and is no part of the model
# (which argument's bytes, how often they are sent over r ranks times (r-1)/r), as ring algorithms do it
_OPERATIONS = {
    "allreduce_": (0, 2),
    "allreduce_coalesced_": (0, 2),
    "_allgather_base_": (0, 1),
    "allgather_": (0, 1),
    "allgather_into_tensor_coalesced_": (0, 1),
    "_reduce_scatter_base_": (1, 1),
    "reduce_scatter_": (1, 1),
    "reduce_scatter_tensor_coalesced_": (1, 1),
    "broadcast_": (0, 1),
    "reduce_": (0, 1),
}
_SEND = "send"
_SILENT = {"recv_", "barrier"}


class CountedTraffic(TorchDispatchMode):
    """`with CountedTraffic() as sent:` counts what is sent in it; `sent.bytes` by axis of the layout, and `OWN`.

    Every call of torch.distributed and of a process group passes torch's dispatcher, whoever makes it and however it
    was imported. Needs megatron's groups. An operation that is not known is an error, not zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[tuple[str, str]] = Counter()
        self._axes = _axes()

    def __torch_dispatch__(
        self, operation: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operation.namespace == "c10d":
            self._note(operation._schema.name.partition("::")[2], args)
        return operation(*args, **(kwargs or {}))

    def _note(self, name: str, args: Sequence[Any]) -> None:
        if name in _SILENT:
            return
        boxed = next(a for a in args if isinstance(a, torch.ScriptObject) and "ProcessGroup" in str(a._type()))
        group = dist.ProcessGroup.unbox(boxed)
        axis = self._axes.get(group.group_name, OWN)
        if name == _SEND:
            # megatron sends to the other one of two stages through the world's group
            axis, sent = "pipeline" if axis == OWN else axis, float(_bytes(args[0]))
        else:
            which, times = _OPERATIONS[name]
            sent = times * _bytes(args[which]) * (group.size() - 1) / group.size()
            if _numbers(args[which]) <= _MOST_FLAGS:
                axis = OWN
        self.bytes[axis] += sent
        self.calls[axis, name] += 1


def _axes() -> dict[str, str]:
    """Axis by name of megatron's group."""
    from megatron.core import parallel_state

    return {
        parallel_state.get_tensor_model_parallel_group().group_name: "tensor",
        parallel_state.get_pipeline_model_parallel_group().group_name: "pipeline",
        parallel_state.get_context_parallel_group().group_name: "context",
        parallel_state.get_data_parallel_group().group_name: "data",
        parallel_state.get_data_parallel_group(with_context_parallel=True).group_name: "data",
    }


def _tensors(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in _tensors(part)]


def _bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _numbers(value: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(value))
