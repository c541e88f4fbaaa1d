"""The grid of layouts: what is run, with what data, and how far it may be from the plain reference."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.objectives.base import Sample, SampleObjective
from runtime.errors import UserError
from tests.support.feeds import samples_of
from tests.support.tiny import MASK, PAD, CountedTokens, DocumentTokens, tiny_config

SEQUENCE, GLOBAL_BATCH, LAYERS = 32, 8, 5  # five layers divide no pipeline evenly


@dataclass(frozen=True)
class Case:
    """One run: `parallel` holds keys of that section; `data` is masked, autoregressive, edge (see `EdgeSamples`), or,
    with attention that stays inside documents, documents or autoregressive documents (see `DocumentTokens`).

    With `resumed`, a second engine of the same layout loads the middle checkpoint and takes the remaining steps again.
    """

    world: int
    parallel: dict[str, Any] = field(default_factory=dict)
    data: str = "masked"
    micro_batch: int = 2
    precision: str = "fp32"
    steps: int = 5
    resumed: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """Layout, data and micro-batch in words."""
        switches = ["overlap"] * bool(self.parallel.get("overlap")) + ["compiled"] * self.compiled
        switches += [f"{k}={self.parallel[k]}" for k in ("recompute", "offload") if k in self.parallel]
        layout = self.config().parallel.describe(self.world)
        return " ".join([layout, *switches, self.data, f"mb{self.micro_batch}", self.precision])

    def config(self) -> RunConfig:
        """The run's configuration. Raises UserError if the layout is refused."""
        config = tiny_config(
            "autoregressive" if self.data.startswith("autoregressive") else "masked",
            model__layers=LAYERS,
            model__init_std=0.1,  # suits the width: at 0.02 float32 alone drifts from float64 by 4e-5 in 20 steps
            optimizer__lr=0.003,
            train__sequence_length=SEQUENCE,
            train__global_batch=GLOBAL_BATCH,
            train__micro_batch=self.micro_batch,
            train__precision=self.precision,
            train__compile=self.compiled,
            data__document_mask="documents" in self.data,
            **{f"parallel__{key}": value for key, value in self.parallel.items()},
        )
        config.micro_batches(self.world)
        return config


@dataclass(frozen=True)
class EdgeSamples:
    """Masked samples with the hard cases in every global batch.

    Samples 0 and 1: no masked row, so that a rank or micro-batch has none. Sample 2: logical length 1.
    Sample 3: masks in the first half only, so that a context rank has none.
    """

    inner: SampleObjective

    def prepare(self, tokens: np.ndarray, index: int) -> Sample:
        """See `SampleObjective.prepare`."""
        sample = self.inner.prepare(tokens, index)
        position = index % GLOBAL_BATCH
        if position in (0, 1):
            keep = np.zeros(len(sample.positions), dtype=bool)
        elif position == 3:
            keep = sample.positions < SEQUENCE // 2
        elif position == 2:
            only = np.array([0])
            inputs = np.full(SEQUENCE, PAD)
            inputs[0] = MASK
            return Sample(inputs, only, tokens[only], np.array([2.0], dtype=np.float32), 0.5, 1)
        else:
            return sample
        inputs = tokens.copy()
        inputs[sample.positions[keep]] = MASK
        inputs[sample.length :] = PAD
        return replace(
            sample,
            inputs=inputs,
            positions=sample.positions[keep],
            targets=sample.targets[keep],
            weights=sample.weights[keep],
        )


def objective_of(config: RunConfig, data: str) -> SampleObjective:
    """The sample side of a case."""
    samples = samples_of(config)
    return EdgeSamples(samples) if data == "edge" else samples


def feed_of(case: Case, data_rank: int = 0, data_size: int = 1, context_rank: int = 0, context_size: int = 1) -> Feed:
    """The case's feed for one rank; by default the whole global batch."""
    config = case.config()
    tokens = DocumentTokens(SEQUENCE) if config.data.document_mask else CountedTokens(SEQUENCE)
    return Feed(
        tokens,
        objective_of(config, case.data),
        GLOBAL_BATCH,
        case.micro_batch,
        data_rank,
        data_size,
        context_rank,
        context_size,
    )


def all_cases(worlds: Sequence[int] = (1, 2, 4, 8)) -> list[Case]:
    """Every valid combination of the grid's options."""
    return [case for world in worlds for case in _candidates(world) if _valid(case)]


def _candidates(world: int) -> Iterator[Case]:
    megatron = itertools.product((1, 2, 4), (False, True), (1, 2, 4), (1, 2), (1, 2), (0, 1), (False, True))
    for tensor, sequence, pipeline, virtual, context, zero, overlap in megatron:
        layout = {
            "tensor": tensor, "sequence": sequence, "pipeline": pipeline, "virtual_pipeline": virtual,
            "context": context, "zero": zero, "overlap": overlap,
        }  # fmt: skip
        for data, micro_batch in itertools.product(("masked", "autoregressive"), (1, 2)):
            yield Case(world, layout, data, micro_batch)
    for zero, tensor, data, micro_batch in itertools.product((1, 2, 3), (1, 2), ("masked", "autoregressive"), (1, 2)):
        yield Case(world, {"engine": "deepspeed", "zero": zero, "tensor": tensor}, data, micro_batch)


def _valid(case: Case) -> bool:
    try:
        case.config()
    except UserError:
        return False
    return True


def pairwise(cases: Sequence[Case]) -> list[Case]:
    """A small part of `cases` in which every pair of options that occurs at all occurs; small worlds first."""
    covers = {id(case): _pairs(case) for case in cases}
    covered: set[Any] = set()
    chosen: list[Case] = []
    for world in sorted({case.world for case in cases}):
        here = [case for case in cases if case.world == world]
        missing = set().union(*(covers[id(case)] for case in here)) - covered
        while missing:
            best = max(here, key=lambda case: len(covers[id(case)] & missing))
            chosen.append(best)
            covered |= covers[id(best)]
            missing -= covered
    return chosen


def _pairs(case: Case) -> frozenset[Any]:
    data = case.world // case.config().parallel.model_size
    options = {"engine": "megatron", **case.parallel, "data_size": data, "data": case.data, "mb": case.micro_batch}
    return frozenset(itertools.combinations(sorted(options.items()), 2))


def run_cases(cases: Sequence[Case], directory: Path, timeout: float) -> list[dict[str, Any]]:
    """Run `cases` (of one world) in one torchrun launch; results in their order, checkpoints below `directory`.

    A result holds `losses`, `grad_norms`, `digests` by step, the paths of the checkpoints after the first and the last
    step, and under `resumed` the same three lists of the steps that were taken again, if the case asks for it.
    """
    world = cases[0].world
    assert all(case.world == world for case in cases)
    directory.mkdir(parents=True, exist_ok=True)
    plan = directory / "cases.json"
    plan.write_text(json.dumps([asdict(case) for case in cases]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    log = directory / "log.txt"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with open(log, "wb") as out:
        command = [*launch, "-m", "tests.support.grid_worker", str(plan)]
        code = subprocess.run(command, env=environment, stdout=out, stderr=out, timeout=timeout, check=False).returncode
    assert code == 0, f"the grid's launch failed:\n{log.read_text()[-4000:]}"
    return json.loads((directory / "results.json").read_text())
