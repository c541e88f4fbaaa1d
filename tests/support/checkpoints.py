"""Checkpoints of given tensors, published without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reshard import even_division, write_checkpoint
from parallel.checkpoint.shard_file import CHUNK_BYTES
from parallel.engines.base import KINDS
from parallel.logical import Extent, Rectangle
from pretrain.config import RunConfig
from pretrain.guards import Guard
from pretrain.session import run_identity
from tests.support.reference_model import logical_shapes

Logical = dict[str, dict[str, torch.Tensor]]  # kind → logical name → whole tensor


def random_state(shapes: Mapping[str, Extent], seed: int) -> Logical:
    """Normal values for weights and moments."""
    generator = torch.Generator().manual_seed(seed)
    return {kind: {name: torch.randn(size, generator=generator) for name, size in shapes.items()} for kind in KINDS}


def publish(final: Path, state: Logical, step: int, identity: dict[str, Any], files: int = 1, **more: Any) -> Path:
    """Write `state` as checkpoint `final` of `step`, in equal files; `more` replaces fields of the manifest."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state["weight"].items()}
    fields = {"updates": step, "samples": 8 * step, "tokens": 256 * step, "provenance": {"layout": "none"}, "loop": {}}
    fields |= {"chunk_bytes": CHUNK_BYTES, "shapes": shapes, "blocks": {}, "files": {}} | more
    described = CheckpointManifest(step=step, identity=identity, **fields)

    def read_into(kind: str, name: str, box: Rectangle, view: torch.Tensor) -> None:
        view.copy_(state[kind][name][box.slices])

    write_checkpoint(final, described, even_division(shapes, files), read_into, lambda _: None)
    return final


def publish_run(root: Path, config: RunConfig, step: int = 3, seed: int = 5) -> tuple[Path, Logical]:
    """A checkpoint of `config`'s model with random state below `root`, and that state."""
    state = random_state(logical_shapes(config.model), seed)
    for weight in state["weight"].values():
        weight.mul_(0.1 if weight.dim() > 1 else 1.0)
    loop = Guard(config.guard).state()
    return publish(root / f"step-{step:08d}", state, step, run_identity(config, "data"), loop=loop), state
