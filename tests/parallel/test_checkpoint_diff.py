"""What differs between two checkpoints, and by how much; how they are stored does not matter."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.checkpoint.diff import DIFFERENT, EQUAL, ONLY_A, ONLY_B, SHAPE, CheckpointDifference, TensorDifference
from runtime.errors import UserError
from tests.support.checkpoints import Logical, publish, random_state
from tests.support.damage import flip_bit

SHAPES = {"embedding": (13, 8), "blocks.0.gate": (6, 7), "norm": (9,)}
IDENTITY = {"model.width": 8}


def state() -> Logical:
    return random_state(SHAPES, seed=1)


def compared(root: Path, a: Logical, b: Logical, tolerance: float = 0.0, **more: Any) -> dict[str, TensorDifference]:
    one = publish(root / "a" / "step-00000003", a, 3, IDENTITY)
    two = publish(root / "b" / "step-00000003", b, 3, IDENTITY, files=4, **more)
    comparison = CheckpointDifference(one, two)
    found = list(comparison.tensors(tolerance))
    assert len(found) == len(comparison)
    assert comparison.manifest_changes() == {}
    return {f"{tensor.kind}/{tensor.name}": tensor for tensor in found}


def test_equal_states_are_equal_however_they_are_stored(tmp_path: Path) -> None:
    found = compared(tmp_path, state(), state())
    assert len(found) == 9
    assert all((t.state, t.largest, t.relative) == (EQUAL, 0.0, 0.0) for t in found.values())


def test_distances_are_those_of_the_definition(tmp_path: Path) -> None:
    a, b = state(), state()
    b["exp_avg"]["embedding"][3, 5] += 0.5
    b["exp_avg"]["embedding"][12, 0] -= 0.25
    found = compared(tmp_path, a, b)
    one = found.pop("exp_avg/embedding")
    assert all(tensor.state == EQUAL for tensor in found.values())
    gap = (a["exp_avg"]["embedding"].double() - b["exp_avg"]["embedding"].double()).norm()
    assert one.state == DIFFERENT
    assert one.largest == pytest.approx(0.5, rel=1e-6)
    assert one.relative == pytest.approx(float(gap / a["exp_avg"]["embedding"].double().norm()), rel=1e-12)


def test_a_tolerance_is_relative_and_one_bit_is_a_difference_without(tmp_path: Path) -> None:
    a, b = state(), state()
    b["weight"]["norm"][0] = torch.nextafter(b["weight"]["norm"][0], torch.tensor(9.0))
    assert compared(tmp_path / "x", a, b)["weight/norm"].state == DIFFERENT
    assert compared(tmp_path / "y", a, b, tolerance=1e-6)["weight/norm"].state == EQUAL
    b["weight"]["norm"] += 1
    assert compared(tmp_path / "z", a, b, tolerance=1e-6)["weight/norm"].state == DIFFERENT


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    a, b = state(), state()
    a["weight"]["norm"][1] = b["weight"]["norm"][1] = math.nan
    a["weight"]["blocks.0.gate"][0, 0] = math.inf
    b["exp_avg"]["norm"][2] = math.nan
    a["exp_avg_sq"]["norm"].zero_()
    b["exp_avg_sq"]["norm"].zero_().neg_()
    found = compared(tmp_path, a, b, tolerance=1.0)
    assert found["weight/norm"].state == EQUAL  # the same bits
    assert found["weight/blocks.0.gate"].state == DIFFERENT
    assert found["exp_avg/norm"].state == DIFFERENT
    assert math.isnan(found["exp_avg/norm"].largest)
    assert found["exp_avg_sq/norm"].state == EQUAL  # 0 and -0 are near, though not the same bits
    assert compared(tmp_path / "strict", a, b)["exp_avg_sq/norm"].state == DIFFERENT


def test_tensors_of_other_shapes_and_missing_ones(tmp_path: Path) -> None:
    a, b = state(), state()
    for kind in a:
        b[kind]["norm"] = torch.zeros(10)
        b[kind]["new"] = b[kind].pop("blocks.0.gate")
    found = compared(tmp_path, a, b)
    states = {name: tensor.state for name, tensor in found.items() if name.startswith("weight")}
    assert states == {
        "weight/embedding": EQUAL,
        "weight/blocks.0.gate": ONLY_A,
        "weight/norm": SHAPE,
        "weight/new": ONLY_B,
    }
    assert found["weight/norm"].shapes == ((9,), (10,))


def test_manifests_are_compared_and_damage_is_named(tmp_path: Path) -> None:
    one = publish(tmp_path / "step-00000003", state(), 3, IDENTITY)
    two = publish(tmp_path / "step-00000004", state(), 4, IDENTITY | {"data": "x"}, provenance={"layout": "tp2"})
    comparison = CheckpointDifference(one, two)
    assert comparison.manifest_changes() == {
        "step": (3, 4),
        "updates": (3, 4),
        "samples": (24, 32),
        "tokens": (768, 1024),
        "identity.data": (None, "x"),
        "provenance.layout": ("none", "tp2"),
    }
    flip_bit(two / "shard-00000.safetensors", seed=2)
    with pytest.raises(UserError, match=r"step-00000004/shard-00000.safetensors does not match its digest"):
        list(comparison.tensors())
    with pytest.raises(UserError, match="does not exist"):
        CheckpointDifference(one, tmp_path / "none")
