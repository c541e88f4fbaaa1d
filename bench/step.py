"""The training step: every contender in turn, against the machine's limit and against the plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench.contenders import CONTENDERS, LOOP, PLAIN, ContenderProcess, Steps
from bench.gemm import Gemm
from bench.timing import Spread, interleave, ratio
from bench.workload import Workload, describe, step_flops

_GEMM = "matrix product"
_GEMM_SECONDS = 0.15


@dataclass(frozen=True)
class StepResult:
    """One workload, `shape` in words. `flops` and `tokens` are those of a step.

    By contender: seconds per step, its ratio to the plain loop's, share of the limit (the GEMM rate of the same
    round). `wait`: seconds per step that the whole loop waited for data.
    """

    workload: str
    shape: str
    tokens: int
    flops: float
    rounds: int
    seconds: dict[str, Spread]
    to_plain: dict[str, Spread]
    share_of_limit: dict[str, Spread]
    wait: float


def measure_steps(workloads: Sequence[Workload], data: Path, limit: Gemm) -> list[StepResult]:
    """Interleaved steps of all contenders; `limit` is the product that gives the machine's limit in every round."""
    configs = [workload.config(data) for workload in workloads]
    with ExitStack() as stack:
        fleet = {kind: stack.enter_context(ContenderProcess(kind, configs)) for kind in CONTENDERS}
        for process in fleet.values():
            process.wait()
        return [_measure(fleet, workload, number, data, limit) for number, workload in enumerate(workloads)]


def _measure(
    fleet: dict[str, ContenderProcess], workload: Workload, number: int, data: Path, limit: Gemm
) -> StepResult:
    config = workload.config(data)
    # the first step of a turn refills caches that the others have emptied: it is taken, not counted
    per_turn = workload.steps + 1
    taken: dict[str, list[Steps]] = {kind: [] for kind in fleet}

    def turn(kind: str) -> Callable[[int], float]:
        def call(round_number: int) -> float:
            steps = fleet[kind].take(number, (round_number + 1) * per_turn, per_turn)
            taken[kind].append(steps)
            return fmean(steps.seconds[1:])

        return call

    for process in fleet.values():
        process.take(number, 0, per_turn)
    calls = {kind: turn(kind) for kind in fleet}
    figures = interleave({_GEMM: lambda _: limit.rate(_GEMM_SECONDS), **calls}, workload.rounds, workload.budget)
    _check_same_training(taken)
    flops = step_flops(config)
    return StepResult(
        workload=workload.name,
        shape=describe(config),
        tokens=config.train.tokens_per_step,
        flops=flops,
        rounds=len(figures[PLAIN]),
        seconds={kind: Spread.of(figures[kind]) for kind in fleet},
        to_plain={kind: ratio(figures[kind], figures[PLAIN]) for kind in fleet},
        share_of_limit={
            kind: Spread.of([flops / s / rate for s, rate in zip(figures[kind], figures[_GEMM], strict=True)])
            for kind in fleet
        },
        wait=fmean(steps.wait for steps in taken[LOOP]),
    )


def _check_same_training(taken: dict[str, list[Steps]]) -> None:
    """All contenders must have trained the same model on the same batches, or their times mean nothing."""
    for kind, turns in taken.items():
        for steps, plain in zip(turns, taken[PLAIN], strict=True):
            assert math.isclose(steps.loss, plain.loss, rel_tol=0.02), (
                f"{kind} computes another loss than the {PLAIN}: {steps.loss} and {plain.loss}"
            )
