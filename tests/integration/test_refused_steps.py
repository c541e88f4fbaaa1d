"""Harm on one of several ranks: all refuse the step together, no bit changes, and training goes on without it.

Harm is a gradient that is not a number on rank 0, then on rank 1; a loss that is not a number; and a spike. Each is in
one micro-batch of one rank (the loss of a data rank is that of all ranks that share its samples).
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.grid import Case
from tests.support.refusal_worker import AFTER, CALM, HARM

SECONDS_PER_LAUNCH = 300
FEW = [
    Case(2, {}),
    Case(2, {"overlap": True}, precision="bf16"),
    Case(2, {"tensor": 2, "sequence": True}),
    Case(2, {"pipeline": 2}),
    Case(2, {"engine": "deepspeed", "zero": 2}),
]
MORE = [
    Case(2, {"zero": 0}),
    Case(2, {"overlap": True}),
    Case(2, {"tensor": 2}, precision="bf16"),
    Case(2, {"pipeline": 2, "virtual_pipeline": 2, "overlap": True}),
    Case(2, {"context": 2}),
    Case(2, {"context": 2, "context_exchange": "ring", "recompute": "full"}),
    Case(2, {"engine": "deepspeed", "zero": 1}),
    Case(2, {"engine": "deepspeed", "zero": 1}, precision="bf16"),
    Case(2, {"engine": "deepspeed", "zero": 2}, precision="bf16"),
    Case(2, {"engine": "deepspeed", "zero": 3}),
    Case(2, {"engine": "deepspeed", "zero": 3}, precision="bf16"),
    Case(2, {"engine": "deepspeed", "zero": 2, "offload": "optimizer"}),
    Case(2, {"engine": "deepspeed", "zero": 3, "offload": "parameters"}),
    Case(2, {"engine": "deepspeed", "zero": 1, "tensor": 2}),
]
MANY = [
    Case(4, {"tensor": 2, "sequence": True}, precision="bf16"),
    Case(4, {"pipeline": 2, "overlap": True}),
    Case(4, {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2}),
    Case(4, {"tensor": 2, "context": 2}),
    Case(4, {"engine": "deepspeed", "zero": 3, "tensor": 2}),
]
LAUNCHES = {"few": FEW, "more": MORE, "many": MANY}
CASES = [
    pytest.param(launch, case, id=f"{case.name}", marks=[pytest.mark.slow] * (launch != "few"))
    for launch, cases in LAUNCHES.items()
    for case in cases
]

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Case], Ranks]:
    """What each rank of a case tells; the first case that is asked for runs all of its launch."""
    told: dict[str, list[dict[str, Any]]] = {}

    def ranks(launch: str, case: Case) -> Ranks:
        if launch not in told:
            told[launch] = run(LAUNCHES[launch], tmp_path_factory.mktemp(f"refusals-{launch}"))
        return told[launch][LAUNCHES[launch].index(case)]["ranks"]

    return ranks


def run(cases: Sequence[Case], directory: Path) -> list[dict[str, Any]]:
    """Run `cases` (of one world) in one torchrun launch; results in their order."""
    plan, log = directory / "cases.json", directory / "log.txt"
    plan.write_text(json.dumps([asdict(case) for case in cases]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cases[0].world}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with open(log, "wb") as out:
        code = subprocess.run(
            [*launch, "-m", "tests.support.refusal_worker", str(plan)],
            env=environment, stdout=out, stderr=out, timeout=SECONDS_PER_LAUNCH, check=False,
        ).returncode  # fmt: skip
    assert code == 0, f"the launch failed:\n{log.read_text()[-4000:]}"
    results: list[dict[str, Any]] = json.loads((directory / "results.json").read_text())
    return results


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
@pytest.mark.parametrize(("launch", "case"), CASES)
def test_all_ranks_refuse_harm_on_one_and_no_bit_changes(
    launch: str, case: Case, ranks_of: Callable[[str, Case], Ranks]
) -> None:
    ranks = ranks_of(launch, case)
    assert len(ranks) == case.world
    for part in ("calm", "harm", "after", "skipping", "guard"):
        assert all(told[part] == ranks[0][part] for told in ranks), part
    first = ranks[0]
    assert [step[0] for step in first["calm"]] == [True] * len(CALM)
    assert [step[0] for step in first["harm"]] == [False] * len(HARM)
    assert [step[0] for step in first["after"]] == [True] * len(AFTER)
    (loss_0, norm_0), (loss_1, _), (loss_2, norm_2), spike = (
        [float.fromhex(number) for number in step[1:]] for step in first["harm"]
    )
    assert math.isfinite(loss_0)
    assert math.isfinite(loss_2)
    assert not math.isfinite(norm_0)
    assert not math.isfinite(norm_2)
    assert math.isnan(loss_1)
    assert all(map(math.isfinite, spike)), "a spike is a number, and is refused as one"
    for told in ranks:
        assert len(told["before"]) > 10
        assert all(digests == told["before"] for digests in told["between"])
        assert told["end"] != told["before"]


@pytest.mark.timeout(SECONDS_PER_LAUNCH + 60)
@pytest.mark.parametrize(("launch", "case"), CASES)
def test_training_goes_on_as_if_the_refused_steps_had_never_been(
    launch: str, case: Case, ranks_of: Callable[[str, Case], Ranks]
) -> None:
    """Their samples are passed over, their rates too: to the bit the run that took the other steps only."""
    for told in ranks_of(launch, case):
        assert told["skipping"] == [*told["calm"], *told["after"]]
        assert told["skipped"] == told["end"]
