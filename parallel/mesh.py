"""The mesh: which ranks share a model copy, and the few collectives the loop itself needs."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from parallel.layout import ParallelConfig
from runtime.environment import RankInfo

_COLLECTIVE_SECONDS = 600.0


@dataclass(frozen=True)
class Mesh:
    """Sizes and coordinates of this rank on each axis, and its device.

    `data_rank` and `data_size` leave context ranks out: those share their samples, each with a part of the sequence.
    `control` is a gloo group over the whole world for small agreements on host memory
    (None where there is a single process and no process group).
    """

    layout: ParallelConfig
    rank: int
    world: int
    device: torch.device
    tensor_rank: int = 0
    pipeline_rank: int = 0
    context_rank: int = 0
    data_rank: int = 0
    data_size: int = 1
    control: Any = None

    @classmethod
    def local(cls, device: torch.device | None = None) -> Mesh:
        """A mesh of one process without a process group, for inference and tools."""
        return cls(ParallelConfig(zero=0), 0, 1, device or default_device(0))

    @classmethod
    def create(cls, layout: ParallelConfig, rank: RankInfo, timeout: float = _COLLECTIVE_SECONDS) -> Mesh:
        """Join the process group (once) and build megatron's groups for `layout`, replacing earlier ones.

        A collective that takes `timeout` seconds fails. Raises UserError if the layout does not divide the world.
        """
        data_size = layout.data_size(rank.world)
        device = default_device(rank.local_rank)
        patience = datetime.timedelta(seconds=timeout)
        from parallel import cpu_compat

        cpu_compat.install()
        if not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            # a single process needs no meeting point
            store = dist.HashStore() if rank.world == 1 else None
            dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world, timeout=patience)
        from megatron.core import parallel_state

        _leave_groups()
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
            context_parallel_size=layout.context,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=math.ceil(timeout / 60),
        )
        return cls(
            layout=layout,
            rank=rank.rank,
            world=rank.world,
            device=device,
            tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
            context_rank=parallel_state.get_context_parallel_rank(),
            data_rank=parallel_state.get_data_parallel_rank(),
            data_size=data_size,
            control=dist.group.WORLD if device.type == "cpu" else dist.new_group(backend="gloo", timeout=patience),
        )

    @property
    def speaks_for_data_rank(self) -> bool:
        """Whether this rank adds its data-parallel rank's share to sums over the world (each share once)."""
        return self.tensor_rank == self.pipeline_rank == self.context_rank == 0

    @property
    def speaks_for_loss(self) -> bool:
        """Whether this rank adds its loss to sums over the world: the last stage has it, context ranks a part each."""
        return self.tensor_rank == 0 and self.pipeline_rank == self.layout.pipeline - 1

    def sum_all(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` (host memory) over all ranks of the world."""
        total = values.clone()
        if self.control is not None:
            dist.all_reduce(total, group=self.control)
        return total

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.control is not None:
            dist.barrier(group=self.control)


def default_device(local_rank: int) -> torch.device:
    """The accelerator of this local rank, or the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _leave_groups() -> None:
    """Leave the groups of an earlier mesh. megatron only forgets them, and each of gloo's keeps polling threads."""
    from megatron.core import parallel_state

    for group in parallel_state._global_process_group_list or []:
        if group is not None:
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def close_process_group() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        _leave_groups()
        dist.destroy_process_group()
