"""Two processes against one on the same global batch, layout by layout: time of a step, and bytes sent.

`python -m bench.communication` measures this alone. The single process has all cores, each of the two its half, so a
ratio above 1 is what the layout costs: messages over gloo, waiting for each other, and work that both do.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist

from bench.contenders import MEGATRON, ContenderProcess, EngineSteps
from bench.counted import OWN, CountedTraffic
from bench.timing import Spread, interleave, ratio
from bench.workload import Workload
from parallel.mesh import Mesh, close_process_group
from pretrain.config import RunConfig
from pretrain.planning.traffic import traffic_by_stage
from runtime.environment import RankInfo

WORLD = 2
LAYOUTS: dict[str, tuple[str, ...]] = {
    "tensor 2": ("tensor=2", "zero=0"),
    "tensor 2, sequence": ("tensor=2", "sequence=true", "zero=0"),
    "pipeline 2": ("pipeline=2", "zero=0"),
    "context 2, gather": ("context=2", "zero=0"),
    "context 2, ring": ("context=2", "context_exchange=ring", "zero=0"),
    "data 2": ("zero=0",),
    "data 2, ZeRO-1": ("zero=1",),
    "data 2, DeepSpeed ZeRO-1": ("engine=deepspeed", "zero=1"),
    "data 2, DeepSpeed ZeRO-2": ("engine=deepspeed", "zero=2"),
    "data 2, DeepSpeed ZeRO-3": ("engine=deepspeed", "zero=3"),
}
WORKLOAD = Workload("demo", ("train.steps=2000", "train.micro_batch=4"), rounds=6, steps=2, budget=4)
_FIRST_STEPS = 3  # DeepSpeed's ZeRO-3 follows two steps before it knows which weights it needs when
_SAME_LOSS = 1e-3


@dataclass(frozen=True)
class LayoutResult:
    """One layout on two ranks. Seconds a step, and over the single process's in the same rounds.

    Bytes of a step: `sent` by axis as counted and `theory` by axis, of the rank that sends most; `own`: what loop and
    engine say beside that.
    """

    name: str
    layout: str
    seconds: Spread
    to_single: Spread
    sent: dict[str, float]
    theory: dict[str, float]
    own: float

    @property
    def sent_to_theory(self) -> float:
        """Counted over computed bytes of all axes."""
        return sum(self.sent.values()) / sum(self.theory.values())


def measure_communication(data: Path) -> list[LayoutResult]:
    """Every layout in turn with the single process. Fails if their losses part."""
    alone = WORKLOAD.config(data)
    with ExitStack() as stack:
        stack.enter_context(_no_gpu())
        single = stack.enter_context(ContenderProcess(MEGATRON, [alone]))
        pair = stack.enter_context(_Pair())
        single.wait()
        expected = single.take(0, 0, _FIRST_STEPS).loss
        results, step = [], _FIRST_STEPS
        for name, keys in LAYOUTS.items():
            workload = Workload(name, (*WORKLOAD.overrides, *(f"parallel.{key}" for key in keys)), 0, 0, 0)
            config = workload.config(data)
            loss = pair.ask(("build", config))[0]
            assert math.isclose(loss, expected, rel_tol=_SAME_LOSS), f"{name}: loss {loss}, alone {expected}"
            result, step = _measure(name, config, pair, single, step)
            results.append(result)
        return results


def _measure(
    name: str, config: RunConfig, pair: _Pair, single: ContenderProcess, first: int
) -> tuple[LayoutResult, int]:
    # the first step of a turn refills caches that the other has emptied: it is taken, not counted
    per_turn = WORKLOAD.steps + 1

    def alone(round_number: int) -> float:
        return fmean(single.take(0, first + round_number * per_turn, per_turn).seconds[1:])

    def together(round_number: int) -> float:
        start = _FIRST_STEPS + round_number * per_turn
        return max(pair.ask(("steps", start, per_turn)))

    contenders: dict[str, Callable[[int], float]] = {"alone": alone, "together": together}
    figures = interleave(contenders, WORKLOAD.rounds, WORKLOAD.budget)
    rounds = len(figures["alone"])
    counted: list[dict[str, float]] = pair.ask(("count", _FIRST_STEPS + rounds * per_turn))
    stages = traffic_by_stage(config, config.parallel, WORLD)
    busiest = max(range(WORLD), key=lambda rank: sum(counted[rank].values()))
    theory = stages[busiest if config.parallel.pipeline > 1 else 0].as_dict()
    axes = [axis for axis in theory if axis != "total" and theory[axis] + counted[busiest].get(axis, 0)]
    result = LayoutResult(
        name=name,
        layout=config.parallel.describe(WORLD),
        seconds=Spread.of(figures["together"]),
        to_single=ratio(figures["together"], figures["alone"]),
        sent={axis: counted[busiest].get(axis, 0.0) for axis in axes},
        theory={axis: theory[axis] for axis in axes},
        own=counted[busiest].get(OWN, 0.0),
    )
    return result, first + rounds * per_turn


class _Pair:
    """Two ranks in processes of their own, that build one layout after the other."""

    def __enter__(self) -> _Pair:
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(WORLD):
            ours, theirs = multiprocessing.Pipe()
            arguments = (rank, f"{self._folder.name}/meeting", theirs)
            process = context.Process(target=_serve, args=arguments, name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        return self

    def ask(self, request: tuple[Any, ...]) -> list[Any]:
        """Each rank's answer. Raises RuntimeError with a rank's traceback."""
        for connection in self._connections:
            connection.send(request)
        answers = [connection.recv() for connection in self._connections]
        for answer in answers:
            if isinstance(answer, RuntimeError):
                raise answer
        return answers

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            if kind is None:
                connection.send(None)
            else:
                process.terminate()
            process.join()
        self._folder.cleanup()


def _serve(rank: int, meeting: str, requests: Connection) -> None:
    """Body of a rank's process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // WORLD))
    try:
        dist.init_process_group("gloo", store=dist.FileStore(meeting, WORLD), rank=rank, world_size=WORLD)
        steps: EngineSteps | None = None
        while (request := requests.recv()) is not None:
            what, *arguments = request
            if what == "build":
                steps = None  # the memory of the layout before
                steps = EngineSteps(arguments[0], Mesh.create(arguments[0].parallel, RankInfo(rank, WORLD, rank)))
                requests.send(steps(0, _FIRST_STEPS).loss)
            elif what == "steps":
                assert steps is not None, "nothing is built yet"
                requests.send(fmean(steps(*arguments).seconds[1:]))
            else:
                assert steps is not None, "nothing is built yet"
                with CountedTraffic() as sent:
                    steps(arguments[0], 1)
                requests.send(dict(sent.bytes))
    except Exception:
        requests.send(RuntimeError(f"rank {rank}:\n{traceback.format_exc()}"))
    close_process_group()


@contextmanager
def _no_gpu() -> Iterator[None]:
    """Processes that start within see no GPU: two ranks would need two of them."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def main() -> None:
    """Measure and print the table."""
    from rich.console import Console

    from bench.report import communication_table
    from bench.workload import build_data

    with tempfile.TemporaryDirectory(prefix="lacuna-bench-") as scratch:
        build_data(Path(scratch) / "data")
        communication_table(measure_communication(Path(scratch) / "data")).show(Console(width=130))


if __name__ == "__main__":
    main()
