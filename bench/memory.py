"""Memory of `lacuna plan` beside real processes: `python -m bench.memory [--json FILE]`.

Every rank of a layout is a fresh process. What it holds is told by the tensors that live (`bench.live`), and by the
kernel as growth of the resident set since just before the engine was built: once as workers run, whose C library keeps
freed pages (`parallel/cpu_compat.py`), and once in processes whose freed blocks go back to the kernel at once. To the
estimate beside the latter belongs what gloo copies while activations stand, for it is no tensor and on no GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import tempfile
import traceback
import warnings
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import typer

from bench.live import LiveTensors
from launch.recipe import load_recipe
from parallel.mesh import Mesh, close_process_group
from pretrain.agreement import agree
from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.objectives.autoregressive import AutoregressiveSamples
from pretrain.planning.memory import BUCKET, memory_by_stage
from pretrain.stage_cut import parameters_per_rank
from runtime.environment import RankInfo
from runtime.files import write_json

_SHAPE = (
    "model.layers=8", "model.width=512", "model.heads=8", "model.kv_heads=8", "model.ffn=1536",
    "model.vocabulary=8192", "train.sequence_length=256", "train.global_batch=8", "train.micro_batch=2",
    "objective.kind=autoregressive", "train.head_chunk=256",
)  # fmt: skip
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one process": (1, ()),
    "one process, bf16": (1, ("train.precision=bf16",)),
    "data 2, ZeRO-1": (2, ("parallel.zero=1",)),
    "tensor 2": (2, ("parallel.tensor=2",)),
    "pipeline 2": (2, ("parallel.pipeline=2",)),
    "data 2, DeepSpeed ZeRO-3": (2, ("parallel.engine=deepspeed", "parallel.zero=3")),
}
_STEPS = 2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Held:
    """Bytes on a rank: tensors after a step and the most within it, growth of the resident set at its peak."""

    after: int
    most: int
    resident: int


@dataclass(frozen=True)
class MemoryResult:
    """A rank of a layout: components as estimated, gloo's copies, what the rank held, and its resident growth where
    freed pages go back.
    """

    name: str
    rank: int
    estimate: dict[str, int]
    gloo: int
    held: Held
    resident_unkept: int


class _Tokens:
    """Random tokens: their values do not change what is held."""

    def __init__(self, config: RunConfig) -> None:
        self._length, self._vocabulary = config.train.sequence_length, config.model.vocabulary

    def tokens(self, index: int) -> np.ndarray:
        """See `pretrain.feed.TokenReader`."""
        return np.random.default_rng(index).integers(1, self._vocabulary, self._length)


def measure_memory(name: str, world: int, keys: tuple[str, ...]) -> list[MemoryResult]:
    """Every rank of the layout, in processes of their own. Raises RuntimeError with a rank's traceback."""
    config = load_recipe("demo", [*_SHAPE, *keys])
    held, unkept = (_launch(config, world, keep_pages) for keep_pages in (True, False))
    estimates = [stage.as_dict() for stage in memory_by_stage(config, config.parallel, world)]
    pipelined, gloo = config.parallel.pipeline > 1, gloo_copies(config)
    return [
        MemoryResult(name, rank, estimates[rank if pipelined else 0], gloo, held[rank], unkept[rank].resident)
        for rank in range(world)
    ]


def gloo_copies(config: RunConfig) -> int:
    """Bytes that gloo takes for itself at a step's peak.

    It copies the input of a reduce-scatter: of ZeRO-3 the bucket of gradients, while activations stand. megatron's
    collectives of such a size come when they are gone, and an all-reduce is done in place.
    """
    if config.parallel.zero < 3:
        return 0
    element = 2 if config.train.precision == "bf16" else 4
    parameters = max(parameters_per_rank(config, config.parallel))
    return min(parameters, BUCKET) * element


def _launch(config: RunConfig, world: int, keep_pages: bool) -> list[Held]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(world):
            ours, theirs = multiprocessing.Pipe()
            process = context.Process(target=_rank, args=(config, rank, world, keep_pages, f"{folder}/meeting", theirs))
            process.start()
            theirs.close()
            started.append((process, ours))
        answers = [ours.recv() for _, ours in started]
        for process, _ in started:
            process.join()
    for answer in answers:
        if isinstance(answer, RuntimeError):
            raise answer
    return answers


