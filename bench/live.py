"""Bytes of live tensors: how many there are, and the most there were."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """`with LiveTensors() as live:` follows every storage that an operation in it returns until it is freed.

    A storage counts once, with the bytes it has, whoever keeps it: a module, an optimizer, or autograd for the
    backward pass. What a kernel takes and gives back inside is not seen. `reserved`: bytes of a storage that is not
    counted: DeepSpeed reserves a bucket of 5e8 elements, of which a small model touches a small part.
    """

    def __init__(self, reserved: int = 0) -> None:
        super().__init__()
        self._reserved = reserved
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self, operation: Any, _types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and not leaf.is_meta:
                self._note(leaf.untyped_storage())
        return result

    def restart(self) -> None:
        """Forget the peak: it is what is live now."""
        self.peak = self.bytes

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if size and size == self._reserved:
            return
        known = self._held.get(key)
        if known is not None and known[0]() is storage:
            self.bytes += size - known[1]
        else:
            self.bytes += size
        self._held[key] = (weakref.ref(storage, partial(self._free, key)), size)
        self.peak = max(self.peak, self.bytes)

    def _free(self, key: int, gone: Any) -> None:
        held = self._held.get(key)
        if held is not None and held[0] is gone:
            self.bytes -= held[1]
            del self._held[key]
