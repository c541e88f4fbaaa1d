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
STEPS = 5
DEEP = 9  # for more chunks than layers; nine divide no pipeline evenly either
AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "megatron": {
        "tensor": (1, 2, 4),
        "sequence": (False, True),
        "pipeline": (1, 2, 4),
        "virtual_pipeline": (1, 2),
        "context": (1, 2),
        "zero": (0, 1),
        "overlap": (False, True),
    },
    "deepspeed": {"zero": (1, 2, 3), "tensor": (1, 2)},
}
WORLDS, DATA, MICRO_BATCHES = (1, 2, 4, 8), ("masked", "autoregressive"), (1, 2)

Option = tuple[str, Any]


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
    steps: int = STEPS
    resumed: bool = False
    compiled: bool = False
    layers: int = LAYERS

    @property
    def name(self) -> str:
        """Layout, data and micro-batch in words."""
        switches = ["overlap"] * bool(self.parallel.get("overlap")) + ["compiled"] * self.compiled
        switches += [f"{self.steps} steps"] * (self.steps != STEPS) + ["resumed"] * self.resumed
        switches += [f"{self.layers} layers"] * (self.layers != LAYERS)
        switches += [f"{k}={self.parallel[k]}" for k in ("recompute", "offload") if k in self.parallel]
        layout = self.config().parallel.describe(self.world)
        return " ".join([layout, *switches, self.data, f"mb{self.micro_batch}", self.precision])

    def config(self) -> RunConfig:
        """The run's configuration. Raises UserError if the layout is refused."""
        config = tiny_config(
            "autoregressive" if self.data.startswith("autoregressive") else "masked",
            model__layers=self.layers,
            model__init_std=0.1,  # suits the width: at 0.02 float32 alone drifts from float64 by 4e-5 in 20 steps
            optimizer__lr=0.0005 if self.data == "edge" else 0.003,  # see docs/parallelism.md
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


def all_cases(worlds: Sequence[int] = WORLDS) -> list[Case]:
    """Every valid combination of the grid's options."""
    return [case for world in worlds for case in _candidates(world) if _valid(case)]


def _candidates(world: int) -> Iterator[Case]:
    for engine, axes in AXES.items():
        for values in itertools.product(*axes.values()):
            layout = dict(zip(axes, values, strict=True))
            chunks = layout.get("pipeline", 1) * layout.get("virtual_pipeline", 1)
            layers = LAYERS if chunks <= LAYERS else DEEP
            named = layout if engine == "megatron" else {"engine": engine, **layout}
            for data, micro_batch in itertools.product(DATA, MICRO_BATCHES):
                yield Case(world, named, data, micro_batch, layers=layers)


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


def covered_pairs(cases: Sequence[Case]) -> set[tuple[Option, Option]]:
    """Pairs of options that occur in `cases`."""
    return set().union(*(_pairs(case) for case in cases))


def conceivable_pairs() -> list[tuple[Option, Option]]:
    """Pairs of options of the grid, whether or not they can stand together."""
    values: dict[str, set[Any]] = {"engine": set(AXES), "data": set(DATA), "mb": set(MICRO_BATCHES)}
    values["data_size"] = set(WORLDS)
    for key, offered in itertools.chain.from_iterable(axes.items() for axes in AXES.values()):
        values.setdefault(key, set()).update(offered)
    options = [(key, value) for key in sorted(values) for value in sorted(values[key])]
    return [(a, b) for a, b in itertools.combinations(options, 2) if a[0] != b[0]]


def why_apart(first: Option, second: Option) -> str | None:
    """Why no run of the grid can have both options, by arithmetic, not by asking what is refused; None if one can."""
    both = dict((first, second))
    switches = {key: value for key, value in both.items() if any(key in axes for axes in AXES.values())}
    engines = [both["engine"]] if "engine" in both else list(AXES)
    tensor = both.get("tensor", 2 if both.get("sequence") else 1)
    pipeline = both.get("pipeline", both.get("virtual_pipeline", 1))
    ranks = tensor * pipeline * both.get("context", 1) * both.get("data_size", 1)
    samples = both.get("mb", 1) * both.get("data_size", 1)
    reasons = {
        "no engine has both": not any(all(v in AXES[e].get(k, ()) for k, v in switches.items()) for e in engines),
        "sequence parallelism is between tensor ranks": both.get("sequence") and both.get("tensor") == 1,
        "virtual stages are parts of stages": both.get("virtual_pipeline") == 2 and both.get("pipeline") == 1,
        "overlap gathers what ZeRO-1 has cut": both.get("overlap") and both.get("zero") == 0,
        f"the global batch has {GLOBAL_BATCH} samples": samples > GLOBAL_BATCH,
        f"the largest world has {max(WORLDS)} processes": ranks > max(WORLDS),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


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
