"""What is benchmarked: two model shapes on a small dataset of real text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.build import build_dataset
from data_pipeline.config import BuildConfig, DataConfig
from data_pipeline.dataset import SampleReader
from launch.recipe import load_recipe
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.flops import training_flops_per_token
from pretrain.session import build_objective

_DATASET = {
    "sources": [{"kind": "python_stdlib", "name": "python-stdlib", "licence": "PSF-2.0", "max_bytes": 6_000_000}],
    "tokenizer": {"kind": "train", "vocabulary": 2048, "sample_bytes": 1_000_000},
}


@dataclass(frozen=True)
class Workload:
    """A recipe with `overrides`, and how it is timed.

    `rounds` turns of `steps` optimizer steps each; fewer if they do not fit into `budget` seconds.
    """

    name: str
    overrides: tuple[str, ...]
    rounds: int
    steps: int
    budget: float

    def config(self, data: Path) -> RunConfig:
        """The run's configuration on dataset `data`, with megatron-core as the engine."""
        return load_recipe("demo", [f"data.path={data}", "tracking.enabled=false", *self.overrides])


def describe(config: RunConfig) -> str:
    """Shape and size of a step in words."""
    shape, train = config.model, config.train
    return (
        f"{shape.layers} layers, width {shape.width}, vocabulary {shape.vocabulary}, "
        f"{shape.parameters().total / 1e6:.2f} M parameters, {train.global_batch} sequences of {train.sequence_length} "
        f"tokens in micro-batches of {train.micro_batch}, {step_flops(config) / 1e9:.1f} GFLOP a step"
    )


DEMO = Workload("demo", ("train.steps=2000",), rounds=16, steps=3, budget=60)
LARGER = Workload(
    "larger",
    (
        "train.steps=2000",
        "model.layers=6",
        "model.width=384",
        "model.heads=6",
        "model.kv_heads=6",
        "model.ffn=1056",
        "train.sequence_length=256",
        "train.global_batch=8",
        "train.micro_batch=4",
        "optimizer.lr=0.001",
    ),
    rounds=8,
    steps=1,
    budget=90,
)
STATE = Workload(
    "state",
    (
        "train.steps=2000",
        "model.layers=12",
        "model.width=640",
        "model.heads=10",
        "model.kv_heads=10",
        "model.ffn=1760",
        "optimizer.lr=0.001",
    ),
    rounds=7,
    steps=0,
    budget=60,
)
"""For checkpoints only: large enough that what a save and a load cost once does not count."""
WORKLOADS: Sequence[Workload] = (DEMO, LARGER)


def build_data(out: Path) -> None:
    """Build the dataset from the running Python's standard library (about 2 M tokens in 5 seconds)."""
    build_dataset(BuildConfig.parse(_DATASET, "bench"), out, show_progress=False)


def open_reader(config: RunConfig) -> SampleReader:
    """The run's samples."""
    return SampleReader(DataConfig(path=config.data.path), config.train.sequence_length, config.train.seed)


def build_feed(config: RunConfig, mesh: Mesh | None = None) -> Feed:
    """The run's micro-batches: those of this rank of `mesh`, else all."""
    mesh = mesh or Mesh.local()
    reader, train = open_reader(config), config.train
    objective = build_objective(config, reader.manifests[0].tokenizer)
    return Feed(
        reader, objective, train.global_batch, train.micro_batch,
        mesh.data_rank, mesh.data_size, mesh.context_rank, mesh.layout.context,
    )  # fmt: skip


def step_flops(config: RunConfig) -> float:
    """Expected model FLOPs of an optimizer step: matrix products, the head on the expected masked rows only."""
    objective, train = config.objective, config.train
    per_token = training_flops_per_token(config.model, train.sequence_length, objective.causal, objective.head_rows)
    return per_token.total * train.tokens_per_step
