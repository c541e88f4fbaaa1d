"""Who takes the training steps: a plain PyTorch loop, each engine, and the whole training loop.

Each lives in a process of its own, so that none runs under another's patches, and works only when asked to.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import torch

from bench.workload import build_feed
from parallel.checkpoint.store import Progress
from parallel.engines.base import Engine, decay_groups
from parallel.mesh import Mesh, close_process_group
from pretrain.agreement import agree
from pretrain.config import RunConfig
from pretrain.feed import StepBatch
from pretrain.guards import Guard
from pretrain.initialise import initialise
from pretrain.loop import Hooks, learning_rate, train
from pretrain.model import Transformer
from pretrain.saves import Saves
from pretrain.tracking.spool import Spool
from runtime.environment import RankInfo
from runtime.signals import StopRequest

PLAIN, MEGATRON, DEEPSPEED, LOOP = "plain PyTorch loop", "megatron engine", "DeepSpeed engine", "whole training loop"
CONTENDERS = (PLAIN, MEGATRON, DEEPSPEED, LOOP)


class Steps(NamedTuple):
    """Steps that were taken: seconds each, loss (nats per token) of the last, mean seconds waited for data."""

    seconds: list[float]
    loss: float
    wait: float = 0.0


class Contender(Protocol):
    """Trains one model; called with the first step (counted from 0) and how many to take."""

    def __call__(self, first: int, count: int) -> Steps:
        """Take steps `first` … `first + count - 1`."""
        ...


class _OwnBatches:
    """Times single steps on batches that were assembled before the clock starts."""

    def __init__(self, config: RunConfig, mesh: Mesh) -> None:
        self.config = config
        self._feed = build_feed(config, mesh)

    def __call__(self, first: int, count: int) -> Steps:
        batches = [self._feed.step(step) for step in range(first, first + count)]
        taken: list[float] = []
        loss = 0.0
        for step, batch in enumerate(batches, start=first):
            start = time.perf_counter()
            loss = self.step(batch, learning_rate(self.config, step))
            taken.append(time.perf_counter() - start)
        return Steps(taken, loss)

    def step(self, batch: StepBatch, rate: float) -> float:
        """One optimizer step; its loss in nats per token."""
        raise NotImplementedError


class PlainLoop(_OwnBatches):
    """What one would write by hand: the same model and micro-batches, torch's AdamW and clipping, no engine."""

    def __init__(self, config: RunConfig) -> None:
        mesh, adam = Mesh.local(), config.optimizer
        super().__init__(config, mesh)
        self._device, self._clip = mesh.device, adam.clip
        self._model = Transformer(config.model, mesh, None, config.objective.causal, config.train.head_chunk)
        self._model.to(mesh.device)
        initialise(self._model, config.model, config.train.seed)
        groups = decay_groups(self._model, adam.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=adam.lr, betas=adam.betas, eps=adam.epsilon)

    def step(self, batch: StepBatch, rate: float) -> float:
        """See `_OwnBatches.step`."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._device)
        for micro_batch in batch.micro_batches:
            loss_sum, _ = self._model(micro_batch.to(self._device))
            (loss_sum / batch.tokens).backward()
            total += loss_sum.detach()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        return total.item() / batch.tokens


class EngineSteps(_OwnBatches):
    """What the training loop does with a batch: the ranks agree on it, then the engine takes the step if it is sane."""

    def __init__(self, config: RunConfig, mesh: Mesh) -> None:
        from pretrain.build import build_engine

        super().__init__(config, mesh)
        self._mesh, self._guard = mesh, Guard(config.guard)
        self._engine = build_engine(config, mesh)

    def step(self, batch: StepBatch, rate: float) -> float:
        """See `_OwnBatches.step`."""
        agreed = agree(self._mesh, batch, stop=False)

        def accepts(loss_sum: float, grad_norm: float) -> bool:
            return self._guard.accepts(loss_sum / agreed.tokens, grad_norm)

        result = self._engine.train_step(batch.micro_batches, float(agreed.tokens), rate, accepts)
        return result.loss_sum / agreed.tokens


class _NoSaves(Saves):
    """Saves of a run that is not kept."""

    def __init__(self, config: RunConfig, root: Path, engine: Engine) -> None:
        def describe(step: int, guard: Guard) -> Progress:
            raise AssertionError("nothing is saved")

        super().__init__(config.checkpoint, root, engine, describe, saved=0)

    def begin(self, step: int, guard: Guard) -> None:
        """Saves nothing."""


class WholeLoop:
    """`pretrain.loop.train` itself: prefetch, noise, digests, agreement, step, metrics written to a file."""

    def __init__(self, config: RunConfig, mesh: Mesh, spool: Path) -> None:
        from pretrain.build import build_engine

        self._config, self._guard = config, Guard(config.guard)
        self._engine, self._feed = build_engine(config, mesh), build_feed(config)
        self._spool, self._saves = Spool(spool), _NoSaves(config, spool.parent, self._engine)

    def __call__(self, first: int, count: int) -> Steps:
        ends: list[float] = []
        lines: list[dict[str, Any]] = []

        def report(step: int, values: dict[str, Any]) -> None:
            self._spool.write(step, values)
            lines.append(values)
            ends.append(time.perf_counter())

        hooks = Hooks(metrics=report, saves=self._saves)
        begin = time.perf_counter()
        span = range(first, first + count)
        train(self._config, self._engine, self._feed, span, self._guard, hooks, StopRequest())
        taken = [end - start for start, end in zip([begin, *ends], ends, strict=False)]
        wait = sum(line["data/wait_seconds"] for line in lines[1:]) / max(1, count - 1)
        return Steps(taken, lines[-1]["train/loss"], wait)


def _build(kind: str, config: RunConfig, mesh: Mesh | None, spool: Path) -> Contender:
    if mesh is None:
        return PlainLoop(config)
    return WholeLoop(config, mesh, spool) if kind == LOOP else EngineSteps(config, mesh)


def _with_engine(kind: str, config: RunConfig) -> RunConfig:
    name = "deepspeed" if kind == DEEPSPEED else "megatron"
    layout = config.parallel.model_validate({**config.parallel.model_dump(), "engine": name})
    return config.model_copy(update={"parallel": layout})


def _serve(kind: str, configs: Sequence[RunConfig], requests: Connection) -> None:
    """Body of a contender's process: build every model, then answer (model, first, count) with `Steps`."""
    warnings.simplefilter("ignore")
    configs = [_with_engine(kind, config) for config in configs]
    try:
        with tempfile.TemporaryDirectory() as spools:
            mesh = None if kind == PLAIN else Mesh.create(configs[0].parallel, RankInfo())
            built = [_build(kind, c, mesh, Path(spools) / f"{i}.jsonl") for i, c in enumerate(configs)]
            requests.send("ready")
            while (request := requests.recv()) is not None:
                model, first, count = request
                requests.send(built[model](first, count))
    except Exception:
        requests.send(RuntimeError(f"{kind}:\n{traceback.format_exc()}"))
    close_process_group()


class ContenderProcess:
    """A contender in a process of its own."""

    def __init__(self, kind: str, configs: Sequence[RunConfig]) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(kind, configs, theirs), name=kind, daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> Any:
        """The next answer. Raises RuntimeError with the process's traceback, or EOFError if it is gone."""
        answer = self._connection.recv()
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    def take(self, model: int, first: int, count: int) -> Steps:
        """Let it take steps of its model number `model`."""
        self._connection.send((model, first, count))
        answer = self.wait()
        assert isinstance(answer, Steps)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._connection.send(None)
        else:
            self._process.terminate()
        self._process.join()
