"""One rank of a grid launch: runs every case of a plan in the same processes and writes what rank 0 saw."""

import faulthandler
import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from parallel.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from parallel.engines.base import Engine
from parallel.logical import logical_parameters
from parallel.mesh import Mesh, close_process_group
from pretrain.agreement import agree
from pretrain.build import build_engine
from pretrain.loop import learning_rate
from runtime.environment import RankInfo
from runtime.files import digest_bytes
from tests.support.grid import Case, feed_of

_SECONDS_PER_CASE = 300


Curves = dict[str, list[Any]]


def run_case(case: Case, directory: Path, rank: RankInfo) -> dict[str, Any]:
    """Train the case; checkpoints after the first and the last step, and in the middle of a case that is resumed."""
    start = time.monotonic()
    mesh = Mesh.create(case.config().parallel, rank)
    torch._dynamo.reset()
    counters.clear()
    engine = build_engine(case.config(), mesh, compile_backend="aot_eager")  # needs no compiler
    saved: dict[int, Path] = {}
    middle = case.steps // 2

    def save(done: int) -> None:
        if done in (1, case.steps) or (case.resumed and done == middle):
            progress = Progress(done, done, 0, 0, identity={}, provenance={}, loop={})
            saved[done] = save_checkpoint(directory, engine, progress)

    result: dict[str, Any] = dict(take_steps(case, engine, range(case.steps), save))
    result |= {"first": str(saved[1]), "last": str(saved[case.steps]), "replicas": replicas(engine)}
    result["graphs"], result["graph_breaks"] = counters["stats"]["unique_graphs"], dict(counters["graph_break"])
    if case.resumed:
        again = build_engine(case.config(), mesh)
        load_checkpoint(saved[middle], again, {})
        result["resumed"] = take_steps(case, again, range(middle, case.steps), lambda _done: None)
    result["seconds"] = time.monotonic() - start
    return result


def take_steps(case: Case, engine: Engine, span: range, after: Callable[[int], None]) -> Curves:
    """Take the steps of `span`, calling `after` with the number of steps done."""
    config, mesh = case.config(), engine.mesh
    feed = feed_of(case, mesh.data_rank, mesh.data_size, mesh.context_rank, config.parallel.context)
    curves: Curves = {"losses": [], "grad_norms": [], "digests": []}
    for step in span:
        batch = feed.step(step)
        agreed = agree(mesh, batch, False)
        taken = engine.train_step(
            batch.micro_batches, float(agreed.tokens), learning_rate(config, step), lambda _loss, _norm: True
        )
        curves["losses"].append(taken.loss_sum / agreed.tokens)
        curves["grad_norms"].append(taken.grad_norm)
        curves["digests"].append(agreed.digest)
        after(step + 1)
    return curves


def replicas(engine: Engine) -> dict[str, list[Any]]:
    """Who holds the same piece of the model: names of pieces whose bits differ, and on how many ranks pieces stand.

    `weight_copies`: weights as the model computes with them, none of which stand whole under ZeRO-3. `state_copies`:
    float32 masters and Adam moments; the moments are sums of gradients, so equal ones had equal gradients.
    """
    digests: dict[str, list[str]] = {}
    for held in engine.mesh.gather(_digests(engine)):
        for piece, digest in held.items():
            digests.setdefault(piece, []).append(digest)
    copies = {
        side: sorted({len(found) for piece, found in digests.items() if (piece.split()[0] == "used") == used})
        for side, used in (("weight_copies", True), ("state_copies", False))
    }
    return {"differing": sorted(piece for piece, found in digests.items() if len(set(found)) > 1), **copies}


def _digests(engine: Engine) -> dict[str, str]:
    """Digest of every piece of weights and state that this rank holds, by what it is a piece of."""
    found = {
        f"{piece.kind} {block.name} {block.offset} {piece.start}+{piece.values.numel()}": _digest(piece.values)
        for piece in engine.fragments()
        for block in piece.blocks
    }
    for wrapped in getattr(engine, "_wrapped", []) if getattr(engine, "_sharded", False) else []:
        wrapped.start_param_sync(force_sync=True)  # with overlap the next step would gather them
    models = getattr(engine, "_models", None) or [engine._model]  # type: ignore[attr-defined]
    for parameter, blocks in (held for model in models for held in logical_parameters(model)):
        if not hasattr(parameter, "ds_id"):  # ZeRO-3 keeps no whole weight
            found |= {f"used {block.name} {block.offset}": _digest(parameter[block.box.slices]) for block in blocks}
    return found


def _digest(values: torch.Tensor) -> str:
    return digest_bytes(values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def main(plan: Path) -> None:
    """Run the plan's cases; rank 0 writes `results.json` beside it."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rank = RankInfo.from_environment()
    results = []
    for number, values in enumerate(json.loads(plan.read_text())):
        case = Case(**values)
        faulthandler.dump_traceback_later(_SECONDS_PER_CASE, exit=True)
        if rank.is_first:
            print(number, case.name, flush=True)
        results.append(run_case(case, plan.parent / f"case-{number:03d}", rank))
        gc.collect()  # engines stand in cycles and hold gloo's groups, each of which has a thread that polls
        if number == 0:
            gc.freeze()  # what was imported need not be looked through each time
    faulthandler.cancel_dump_traceback_later()
    if rank.is_first:
        (plan.parent / "results.json").write_text(json.dumps(results))
    close_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
