"""Engines in this process: training as the plain reference does, and going on from a checkpoint to the bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.reader import BlockReader
from parallel.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from parallel.engines.base import KINDS, Engine, StepResult
from parallel.mesh import Mesh
from pretrain.build import build_engine
from pretrain.config import RunConfig
from pretrain.loop import learning_rate
from tests.support.feeds import whole_feed
from tests.support.reference_model import logical_shapes, reference_losses
from tests.support.simulated import single_process
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines give many

LAYOUTS: dict[str, dict[str, Any]] = {
    "megatron zero0": {"zero": 0},
    "megatron zero1": {"zero": 1},
    "deepspeed zero1": {"engine": "deepspeed", "zero": 1},
    "deepspeed zero2": {"engine": "deepspeed", "zero": 2},
    "deepspeed zero3": {"engine": "deepspeed", "zero": 3},
}
PROGRESS = Progress(3, 3, 24, 768, {"seed": 3}, {}, {})


@pytest.fixture(params=LAYOUTS)
def run(request: pytest.FixtureRequest) -> Iterator[tuple[RunConfig, Mesh]]:
    config = tiny_config(parallel=LAYOUTS[request.param])
    with single_process(config) as mesh:
        yield config, mesh


def take(config: RunConfig, engine: Engine, steps: range) -> list[StepResult]:
    feed = whole_feed(config)
    results = []
    for step in steps:
        batch = feed.step(step)
        rate = learning_rate(config, step)
        results.append(engine.train_step(batch.micro_batches, batch.tokens, rate, lambda _loss, _norm: True))
    return results


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {
        f"{fragment.kind} {name} {where}": view.detach().clone()
        for fragment in engine.fragments()
        for name, _, where, view in fragment.pieces()
    }


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_losses_norms_and_moments_are_the_references(run: tuple[RunConfig, Mesh]) -> None:
    """The moments after a first step are the clipped gradient times 1 - beta, and its square."""
    config, mesh = run
    reference = reference_losses(config, whole_feed(config), 4)
    engine = build_engine(config, mesh)
    results = take(config, engine, range(1))
    shrink = min(1.0, config.optimizer.clip / (reference.grad_norms[0] + 1e-6))
    assert shrink < 0.1  # clipping is at work
    beta_1, beta_2 = config.optimizer.betas
    for fragment in engine.fragments():
        for name, _, where, view in fragment.pieces():
            gradient = reference.first_gradients[name][where.slices] * shrink
            expected = {"exp_avg": (1 - beta_1) * gradient, "exp_avg_sq": (1 - beta_2) * gradient.square()}
            if fragment.kind in expected:
                error = (view.double().cpu() - expected[fragment.kind]).norm()
                assert error <= 3e-6 * expected[fragment.kind].norm(), (fragment.kind, name)
    results += take(config, engine, range(1, 4))
    tokens = [whole_feed(config).step(step).tokens for step in range(4)]
    losses = [result.loss_sum / count for result, count in zip(results, tokens, strict=True)]
    assert losses == pytest.approx(reference.losses, rel=1e-6)
    assert [result.grad_norm for result in results] == pytest.approx(reference.grad_norms, rel=1e-5)


def test_a_fresh_engine_goes_on_from_a_checkpoint_to_the_bit(run: tuple[RunConfig, Mesh], tmp_path: Path) -> None:
    config, mesh = run
    engine = build_engine(config, mesh)
    take(config, engine, range(3))
    saved = state_of(engine)
    checkpoint = save_checkpoint(tmp_path, engine, PROGRESS)
    assert differing(state_of(engine), saved) == []  # saving changes nothing

    manifest = verify_checkpoint(checkpoint)
    assert manifest.shapes == logical_shapes(config.model)
    assert set(manifest.blocks) == set(KINDS)
    assert all(set(names) == set(manifest.shapes) for names in manifest.blocks.values())
    assert {block.file for names in manifest.blocks.values() for blocks in names.values() for block in blocks} == set(
        manifest.files
    )

    reader = BlockReader(checkpoint, manifest)
    for fragment in engine.fragments():
        for name, _, where, view in fragment.pieces():
            assert torch.equal(reader.read(fragment.kind, name)[where.slices], view.cpu())

    expected = take(config, engine, range(3, 5))
    other = build_engine(tiny_config(parallel=config.parallel.model_dump(), train__seed=4), mesh)
    assert differing(state_of(other), saved)
    load_checkpoint(checkpoint, other, PROGRESS.identity)
    assert differing(state_of(other), saved) == []
    assert take(config, other, range(3, 5)) == expected  # every number of both steps, bit for bit
    assert differing(state_of(other), state_of(engine)) == []
