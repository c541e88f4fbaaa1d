"""One rank of a launch in which steps are refused: calm steps, harm on one rank at a time, calm steps again."""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from parallel.engines.base import Engine
from parallel.logical import logical_parameters
from parallel.mesh import Mesh, close_process_group
from pretrain.agreement import agree
from pretrain.build import build_engine
from pretrain.feed import StepBatch
from pretrain.guards import Guard, GuardConfig
from pretrain.loop import learning_rate
from runtime.environment import RankInfo
from tests.support.grid import Case, feed_of
from tests.support.grid_worker import _digests as digests_of

_SECONDS_PER_CASE = 120
GUARD = GuardConfig(spike=50.0, minimum=4, patience=9)
CALM = (0, 1, 2, 3)
"""Steps before the harm: as many as the guard needs before it knows a spike."""
HARM: dict[int, tuple[str, float]] = {
    4: ("gradient", 0),
    5: ("loss", float("nan")),
    6: ("gradient", 1),
    7: ("loss", 1e3),
}
"""Step → what is spoilt: on this rank a gradient, in the last data and context rank's share the weights of the loss,
by which factor. It is always the second micro-batch only.
"""
AFTER = (8, 9)


def run_case(case: Case, rank: RankInfo) -> dict[str, Any]:
    """Every rank's account of the steps, and its digests before and after the harm and at the end, in rank order.

    `skipped` are the digests at the end of a second engine that never saw the harmful steps.
    """
    mesh = Mesh.create(case.config().parallel, rank)
    engine, guard = build_engine(case.config(), mesh), Guard(GUARD)
    told: dict[str, Any] = {"calm": [take_step(case, engine, guard, step) for step in CALM]}
    told["before"] = digests_of(engine)
    told["harm"] = []
    for step in HARM:
        told["harm"].append(take_step(case, engine, guard, step))
        told.setdefault("between", []).append(digests_of(engine))
    told["after"] = [take_step(case, engine, guard, step) for step in AFTER]
    told["end"], told["guard"] = digests_of(engine), {**guard.state(), "refused": guard.refused}
    del engine
    engine, guard = build_engine(case.config(), mesh), Guard(GUARD)
    told["skipping"] = [take_step(case, engine, guard, step) for step in (*CALM, *AFTER)]
    told["skipped"] = digests_of(engine)
    return {"ranks": mesh.gather(told)}


def take_step(case: Case, engine: Engine, guard: Guard, step: int) -> list[Any]:
    """Take a step as the loop does: [accepted, loss sum, gradient norm], the numbers as text with every bit."""
    config, mesh = case.config(), engine.mesh
    feed = feed_of(case, mesh.data_rank, mesh.data_size, mesh.context_rank, config.parallel.context)
    batch = feed.step(step)
    tokens = agree(mesh, batch, False).tokens
    kind, value = HARM.get(step, ("", 0.0))
    spoils = kind == "loss" and (mesh.data_rank, mesh.context_rank) == (mesh.data_size - 1, config.parallel.context - 1)
    if spoils:
        batch = _spoilt(batch, value)
    with _spoilt_gradient(engine) if kind == "gradient" and mesh.rank == value else nullcontext():
        taken = engine.train_step(
            batch.micro_batches,
            float(tokens),
            learning_rate(config, step),
            lambda loss, norm: guard.accepts(loss / tokens, norm),
        )
    guard.note(taken.loss_sum / tokens, taken.grad_norm, taken.accepted)
    return [taken.accepted, taken.loss_sum.hex(), taken.grad_norm.hex()]


def _spoilt(batch: StepBatch, factor: float) -> StepBatch:
    first, second, *rest = batch.micro_batches
    return replace(batch, micro_batches=(first, replace(second, weights_R=second.weights_R * factor), *rest))


@contextmanager
def _spoilt_gradient(engine: Engine) -> Iterator[None]:
    """One number of a matrix's gradient is not one in the second micro-batch; the loss is what it was."""
    models = getattr(engine, "_models", None) or [engine._model]  # type: ignore[attr-defined]
    matrix = next(p for model in models for p, blocks in logical_parameters(model) if len(blocks[0].shape) == 2)
    seen = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == 2:
            gradient = gradient.clone()
            gradient.view(-1)[0] = torch.nan
        return gradient

    hook = matrix.register_hook(spoil)
    yield
    hook.remove()
    assert seen >= 2, "the harm was not done"


def main(plan: Path) -> None:
    """Run the plan's cases; rank 0 writes `results.json` beside it."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rank = RankInfo.from_environment()
    results = []
    for values in json.loads(plan.read_text()):
        case = Case(**values)
        faulthandler.dump_traceback_later(_SECONDS_PER_CASE, exit=True)
        if rank.is_first:
            print(case.name, flush=True)
        results.append(run_case(case, rank))
        gc.collect()  # as in `grid_worker`
    faulthandler.cancel_dump_traceback_later()
    if rank.is_first:
        (plan.parent / "results.json").write_text(json.dumps(results))
    close_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
