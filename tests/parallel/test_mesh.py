"""Coordinates of every rank of simulated layouts, and the mesh of one process."""

from typing import Any

import pytest
import torch

from parallel.layout import ParallelConfig
from parallel.mesh import Mesh
from runtime.environment import RankInfo
from runtime.errors import UserError
from tests.support.simulated import needs_cpu, simulated_rank, single_process
from tests.support.tiny import tiny_config


@needs_cpu
@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (4, {}),
        (4, {"tensor": 2}),
        (8, {"tensor": 2, "pipeline": 2}),
        (8, {"context": 2, "tensor": 2}),
        (16, {"tensor": 2, "context": 2, "pipeline": 2, "sequence": True}),
        (4, {"engine": "deepspeed", "tensor": 2, "zero": 3}),
    ],
    ids=str,
)
def test_every_place_of_the_mesh_has_one_rank(world: int, layout: dict[str, Any]) -> None:
    config = tiny_config(parallel=layout)
    axes = config.parallel
    data_size = axes.data_size(world)
    places, data_speakers, loss_speakers = [], [], []
    for rank in range(world):
        with simulated_rank(config, rank, world) as mesh:
            assert (mesh.rank, mesh.world, mesh.data_size) == (rank, world, data_size)
            places.append((mesh.tensor_rank, mesh.context_rank, mesh.data_rank, mesh.pipeline_rank))
            if mesh.speaks_for_data_rank:
                data_speakers.append(mesh.data_rank)
            if mesh.speaks_for_loss:
                loss_speakers.append((mesh.data_rank, mesh.context_rank))
                assert mesh.pipeline_rank == axes.pipeline - 1
    sizes = (axes.tensor, axes.context, data_size, axes.pipeline)
    assert len(set(places)) == world
    assert tuple(max(column) + 1 for column in zip(*places, strict=True)) == sizes
    assert sorted(data_speakers) == list(range(data_size))  # each share of a sum once
    assert sorted(loss_speakers) == [(d, c) for d in range(data_size) for c in range(axes.context)]


def test_a_mesh_of_one_process_needs_no_process_group() -> None:
    mesh = Mesh.local(torch.device("cpu"))
    values = torch.tensor([3, 4])
    assert torch.equal(mesh.sum_all(values), values)
    assert mesh.sum_all(values) is not values
    assert mesh.gather({"a": 1}) == [{"a": 1}]
    mesh.barrier()
    assert mesh.speaks_for_data_rank
    assert mesh.speaks_for_loss


def test_a_process_alone_can_join_and_leave_its_own_group() -> None:
    for _ in range(2):
        with single_process(tiny_config()) as mesh:
            assert mesh.world == mesh.data_size == 1
            assert mesh.sum_all(torch.tensor([2.5])).item() == 2.5
            assert mesh.gather("x") == ["x"]
        assert not torch.distributed.is_initialized()


def test_a_layout_that_does_not_divide_the_world_is_refused_before_joining() -> None:
    with pytest.raises(UserError, match=r"parallel\.tensor=4 does not divide the world of 6 processes"):
        Mesh.create(ParallelConfig(tensor=4), RankInfo(0, 6, 0))
    assert not torch.distributed.is_initialized()
