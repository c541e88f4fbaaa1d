"""Which boxes of the logical tensors each rank of a layout writes, told by its real engine built without memory.

One process plays every rank after the other: torch's fake process group answers all collectives, its fake tensors
have shapes but no storage. So nothing is known here of how the engines cut their state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist

from parallel.checkpoint.manifest import CheckpointManifest
from parallel.checkpoint.reshard import Division, Piece
from parallel.layout import ParallelConfig
from parallel.mesh import Mesh, close_process_group
from pretrain.build import empty_engine
from pretrain.config import RunConfig
from runtime.environment import RankInfo


def checkpoint_config(manifest: CheckpointManifest, layout: ParallelConfig, where: str) -> RunConfig:
    """The run that made a checkpoint, under `layout`, as far as it decides who holds what.

    Raises UserError if the layout does not fit the model, or the manifest in `where` does not name it.
    """
    identity = manifest.identity
    sections: dict[str, dict[str, Any]] = {"model": {}, "objective": {}, "train": {}}
    for key, value in identity.items():
        section, _, name = key.partition(".")
        sections.get(section, {})[name] = value
    sections["train"]["steps"] = 1
    values = {"name": "reshard", "optimizer": {"lr": 1.0}, "parallel": layout.model_dump(), **sections}
    return RunConfig.parse(values, where)


def rank_division(config: RunConfig, world: int, advance: Callable[[int], None]) -> Division:
    """The pieces that each of `world` ranks would write itself, one file a rank; `advance(1)` after each rank.

    Raises UserError if the layout or the batch does not fit `world`. For a process of its own: it joins and leaves
    fake process groups.
    """
    config.micro_batches(world)
    division: list[list[Piece]] = []
    for rank in range(world):
        with _played_rank(config, RankInfo(rank, world)) as mesh:
            fragments = [fragment for fragment in empty_engine(config, mesh).fragments() if fragment.writes]
            pieces = [Piece(f.kind, name, box) for f in fragments for name, _, box, _ in f.pieces() if box.numel]
        division.append(pieces)
        advance(1)
    return division


@contextmanager
def _played_rank(config: RunConfig, rank: RankInfo) -> Iterator[Mesh]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank.rank, world_size=rank.world)
    with ExitStack() as stack:
        stack.callback(close_process_group)
        mesh = Mesh.create(config.parallel, rank)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # modules convert fake tensors by swapping them, which fails; gathered objects would have to be read
        stack.enter_context(_replaced(torch.nn.Module, "_apply", _apply))
        stack.enter_context(_replaced(dist, "all_gather_object", _all_the_same))
        yield mesh


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _apply(module: torch.nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
    """`torch.nn.Module._apply` without its swapping."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    with torch.no_grad():
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = convert(parameter.data)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert(buffer)
    return module


def _all_the_same(objects: list[Any], value: Any, group: Any = None) -> None:
    """`all_gather_object` where every rank says the same, as megatron's ranks do of their parameter groups."""
    objects[:] = [value] * len(objects)