def _rank(config: RunConfig, rank: int, world: int, keep_pages: bool, meeting: str, answer: Connection) -> None:
    """Body of a rank's process: builds the engine and takes steps."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(meeting, world), rank=rank, world_size=world)
        answer.send(_held(config, Mesh.create(config.parallel, RankInfo(rank, world, rank)), keep_pages))
    except Exception:
        answer.send(RuntimeError(f"rank {rank}:\n{traceback.format_exc()}"))
    close_process_group()


def _held(config: RunConfig, mesh: Mesh, keep_pages: bool) -> Held:
    small = load_recipe("demo", [*_SHAPE, "model.layers=2", "model.width=64", "model.ffn=64", "model.vocabulary=512"])
    _take_steps(small.model_copy(update={"parallel": config.parallel, "train": config.train}), mesh)
    gc.collect()  # libraries, threads and connections are there now, and no part of what a layout holds
    if not keep_pages:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 16)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    _forget_the_past()
    before = _resident("VmRSS")
    after, most = _take_steps(config, mesh)
    return Held(after, most, _resident("VmHWM") - before)


def _take_steps(config: RunConfig, mesh: Mesh) -> tuple[int, int]:
    """Bytes of tensors after a step of a new engine, and the most during its forward and backward passes."""
    from pretrain.build import build_engine

    train, context, most = config.train, config.parallel.context, 0
    feed = Feed(
        _Tokens(config), AutoregressiveSamples(0), train.global_batch, train.micro_batch,
        mesh.data_rank, mesh.data_size, mesh.context_rank, context,
    )  # fmt: skip
    with LiveTensors(reserved=BUCKET * (2 if train.precision == "bf16" else 4)) as live:
        engine = build_engine(config, mesh)

        def judge(_loss: float, _norm: float) -> bool:
            nonlocal most
            most = live.peak
            return True

        for step in range(_STEPS):
            batch = feed.step(step)
            gc.collect()
            live.restart()
            _forget_the_past()
            engine.train_step(batch.micro_batches, float(agree(mesh, batch, False).tokens), 1e-4, judge)
        gc.collect()
        return live.bytes, most


def _resident(field: str) -> int:
    """Bytes that Linux tells of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _forget_the_past() -> None:
    """Give freed pages back to the kernel and let its peak begin anew: building an engine takes more than a step."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def table(results: list[MemoryResult]) -> Any:
    """Estimates beside what was held."""
    from bench.report import Table

    rows = []
    for result in results:
        estimate, held = result.estimate, result.held
        state = sum(estimate[part] for part in ("weights", "gradients", "buffers", "optimizer"))
        figures = (state, held.after, estimate["activations"], estimate["logits"], estimate["total"], held.most)
        rows.append(
            [
                f"{result.name}, rank {result.rank}",
                *(f"{figure / 1e6:.1f}" for figure in (*figures, held.resident, result.gloo, result.resident_unkept)),
                f"{estimate['total'] / held.most:.3f}",
                f"{estimate['total'] / held.resident:.3f}",
                f"{(estimate['total'] + result.gloo) / result.resident_unkept:.3f}",
            ]
        )
    shape = " ".join(key.partition(".")[2] for key in _SHAPE)
    headings = [
        "layout", "state", "tensors after a step", "activations", "head", "total",
        "most tensors", "resident growth", "gloo's copies", "resident growth, pages given back",
        "total/tensors", "total/resident", "(total + gloo)/resident, pages given back",
    ]  # fmt: skip
    return Table("Memory: estimate beside processes, MB", shape, headings, rows)


def main(json: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None) -> None:
    """Measure every layout and print the table."""
    from rich.console import Console

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    results = [result for name, (world, keys) in LAYOUTS.items() for result in measure_memory(name, world, keys)]
    shown = table(results)
    shown.show(Console(width=150))
    print(shown.markdown())
    if json is not None:
        write_json(json, {"ranks": [asdict(result) for result in results]})


if __name__ == "__main__":
    typer.run(main)
