"""Ranks as threads of this process, for what they agree on through a mesh; and state that such ranks can hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from parallel.engines.base import Fragment, StepResult, Verdict
from parallel.layout import ParallelConfig
from parallel.mesh import Mesh
from pretrain.build import build_engine
from pretrain.config import RunConfig
from tests.support.simulated import simulated_rank

Logical = dict[str, dict[str, torch.Tensor]]  # kind → logical name → whole tensor


class PeerLeft(Exception):
    """A rank waits for one that has ended with an error; between processes it would wait for ever."""


class _Meeting:
    """Where the ranks of a world wait for each other, round by round."""

    def __init__(self, world: int) -> None:
        self._changed = threading.Condition()
        self._rounds = [0] * world
        self._left = [False] * world
        self._values: list[dict[int, Any]] = [{} for _ in range(world)]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Hand in a value, wait for those of all ranks in the same round, and return them in rank order."""
        with self._changed:
            self._rounds[rank] += 1
            number = self._rounds[rank]
            self._values[rank][number] = value
            self._changed.notify_all()
            met = self._changed.wait_for(lambda: self._all_in(number) or self._hopeless(number), timeout=60)
            if not met or not self._all_in(number):
                raise PeerLeft(f"rank {rank} in round {number}")
            return [values[number] for values in self._values]

    def leave(self, rank: int) -> None:
        with self._changed:
            self._left[rank] = True
            self._changed.notify_all()

    def _all_in(self, number: int) -> bool:
        return all(done >= number for done in self._rounds)

    def _hopeless(self, number: int) -> bool:
        return any(left and done < number for left, done in zip(self._left, self._rounds, strict=True))


@dataclass(frozen=True)
class ThreadMesh(Mesh):
    """A mesh whose ranks are threads: the agreements are real, the groups are not there."""

    meeting: Any = None

    def gather(self, value: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, value)

    def barrier(self) -> None:
        self.meeting.exchange(self.rank, None)

    def sum_all(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.meeting.exchange(self.rank, values.clone())).sum(0)


def run_ranks(world: int, work: Callable[[ThreadMesh], Any]) -> list[Any]:
    """Call `work` on every rank at once, each a data rank. Returns what each returned, or the exception it raised."""
    meeting = _Meeting(world)
    results: list[Any] = [None] * world

    def rank_main(rank: int) -> None:
        layout, cpu = ParallelConfig(), torch.device("cpu")
        mesh = ThreadMesh(layout, rank, world, cpu, data_rank=rank, data_size=world, meeting=meeting)
        try:
            results[rank] = work(mesh)
        except Exception as error:
            results[rank] = error
        finally:
            meeting.leave(rank)

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

    def train_step(
        self, micro_batches: Sequence[Any], denominator: float, learning_rate: float, accepts: Verdict
    ) -> StepResult:
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
