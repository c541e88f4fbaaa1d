"""A checkpoint of any layout loads into any other, bit for bit; ranks stand side by side in one process."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.diff import EQUAL, CheckpointDifference
from parallel.checkpoint.reader import BlockReader
from parallel.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from parallel.engines.base import KINDS
from pretrain.config import RunConfig
from tests.support import reference_model
from tests.support.simulated import needs_cpu
from tests.support.threads import HeldState, Logical, differing, fill, held_states, run_ranks
from tests.support.tiny import tiny_config

pytestmark = [needs_cpu, pytest.mark.filterwarnings("ignore")]  # the engines give many warnings

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "zero0 dp2": (2, {"zero": 0}),
    "zero1 dp3": (3, {"zero": 1}),
    "tp4": (4, {"tensor": 4}),
    "tp2 sp pp2": (4, {"tensor": 2, "sequence": True, "pipeline": 2}),
    "pp2 v2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "cp2 dp2": (4, {"context": 2}),
    "deepspeed zero2 dp3": (3, {"engine": "deepspeed", "zero": 2}),
    "deepspeed tp2 zero3": (4, {"engine": "deepspeed", "zero": 3, "tensor": 2}),
}
PROGRESS = Progress(7, 6, 56, 1792, {"model.width": 64}, {"layout": "any"}, {"refused": 1})


def layout_config(layout: dict[str, Any]) -> RunConfig:
    return tiny_config(model__layers=4, parallel=layout, train__global_batch=24, train__micro_batch=1)


def logical_values() -> Logical:
    generator = torch.Generator().manual_seed(11)
    shapes = reference_model.logical_shapes(layout_config({}).model)
    return {kind: {n: torch.randn(size, generator=generator) for n, size in shapes.items()} for kind in KINDS}


VALUES = logical_values()


@pytest.fixture(scope="module")
def states() -> dict[str, list[HeldState]]:
    return {name: held_states(layout_config(layout), world) for name, (world, layout) in LAYOUTS.items()}


@pytest.fixture(scope="module")
def saved(states: dict[str, list[HeldState]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A published checkpoint of every layout, all of the same logical state."""
    paths = {}
    for name, ranks in states.items():
        root = tmp_path_factory.mktemp("run")
        for state in ranks:
            fill(state, VALUES)

        def save(mesh: Any, ranks: list[HeldState] = ranks, root: Path = root) -> Path:
            ranks[mesh.rank].mesh = mesh
            return save_checkpoint(root, ranks[mesh.rank], PROGRESS)

        published = run_ranks(len(ranks), save)
        assert published == [root / "step-00000007"] * len(ranks)
        paths[name] = root / "step-00000007"
    return paths


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_has_no_layout(saved: dict[str, Path], name: str) -> None:
    """Every file is listed, one a rank; the blocks cover every element once; readers get the logical tensors."""
    manifest = verify_checkpoint(saved[name])
    assert {p.name for p in saved[name].iterdir()} == {*manifest.files, "MANIFEST.json"}
    assert len(manifest.files) == LAYOUTS[name][0]
    assert manifest.shapes == {n: tuple(t.shape) for n, t in VALUES["weight"].items()}
    assert (manifest.step, manifest.updates, manifest.samples, manifest.tokens) == (7, 6, 56, 1792)
    assert (manifest.identity, manifest.loop) == (PROGRESS.identity, PROGRESS.loop)
    assert manifest.missing_elements() is None
    reader = BlockReader(saved[name], manifest)
    for kind, tensor_name in itertools.product(KINDS, manifest.shapes):
        cover = torch.zeros(manifest.shapes[tensor_name])
        for block in manifest.blocks[kind][tensor_name]:
            cover[tuple(slice(a, a + n) for a, n in zip(block.offset, block.size, strict=True))] += 1
        assert (cover == 1).all(), (kind, tensor_name)
        assert torch.equal(reader.read(kind, tensor_name), VALUES[kind][tensor_name])


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_every_layout_loads_every_other(
    saved: dict[str, Path], states: dict[str, list[HeldState]], source: str, target: str
) -> None:
    ranks = states[target]
    zeros = {kind: {name: torch.zeros_like(t) for name, t in names.items()} for kind, names in VALUES.items()}
    for state in ranks:
        fill(state, zeros)
        state.loaded_steps.clear()
        assert differing(state, VALUES)

    def load(mesh: Any) -> int:
        ranks[mesh.rank].mesh = mesh
        return load_checkpoint(saved[source], ranks[mesh.rank], PROGRESS.identity).step

    assert run_ranks(len(ranks), load) == [7] * len(ranks)
    for state in ranks:
        assert differing(state, VALUES) == []
        assert state.loaded_steps == [6]  # Adam's bias correction goes on after the steps that changed weights


def test_weights_of_one_tensor_rank_go_to_two_and_back(
    saved: dict[str, Path], states: dict[str, list[HeldState]], tmp_path: Path
) -> None:
    """Where others corrupt silently: fused matrices must be cut part by part, and vocabularies padded."""
    ranks, root = states["tp2"], tmp_path / "run"

    def there(mesh: Any) -> Path:
        ranks[mesh.rank].mesh = mesh
        load_checkpoint(saved["single"], ranks[mesh.rank], PROGRESS.identity)
        return save_checkpoint(root, ranks[mesh.rank], PROGRESS)

    back = run_ranks(2, there)[0]
    assert {tensor.state for tensor in CheckpointDifference(saved["single"], back).tensors()} == {EQUAL}
    (single,) = states["single"]
    fill(single, {kind: {name: torch.zeros_like(t) for name, t in names.items()} for kind, names in VALUES.items()})
    load_checkpoint(back, single, PROGRESS.identity)
    assert differing(single, VALUES) == []
