"""How far a grid case is from the plain reference, and how far it may be; the reasons are in docs/parallelism.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reader import BlockReader
from tests.support.grid import LAYERS, Case, feed_of
from tests.support.reference_model import ReferenceRun, reference_losses


@dataclass(frozen=True)
class Distance:
    """Largest relative differences from the reference over all steps or tensors.

    `gradient`: ‖g - g_ref‖ / ‖g_ref‖ of the worst tensor in the first step. `weight`: largest absolute difference of
    any weight after the last step, in units of the learning rate summed over the steps (see docs/parallelism.md).
    """

    digests_equal: bool
    loss: float
    grad_norm: float
    gradient: float
    weight: float


FP32 = Distance(True, loss=1e-5, grad_norm=1e-5, gradient=1e-5, weight=1e-2)
BF16 = Distance(True, loss=2e-2, grad_norm=5e-2, gradient=1e-1, weight=2.0)


@cache
def reference(data: str, steps: int, layers: int = LAYERS) -> tuple[ReferenceRun, tuple[str, ...]]:
    """The reference run of the grid's data, and its batch digests."""
    case = Case(1, {}, data, micro_batch=8, steps=steps, layers=layers)
    feed = feed_of(case)
    digests = []
    for step in range(steps):
        low, high = feed.step(step).digest
        digests.append(f"{high:016x}{low:016x}")
    return reference_losses(case.config(), feed, steps), tuple(digests)


def distance(case: Case, result: dict[str, Any]) -> Distance:
    """Compare a case's result and checkpoints with the reference."""
    run, digests = reference(case.data, case.steps, case.layers)
    config = case.config()
    beta = config.optimizer.betas[0]
    shrink = min(1.0, config.optimizer.clip / (run.grad_norms[0] + 1e-6))
    first, last = _reader(result["first"]), _reader(result["last"])
    gradients = [
        _relative(first.read("exp_avg", name).double(), gradient * shrink * (1 - beta))
        for name, gradient in run.first_gradients.items()
    ]
    rates = [
        config.optimizer.lr
        * config.optimizer.schedule.factor((s + 1) * config.train.tokens_per_step, config.train.total_tokens)
        for s in range(case.steps)
    ]
    weights = [
        float((last.read("weight", name).double() - weight.detach()).abs().max()) / sum(rates)
        for name, weight in run.weights.items()
    ]
    return Distance(
        tuple(result["digests"]) == digests,
        largest(abs(a - b) / abs(b) for a, b in zip(result["losses"], run.losses, strict=True)),
        largest(abs(a - b) / b for a, b in zip(result["grad_norms"], run.grad_norms, strict=True)),
        largest(gradients),
        largest(weights),
    )


def bounds(case: Case) -> Distance:
    """The largest `Distance` that a case may have."""
    return BF16 if case.precision == "bf16" else FP32


def distance_faults(case: Case, found: Distance) -> list[str]:
    """What of `found` is beyond the case's bounds (so is what is not a number); empty if nothing is."""
    limit = bounds(case)
    kinds = ("loss", "grad_norm", "gradient", "weight")
    beyond = [kind for kind in kinds if not getattr(found, kind) <= getattr(limit, kind)]
    return ["batch digests differ"] * (not found.digests_equal) + [
        f"{kind} {getattr(found, kind):.1e} > {getattr(limit, kind):.1e}" for kind in beyond
    ]


def replica_faults(case: Case, result: dict[str, Any]) -> list[str]:
    """What is wrong with the replicas of weights, masters and moments: bits that differ, or too few or many of them."""
    layout, found = case.config().parallel, result["replicas"]
    stage = case.world // layout.pipeline  # ranks that share a stage: norms stand on all of them, matrices are cut
    whole = sorted({stage // layout.tensor, stage})
    copies = {
        "weight_copies": [] if layout.zero == 3 else whole,
        "state_copies": whole if layout.zero == 0 else sorted({1, layout.tensor}),
    }
    return [f"replicas differ: {piece}" for piece in found["differing"]] + [
        f"{key} {found[key]}, not {expected}" for key, expected in copies.items() if found[key] != expected
    ]


def continuation_faults(case: Case, result: dict[str, Any]) -> list[str]:
    """Which curves of the steps taken again after a load are not the run's own to the bit."""
    rest = result.get("resumed", {})
    kept = {curve: result[curve][case.steps // 2 :] for curve in rest}
    missing = ["no step was taken again"] * (case.resumed and set(rest) != {"losses", "grad_norms", "digests"})
    return missing + [f"continued {curve} differ" for curve in rest if rest[curve] != kept[curve]]


def largest(values: Iterable[float]) -> float:
    """The largest, or NaN if one of them is that; `max` may pass it over."""
    return float(np.max(list(values)))


def _reader(path: str) -> BlockReader:
    return BlockReader(Path(path), CheckpointManifest.read(Path(path)))


def _relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm() / expected.norm())
