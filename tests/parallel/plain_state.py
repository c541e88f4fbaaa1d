"""A logical state of two matrices and a vector, cut flat over any number of ranks, without any engine."""

from pathlib import Path
from typing import Any

import torch

from parallel.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from parallel.engines.base import KINDS, Fragment
from parallel.logical import Extent, whole_block
from parallel.mesh import Mesh
from tests.support.threads import HeldState, Logical, fill, run_ranks

SHAPES: dict[str, Extent] = {"embedding": (13, 8), "blocks.0.gate": (6, 7), "norm": (9,)}
IDENTITY = {"model.width": 8, "train.seed": 3}


def progress(step: int) -> Progress:
    return Progress(step, step, step * 4, step * 64, IDENTITY, {"layout": "plain"}, {})


def values(seed: int) -> Logical:
    generator = torch.Generator().manual_seed(seed)
    return {kind: {name: torch.randn(size, generator=generator) for name, size in SHAPES.items()} for kind in KINDS}


def plain_state(mesh: Mesh, state: Logical | None = None) -> HeldState:
    """The part of rank `mesh.rank`: an equal share of each flattened tensor, filled from `state` or with zeros."""
    held = []
    for name, size in SHAPES.items():
        numel = torch.Size(size).numel()
        start, stop = mesh.rank * numel // mesh.world, (mesh.rank + 1) * numel // mesh.world
        for kind in KINDS:
            memory = torch.zeros(stop - start)
            held.append(Fragment(kind, size, (whole_block(name, size),), start, memory, True))
    mine = HeldState(mesh, held, SHAPES)
    if state is not None:
        fill(mine, state)
    return mine


def save(root: Path, step: int, ranks: int = 2, seed: int | None = None) -> Path:
    """Publish `values(seed)` as the checkpoint of `step` (seed: the step), written by `ranks` ranks."""
    state = values(step if seed is None else seed)
    results = run_ranks(ranks, lambda mesh: save_checkpoint(root, plain_state(mesh, state), progress(step)))
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results[0]


def load(directory: Path, identity: dict[str, Any] = IDENTITY) -> HeldState:
    """Load on one rank."""
    state = plain_state(Mesh.local(torch.device("cpu")))
    load_checkpoint(directory, state, identity)
    return state
