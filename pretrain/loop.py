"""The training loop. It reads top to bottom and does not know which engine runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from data_pipeline.loader import Loader
from parallel.engines.base import LEVEL_BINS, Engine, StepResult
from parallel.mesh import Mesh
from pretrain.config import RunConfig
from pretrain.device import peak_flops, peak_memory
from pretrain.feed import Feed, StepBatch
from pretrain.flops import training_flops_per_token
from runtime.errors import LacunaError
from runtime.signals import StopRequest

_SIGNED = 1 << 63


@dataclass(frozen=True)
class Agreement:
    """What all ranks know of a step before they compute it: counting tokens, batch digest, whether to stop."""

    tokens: int
    digest: str
    stop: bool


@dataclass(frozen=True)
class Hooks:
    """What the loop tells the outside: a line of metrics (every rank, same values), and when to save."""

    metrics: Callable[[int, dict[str, Any]], None]
    save: Callable[[int], None]


def train(
    config: RunConfig, engine: Engine, feed: Feed, start: int, until: int, hooks: Hooks, stop: StopRequest
) -> tuple[int, bool]:
    """Take steps `start`+1 … `until`. Returns the last step taken and whether a stop was asked for.

    Saves every `checkpoint.every` steps and at the end. Raises LacunaError if the loss is not finite.
    """
    clock = _Clock(config, engine.mesh)
    step = saved = start
    with Loader(feed.step, start, until) as batches:
        for batch in batches:
            agreed = agree(engine.mesh, batch, bool(stop))
            if agreed.stop:
                break
            tokens_before = step * config.train.tokens_per_step
            factor = config.optimizer.schedule.factor(
                tokens_before + config.train.tokens_per_step, config.train.total_tokens
            )
            rate = config.optimizer.lr * factor
            result = engine.train_step(batch.micro_batches, float(agreed.tokens), rate)
            step += 1
            _refuse_divergence(result, step, saved)
            clock.tick(batches.wait_seconds)
            if step % config.train.log_every == 0 or step == until:
                hooks.metrics(step, {**_metrics(config, step, agreed, result, rate), **clock.metrics()})
            if step % config.checkpoint.every == 0 and step < until:
                hooks.save(step)
                saved = step
                clock.pause()
    if step > saved:
        hooks.save(step)
    return step, step < until


def agree(mesh: Mesh, batch: StepBatch, stop: bool) -> Agreement:
    """One small sum over the world: counting tokens and digest words of each data rank, and stop requests."""
    signed = [(word + _SIGNED) % (2 * _SIGNED) - _SIGNED for word in batch.digest]
    share = torch.tensor([batch.tokens, *signed, 0], dtype=torch.int64)
    if not mesh.speaks_for_data_rank:
        share.zero_()
    share[3] = int(stop)
    tokens, low, high, stops = mesh.sum_all(share).tolist()
    return Agreement(tokens, f"{high % (2 * _SIGNED):016x}{low % (2 * _SIGNED):016x}", stops > 0)


def _refuse_divergence(result: StepResult, step: int, saved: int) -> None:
    if not (math.isfinite(result.loss_sum) and math.isfinite(result.grad_norm)):
        raise LacunaError(
            f"step {step}: loss {result.loss_sum} and gradient norm {result.grad_norm} are not finite; "
            f"continue from checkpoint step {saved} with a lower optimizer.lr"
        )


def _metrics(config: RunConfig, step: int, agreed: Agreement, result: StepResult, rate: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokens": step * config.train.tokens_per_step,
        "train/loss": result.loss_sum / agreed.tokens,
        "optim/grad_norm": result.grad_norm,
        "optim/lr": rate,
        "data/batch_digest": agreed.digest,
    }
    if config.objective.kind == "masked":
        for level in range(LEVEL_BINS):
            if result.level_counts[level]:
                values[f"train/loss_at_level/{level}"] = result.level_sums[level] / result.level_counts[level]
    return values


class _Clock:
    """Speed since the last logged step; checkpoints do not count."""

    def __init__(self, config: RunConfig, mesh: Mesh) -> None:
        flops = training_flops_per_token(
            config.model, config.train.sequence_length, config.objective.causal, config.objective.head_rows
        )
        self._flops_per_token = flops.total
        peak = torch.tensor([peak_flops(mesh.device, config.train.precision)], dtype=torch.float64)
        self._peak = mesh.sum_all(peak).item()
        self._device = mesh.device
        self._tokens_per_step = config.train.tokens_per_step
        self._reset()

    def _reset(self) -> None:
        self._steps, self._wait, self._start = 0, 0.0, time.perf_counter()

    def tick(self, wait_seconds: float) -> None:
        self._steps += 1
        self._wait += wait_seconds

    def pause(self) -> None:
        self._reset()

    def metrics(self) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        rate = self._steps * self._tokens_per_step / seconds
        values = {
            "perf/tokens_per_second": rate,
            "perf/mfu": rate * self._flops_per_token / self._peak,
            "perf/step_seconds": seconds / self._steps,
            "perf/memory_bytes": peak_memory(self._device),
            "data/wait_seconds": self._wait / self._steps,
        }
        self._reset()
        return values
