"""Any rank of any layout in this one process, with the engines' real groups and layers but silent collectives.

torch's "fake" backend answers every collective at once and moves nothing. So shapes, names, cuts and ownership are
those of the real layout; sums over ranks are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist

from parallel.megatron_config import transformer_config
from parallel.mesh import Mesh, close_process_group
from pretrain.config import RunConfig
from pretrain.model import Transformer
from pretrain.stage_cut import stages_of
from runtime.environment import RankInfo

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="simulated ranks stand on the CPU")


@contextmanager
def simulated_rank(config: RunConfig, rank: int, world: int) -> Iterator[Mesh]:
    """The mesh of `rank` among `world` ranks under `config.parallel`."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    close_process_group()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engines give many
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            yield Mesh.create(config.parallel, RankInfo(rank, world, rank))
        finally:
            close_process_group()


def rank_models(config: RunConfig, mesh: Mesh) -> list[Transformer]:
    """The model chunks of this rank in order of depth, not initialised."""
    settings = transformer_config(mesh, config.model.width, config.model.heads, config.train.precision)
    chunks = stages_of(config, mesh.layout)[mesh.pipeline_rank :: mesh.layout.pipeline]
    objective, train = config.objective, config.train
    return [Transformer(config.model, mesh, settings, objective.causal, train.head_chunk, chunk) for chunk in chunks]


@contextmanager
def single_process(config: RunConfig) -> Iterator[Mesh]:
    """The mesh of a run of one process, with its real process group."""
    close_process_group()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield Mesh.create(config.parallel, RankInfo())
        finally:
            close_process_group()
