"""Compares two checkpoints tensor by tensor, whatever layouts wrote them, a slice of each at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reader import BlockReader
from parallel.engines.base import KINDS
from parallel.logical import Extent, row_slices

EQUAL, DIFFERENT, SHAPE, ONLY_A, ONLY_B = "equal", "different", "shape", "only in A", "only in B"


@dataclass(frozen=True)
class TensorDifference:
    """How one logical tensor of A and B differs.

    `state` is `equal` (the same bits, or within the tolerance), `different`, `shape`, `only in A` or `only in B`.
    `largest`: max |a - b|. `relative`: ‖a - b‖ / ‖a‖, in float64; the norm of b where a is zero. Both are 0 for equal
    bits, and nan if values are not finite and differ.
    """

    kind: str
    name: str
    state: str
    largest: float = 0.0
    relative: float = 0.0
    shapes: tuple[Extent | None, Extent | None] = (None, None)


class CheckpointDifference:
    """Two checkpoints side by side. Raises UserError if one of them has no sound manifest."""

    def __init__(self, first: Path, second: Path) -> None:
        self._paths = (first, second)
        self._manifests = (CheckpointManifest.read(first), CheckpointManifest.read(second))

    def manifest_changes(self) -> dict[str, tuple[Any, Any]]:
        """What the manifests say differently of the run: key → (value in A, value in B), None where it is absent.

        How the tensors are stored is not compared.
        """
        first, second = (_facts(manifest) for manifest in self._manifests)
        keys = [*first, *(key for key in second if key not in first)]
        return {k: (first.get(k), second.get(k)) for k in keys if first.get(k) != second.get(k)}

    def __len__(self) -> int:
        """Tensors to compare, a kind and a name each."""
        return len(KINDS) * len(self._names())

    def tensors(self, tolerance: float = 0.0) -> Iterator[TensorDifference]:
        """Compare every logical tensor, weights first. Tensors within relative `tolerance` are equal.

        Raises UserError naming a file that is damaged.
        """
        for path, manifest in zip(self._paths, self._manifests, strict=True):
            manifest.verify_headers(path)
        readers = [BlockReader(path, m) for path, m in zip(self._paths, self._manifests, strict=True)]
        for kind in KINDS:
            for name in self._names():
                yield self._compare(kind, name, readers, tolerance)

    def _names(self) -> list[str]:
        first, second = (manifest.shapes for manifest in self._manifests)
        return [*first, *(name for name in second if name not in first)]

    def _compare(self, kind: str, name: str, readers: list[BlockReader], tolerance: float) -> TensorDifference:
        shapes = (self._manifests[0].shapes.get(name), self._manifests[1].shapes.get(name))
        if shapes[0] is None or shapes[1] is None:
            return TensorDifference(kind, name, ONLY_A if shapes[1] is None else ONLY_B, shapes=shapes)
        if shapes[0] != shapes[1]:
            return TensorDifference(kind, name, SHAPE, shapes=shapes)
        distance = _Distance()
        for box in row_slices(shapes[0]):
            a, b = torch.empty(box.size), torch.empty(box.size)
            readers[0].read_into(kind, name, box, a)
            readers[1].read_into(kind, name, box, b)
            distance.add(a, b)
        near = tolerance > 0 and distance.relative <= tolerance
        state = EQUAL if distance.same_bits or near else DIFFERENT
        return TensorDifference(kind, name, state, distance.largest, distance.relative, shapes)


class _Distance:
    """Accumulates the distance of two tensors over slices."""

    def __init__(self) -> None:
        self.same_bits, self.largest = True, 0.0
        self._difference = self._first = self._second = 0.0

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        if torch.equal(a.view(torch.int32), b.view(torch.int32)):
            self._first += float(a.double().square().sum())
            return
        self.same_bits = False
        gap = a.double() - b.double()
        gap = torch.where(a.view(torch.int32) == b.view(torch.int32), 0.0, gap)  # inf - inf of equal bits
        self.largest = max(self.largest, float(gap.abs().max()), key=lambda x: (math.isnan(x), x))
        self._difference += float(gap.square().sum())
        self._first += float(a.double().square().sum())
        self._second += float(b.double().square().sum())

    @property
    def relative(self) -> float:
        if self.same_bits:
            return 0.0
        scale = math.sqrt(self._first) or math.sqrt(self._second)
        return math.sqrt(self._difference) / scale if scale else 0.0


def _facts(manifest: CheckpointManifest) -> dict[str, Any]:
    facts: dict[str, Any] = {key: getattr(manifest, key) for key in ("step", "updates", "samples", "tokens")}
    for section in ("identity", "provenance", "loop"):
        facts |= {f"{section}.{key}": value for key, value in getattr(manifest, section).items()}
    return facts
