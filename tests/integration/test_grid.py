"""Every layout computes the same training run as a plain single-process reference in float64.

One torchrun launch a world size; the cases of a launch share its processes. `make prove-grid` runs all combinations.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.compare import (
    BF16,
    FP32,
    bounds,
    continuation_faults,
    distance,
    distance_faults,
    reference,
    replica_faults,
)
from tests.support.grid import Case, all_cases, conceivable_pairs, covered_pairs, pairwise, run_cases, why_apart

SECONDS_PER_LAUNCH = 420

# one process, TP, DP with ZeRO-1, DeepSpeed and TP × DP over 20 steps, with micro-batches that differ
LONG = [
    Case(1, {"zero": 0}, micro_batch=8, steps=20, resumed=True),
    Case(2, {"tensor": 2}, micro_batch=4, steps=20, resumed=True),
    Case(2, {"zero": 1}, micro_batch=2, steps=20, resumed=True),
    Case(2, {"engine": "deepspeed", "zero": 1}, micro_batch=1, steps=20, resumed=True),
    Case(4, {"tensor": 2}, micro_batch=2, steps=20, resumed=True),
]
RESUMED = [
    Case(1, {}, resumed=True),
    Case(1, {"engine": "deepspeed", "zero": 1}, precision="bf16", resumed=True),
    Case(2, {"zero": 1}, precision="bf16", resumed=True),
    Case(2, {"pipeline": 2, "virtual_pipeline": 2, "overlap": True}, resumed=True),
    Case(2, {"context": 2, "zero": 0}, resumed=True),
    Case(2, {"engine": "deepspeed", "zero": 2}, resumed=True),
    Case(2, {"engine": "deepspeed", "zero": 3}, resumed=True),
]
# a rank or micro-batch without a masked row, a sequence of logical length 1
EDGE = [
    Case(1, {}, "edge", 1),
    Case(2, {}, "edge", 1),
    Case(2, {"context": 2}, "edge", 2),
    Case(2, {"pipeline": 2}, "edge", 1),
    Case(2, {"engine": "deepspeed", "zero": 3}, "edge", 1),
    Case(4, {"tensor": 2, "sequence": True, "context": 2}, "edge", 1),
]
# attention stays inside documents, which stand across the stages' and the context ranks' borders
DOCUMENTS = [
    Case(1, {}, "documents"),
    Case(2, {"pipeline": 2}, "documents", 1),
    Case(2, {"pipeline": 2, "virtual_pipeline": 2, "recompute": "full"}, "autoregressive documents"),
    Case(2, {"context": 2}, "documents"),
    Case(2, {"tensor": 2, "sequence": True}, "autoregressive documents"),
    Case(2, {"engine": "deepspeed", "zero": 3}, "documents"),
    Case(4, {"pipeline": 4}, "documents", 1),
    Case(4, {"context": 2, "pipeline": 2}, "autoregressive documents", 1),
    Case(8, {"tensor": 2, "pipeline": 2, "context": 2}, "documents", 1),
]
OPTIONS = [
    Case(1, {"recompute": "full"}),
    Case(1, {"recompute": "selective"}),
    Case(2, {"pipeline": 2, "recompute": "full"}),
    Case(2, {"tensor": 2, "sequence": True, "recompute": "selective"}),
    Case(2, {"engine": "deepspeed", "zero": 2, "offload": "optimizer"}, resumed=True),
    Case(2, {"engine": "deepspeed", "zero": 3, "offload": "parameters"}, resumed=True),
]
# keys and values travel round the context ranks
RING = [
    Case(2, {"context": 2, "context_exchange": "ring"}),
    Case(2, {"context": 2, "context_exchange": "ring"}, "autoregressive", 1),
    Case(2, {"context": 2, "context_exchange": "ring", "recompute": "selective"}, "edge", 1),
    Case(2, {"context": 2, "context_exchange": "ring", "recompute": "full"}, "autoregressive"),
    Case(4, {"context": 4, "context_exchange": "ring"}),
    Case(4, {"context": 4, "context_exchange": "ring", "zero": 0}, "autoregressive"),
    Case(4, {"context": 2, "context_exchange": "ring", "tensor": 2, "sequence": True}, "edge", 1),
    Case(4, {"context": 2, "context_exchange": "ring", "pipeline": 2}),
    Case(4, {"context": 2, "context_exchange": "ring", "pipeline": 2, "virtual_pipeline": 2, "recompute": "full"}),
    Case(4, {"context": 2, "context_exchange": "ring", "overlap": True}, "autoregressive"),
    Case(8, {"context": 2, "context_exchange": "ring", "tensor": 2, "pipeline": 2}, "masked", 1),
]
# blocks compiled, with a backend that needs no compiler
COMPILED = [
    Case(1, {}, "autoregressive", compiled=True),
    Case(1, {"recompute": "full"}, compiled=True),
    Case(1, {"recompute": "selective"}, compiled=True),
    Case(2, {"zero": 1}, compiled=True),
    Case(2, {"pipeline": 2, "virtual_pipeline": 2}, compiled=True),
    Case(2, {"engine": "deepspeed", "zero": 2}, "edge", 1, compiled=True),
]
# bf16 weights and activations, float32 masters; gradients are reduced in float32 by megatron, in bf16 by DeepSpeed
HALF = [
    Case(1, {}, precision="bf16"),
    Case(2, {"tensor": 2, "sequence": True}, precision="bf16"),
    Case(2, {"pipeline": 2}, precision="bf16"),
    Case(2, {"pipeline": 2, "virtual_pipeline": 2, "overlap": True}, "autoregressive", precision="bf16"),
    Case(2, {"context": 2}, precision="bf16"),
    Case(2, {"context": 2, "context_exchange": "ring"}, precision="bf16"),
    Case(2, {"zero": 0}, "autoregressive", 1, precision="bf16"),
    Case(2, {"engine": "deepspeed", "zero": 1}, precision="bf16"),
    Case(2, {"engine": "deepspeed", "zero": 2}, "autoregressive", precision="bf16"),
    Case(2, {"engine": "deepspeed", "zero": 3}, precision="bf16"),
    Case(2, {"engine": "deepspeed", "zero": 2, "tensor": 2}, precision="bf16"),
    Case(4, {"engine": "deepspeed", "zero": 1, "tensor": 2}, "autoregressive", precision="bf16"),
]
SPECIAL = [*LONG, *EDGE, *DOCUMENTS, *OPTIONS, *RING, *COMPILED, *HALF]
COVER = pairwise(all_cases())
CI = [*SPECIAL, *COVER, *RESUMED]

Results = Callable[[Case], dict[str, Any]]


@pytest.fixture(scope="module")
def result_of(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The result of a case; the first one asked of a world size runs all of it in one launch."""
    launched: dict[int, dict[str, dict[str, Any]]] = {}

    def result(case: Case) -> dict[str, Any]:
        if torch.cuda.is_available() and torch.cuda.device_count() < case.world:
            pytest.skip(f"needs {case.world} GPUs, {torch.cuda.device_count()} are here")
        if case.world not in launched:
            cases = [other for other in CI if other.world == case.world]
            found = run_cases(cases, tmp_path_factory.mktemp(f"grid-{case.world}"), SECONDS_PER_LAUNCH)
            launched[case.world] = {repr(other): result for other, result in zip(cases, found, strict=True)}
        return launched[case.world][repr(case)]

    return result


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
@pytest.mark.parametrize(
    "case", [*LONG, *EDGE, *DOCUMENTS, *OPTIONS, *RING, *COMPILED, *COVER], ids=lambda case: case.name
)
def test_fp32_equals_the_reference(case: Case, result_of: Results) -> None:
    assert distance_faults(case, distance(case, result_of(case))) == []


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
@pytest.mark.parametrize("case", CI, ids=lambda case: case.name)
def test_replicas_hold_the_same_bits(case: Case, result_of: Results) -> None:
    """Weights as the model uses them, masters and moments, on every rank that holds them, and no fewer ranks."""
    assert replica_faults(case, result_of(case)) == []


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: case.name)
def test_blocks_share_their_graphs(case: Case, result_of: Results) -> None:
    """With and without padding; with one sequence also by the strides of its activations. Never one a layer."""
    graphs = (1 if case.data == "autoregressive" else 2) * (2 if case.micro_batch == 1 else 1)
    assert 1 <= result_of(case)["graphs"] <= graphs
    assert result_of(case)["graph_breaks"] == {}


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
@pytest.mark.parametrize("case", [case for case in (*SPECIAL, *RESUMED) if case.resumed], ids=lambda case: case.name)
def test_a_continued_run_is_the_same_run_to_the_bit(case: Case, result_of: Results) -> None:
    assert continuation_faults(case, result_of(case)) == []


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
@pytest.mark.parametrize("case", HALF, ids=lambda case: case.name)
def test_bf16_stays_within_its_rounding(case: Case, result_of: Results) -> None:
    assert bounds(case) is BF16
    assert distance_faults(case, distance(case, result_of(case))) == []


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
def test_planted_faults_are_found(result_of: Results) -> None:
    """A judge that finds none proves nothing."""
    case, result = LONG[0], result_of(LONG[0])
    found = distance(case, result)
    nan = replace(found, loss=math.nan, gradient=1.1 * FP32.gradient)
    assert distance_faults(case, nan) == ["loss nan > 1.0e-05", "gradient 1.1e-05 > 1.0e-05"]
    for curve in ("losses", "grad_norms"):
        moved = result | {curve: [*result[curve][:-1], result[curve][-1] * 1.001]}
        assert distance_faults(case, distance(case, moved))
        assert continuation_faults(case, moved) == [f"continued {curve} differ"]
    assert distance_faults(case, distance(case, result | {"digests": result["digests"][::-1]})) == [
        "batch digests differ"
    ]
    replicas = result["replicas"] | {"differing": ["weight norm"], "state_copies": [2]}
    assert len(replica_faults(case, result | {"replicas": replicas})) == 2
    assert continuation_faults(case, {key: value for key, value in result.items() if key != "resumed"})


def test_every_pair_of_options_is_run_or_cannot_be() -> None:
    """The pairs that no layout of the cover has are those that arithmetic forbids, and no others."""
    run = covered_pairs(COVER)
    apart = {pair: why_apart(*pair) for pair in conceivable_pairs()}
    assert run == {pair for pair, reason in apart.items() if reason is None}
    assert (("pipeline", 4), ("virtual_pipeline", 2)) in run


def test_the_reference_clips_and_has_random_lengths() -> None:
    """Else the comparison would not test them."""
    run, _ = reference("masked", 5)
    config = LONG[0].config()
    assert min(run.grad_norms) > config.optimizer.clip
    assert config.objective.kind == "masked"
    assert config.objective.random_length > 0
