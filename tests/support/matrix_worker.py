"""One rank of a launch of the reshard matrix; see `tests.support.matrix.launch`."""

import faulthandler
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from parallel.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from parallel.engines.base import Engine
from parallel.mesh import Mesh, close_process_group
from pretrain.agreement import agree
from pretrain.build import build_engine
from pretrain.loop import learning_rate
from runtime.environment import RankInfo
from tests.support.feeds import whole_feed
from tests.support.matrix import LAST, SAVED, config_of

_SECONDS_PER_LAYOUT = 1200
_IDENTITY = {"matrix": 1}


def save(root: Path, engine: Engine, step: int) -> str:
    """Publish the engine's state."""
    progress = Progress(step, step, step, step, identity=_IDENTITY, provenance={}, loop={})
    return str(save_checkpoint(root, engine, progress))


def take_steps(name: str, engine: Engine, span: range) -> dict[str, Any]:
    """Take the steps of `span`; losses and gradient norms."""
    config, mesh = config_of(name), engine.mesh
    place = {"data_rank": mesh.data_rank, "data_size": mesh.data_size, "context_rank": mesh.context_rank}
    feed = whole_feed(config, **place, context_size=config.parallel.context)
    curves: dict[str, Any] = {"losses": [], "grad_norms": []}
    for step in span:
        batch = feed.step(step)
        agreed = agree(mesh, batch, False)
        rate = learning_rate(config, step)
        taken = engine.train_step(batch.micro_batches, float(agreed.tokens), rate, lambda _loss, _norm: True)
        curves["losses"].append(taken.loss_sum / agreed.tokens)
        curves["grad_norms"].append(taken.grad_norm)
    return curves


def go_on(name: str, engine: Engine, root: Path) -> dict[str, Any]:
    """Save, take the remaining steps, save again."""
    saved = save(root, engine, SAVED)
    curves = take_steps(name, engine, range(SAVED, LAST))
    return {"saved": saved, **curves, "last": save(root, engine, LAST)}


def run_layout(name: str, sources: dict[str, str], root: Path, rank: RankInfo) -> dict[str, Any]:
    """What `launch` tells of one layout; one engine loads all sources, so that each load meets another state."""
    config = config_of(name)
    engine = build_engine(config, Mesh.create(config.parallel, rank))
    if not sources:
        take_steps(name, engine, range(SAVED))
        return go_on(name, engine, root)
    found = {}
    for number, (source, path) in enumerate(sources.items()):
        load_checkpoint(Path(path), engine, _IDENTITY)
        found[source] = go_on(name, engine, root / str(number))
    return found


def run_layouts(names: list[str], sources: dict[str, str], root: Path, rank: RankInfo) -> dict[str, Any]:
    """`run_layout` of each."""
    results = {}
    for number, name in enumerate(names):
        faulthandler.dump_traceback_later(_SECONDS_PER_LAYOUT, exit=True)
        if rank.is_first:
            print(name, flush=True)
        results[name] = run_layout(name, sources, root / f"layout-{number}", rank)
    faulthandler.cancel_dump_traceback_later()
    return results


def main(plan: Path) -> None:
    """Run the plan's layouts; rank 0 writes `results.json` beside it."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rank = RankInfo.from_environment()
    asked = json.loads(plan.read_text())
    results = run_layouts(asked["names"], asked["sources"], plan.parent, rank)
    if asked["each_other"]:
        sources = {name: result["saved"] for name, result in results.items()}
        loaded = run_layouts(asked["names"], sources, plan.parent / "loaded", rank)
        results = {"original": results, "loaded": loaded}
    if rank.is_first:
        (plan.parent / "results.json").write_text(json.dumps(results))
    close_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
