"""A copy of what a rank writes, in host memory that is used again at every save."""

from __future__ import annotations

from dataclasses import replace

import torch

from parallel.checkpoint.store import Piece
from parallel.engines.base import Engine, Fragment


class HostCopy:
    """Holds the copied float32 values; memory is pinned where they come from a GPU."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        pinned = engine.mesh.device.type == "cuda"
        numel = sum(fragment.values.numel() for fragment in self._written())
        self._memory = torch.empty(numel, pin_memory=pinned).zero_()  # its pages are wanted now, not at the first save

    def take(self) -> list[Piece]:
        """Copy the engine's state as it is now. The pieces are valid until the next call."""
        copies, done = [], 0
        for fragment in self._written():
            place = self._memory[done : done + fragment.values.numel()]
            place.copy_(fragment.values, non_blocking=True)
            copies.append(replace(fragment, values=place))
            done += place.numel()
        if self._engine.mesh.device.type == "cuda":
            torch.cuda.synchronize(self._engine.mesh.device)
        return [Piece(c.kind, name, box, values) for c in copies for name, _, box, values in c.pieces()]

    def _written(self) -> list[Fragment]:
        return [fragment for fragment in self._engine.fragments() if fragment.writes]
