"""One rank of a grid launch: runs every case of a plan in the same processes and writes what rank 0 saw."""

import faulthandler
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch

from parallel.checkpoint.store import Progress, save_checkpoint
from parallel.engines.base import Engine
from parallel.mesh import Mesh, close_process_group
from pretrain.build import build_engine
from pretrain.loop import agree
from runtime.environment import RankInfo
from runtime.files import digest_bytes
from tests.support.grid import Case, feed_of

_SECONDS_PER_CASE = 120


def run_case(case: Case, directory: Path, rank: RankInfo) -> dict[str, Any]:
    """Train the case; checkpoints after the first and the last step."""
    start = time.monotonic()
    config = case.config()
    mesh = Mesh.create(config.parallel, rank)
    engine = build_engine(config, mesh)
    feed = feed_of(case, mesh.data_rank, mesh.data_size, mesh.context_rank, config.parallel.context)
    result: dict[str, Any] = {"losses": [], "grad_norms": [], "digests": []}
    for step in range(case.steps):
        batch = feed.step(step)
        agreed = agree(mesh, batch, False)
        tokens = (step + 1) * config.train.tokens_per_step
        rate = config.optimizer.lr * config.optimizer.schedule.factor(tokens, config.train.total_tokens)
        taken = engine.train_step(batch.micro_batches, float(agreed.tokens), rate, lambda _loss, _norm: True)
        result["losses"].append(taken.loss_sum / agreed.tokens)
        result["grad_norms"].append(taken.grad_norm)
        result["digests"].append(agreed.digest)
        if step in (0, case.steps - 1):
            progress = Progress(step + 1, step + 1, 0, tokens, identity={}, provenance={}, loop={})
            result["first" if step == 0 else "last"] = str(save_checkpoint(directory, engine, progress))
    result["replicas_equal"] = replicas_equal(engine)
    result["seconds"] = time.monotonic() - start
    return result


def replicas_equal(engine: Engine) -> bool:
    """Whether every rank that holds the same piece of a weight or moment holds the same bits."""
    mine = {
        f"{piece.kind} {block.name} {block.offset} {piece.start}+{piece.values.numel()}": digest_bytes(
            piece.values.numpy().tobytes()
        )
        for piece in engine.fragments()
        for block in piece.blocks
    }
    seen: dict[str, str] = {}
    return all(
        seen.setdefault(key, digest) == digest for ranks in engine.mesh.gather(mine) for key, digest in ranks.items()
    )


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
    faulthandler.cancel_dump_traceback_later()
    if rank.is_first:
        (plan.parent / "results.json").write_text(json.dumps(results))
    close_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
