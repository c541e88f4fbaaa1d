"""Ranks as threads of this process, for what they agree on through a mesh; and state that such ranks can hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from parallel.engines.base import Fragment, StepResult
from parallel.layout import ParallelConfig
from parallel.mesh import Mesh
from pretrain.build import build_engine
from pretrain.config import RunConfig
from tests.support.simulated import simulated_rank

Logical = dict[str, dict[str, torch.Tensor]]  # kind → logical name → whole tensor


class _Meeting:
    """Where the threads of a world wait for each other. A rank that leaves with an error breaks it for the others."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world, timeout=30)
        self.values: list[Any] = [None] * world


@dataclass(frozen=True)
class ThreadMesh(Mesh):
    """A mesh whose ranks are threads: the agreements are real, the groups are not there."""

    meeting: Any = None

    def gather(self, value: Any) -> list[Any]:
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        values = list(self.meeting.values)
        self.meeting.barrier.wait()
        return values

    def barrier(self) -> None:
        self.meeting.barrier.wait()


def run_ranks(world: int, work: Callable[[ThreadMesh], Any]) -> list[Any]:
    """Call `work` on every rank at once. Returns what each returned, or the exception it raised.

    Ranks that would wait for ever, because another one has left, raise BrokenBarrierError.
    """
    meeting = _Meeting(world)
    results: list[Any] = [None] * world

    def rank_main(rank: int) -> None:
        mesh = ThreadMesh(ParallelConfig(), rank, world, torch.device("cpu"), data_size=world, meeting=meeting)
        try:
            results[rank] = work(mesh)
        except Exception as error:
            results[rank] = error
            meeting.barrier.abort()

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@dataclass
class HeldState:
    """What one rank of a layout holds: the state side of `parallel.engines.base.Engine`."""

    mesh: Mesh
    held: Sequence[Fragment]
    shapes: dict[str, tuple[int, ...]]
    loaded_steps: list[int] = field(default_factory=list)

    def fragments(self) -> Iterator[Fragment]:
        return iter(self.held)

    def finish_load(self, steps_taken: int) -> None:
        self.loaded_steps.append(steps_taken)

    def logical_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.shapes

    def train_step(self, micro_batches: Sequence[Any], denominator: float, learning_rate: float) -> StepResult:
        raise NotImplementedError("state only")


def held_states(config: RunConfig, world: int) -> list[HeldState]:
    """The state of every rank under `config.parallel`, as its real engine cuts it."""
    states = []
    for rank in range(world):
        with simulated_rank(config, rank, world) as mesh:
            engine = build_engine(config, mesh)
            states.append(HeldState(mesh, list(engine.fragments()), engine.logical_shapes()))
    return states


def fill(state: HeldState, values: Logical) -> None:
    """Copy the rank's part of whole logical tensors into its memory."""
    for fragment in state.held:
        for name, _, where, view in fragment.pieces():
            view.copy_(values[fragment.kind][name][where.slices])


def differing(state: HeldState, values: Logical) -> list[str]:
    """Names of the tensors whose part on this rank is not bit-equal to that of `values`."""
    return [
        f"{fragment.kind} {name}"
        for fragment in state.held
        for name, _, where, view in fragment.pieces()
        if not torch.equal(view, values[fragment.kind][name][where.slices])
    ]
