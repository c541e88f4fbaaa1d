"""The training loop. It reads top to bottom and does not know which engine runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from data_pipeline.loader import Loader
from parallel.engines.base import LEVEL_BINS, Engine, StepResult
from parallel.mesh import Mesh
from pretrain.agreement import Agreement
from pretrain.config import RunConfig
from pretrain.device import peak_flops, peak_memory
from pretrain.feed import Feed, StepBatch
from pretrain.flops import training_flops_per_token
from pretrain.guards import Guard
from pretrain.hardware_flops import hardware_flops
from pretrain.health.health import Health
from pretrain.quarantine import Quarantine
from pretrain.saves import Saves
from runtime.errors import LacunaError


class Stop(Protocol):
    """True once this rank wants to stop; asked once a step."""

    def __bool__(self) -> bool:
        """Whether to stop."""
        ...


@dataclass(frozen=True)
class Hooks:
    """What the loop tells the outside: a line of metrics (every rank), when to save, each wait for a batch, and what it
    is doing.
    """

    metrics: Callable[[int, dict[str, Any]], None]
    saves: Saves
    waited: Callable[[int, float], None] = lambda step, seconds: None
    health: Health = field(default_factory=Health)


def train(
    config: RunConfig, engine: Engine, feed: Feed, span: range, guard: Guard, hooks: Hooks, stop: Stop
) -> tuple[int, bool]:
    """Take the steps of `span` (counted from 0). Returns how many steps the run has and whether a stop was asked for.

    Saves when `checkpoint` says that it is due, after a refused step then with the next accepted one, and at the end.
    Raises LacunaError if the guard refused too many steps.
    """
    clock, quarantine = _Clock(config, engine.mesh), Quarantine(engine.mesh, feed)
    done, saves, health, save_due = span.start, hooks.saves, hooks.health, False
    health.enter("data", done + 1)
    with Loader(feed.step, span.start, span.stop) as batches:
        for fetched in batches:
            health.enter("collective", done + 1)
            own, met = batches.wait_seconds, time.perf_counter()
            batch, agreed = quarantine.settle(done, fetched, bool(stop), saves.votes(), health.worked, own)
            waited = data_wait(own, agreed.waited, time.perf_counter() - met)
            health.enter("save", done + 1)
            saves.advance(agreed.saving)
            if agreed.stop:
                break
            health.note(agreed.worked)
            saves.make_way(done + 1)
            rate = learning_rate(config, done)
            with health.step(done + 1):
                result = _guarded_step(engine, batch, agreed, rate, guard)
            done += 1
            clock.tick(batches.wait_seconds)
            hooks.waited(done, waited)
            if done % config.train.log_every == 0 or done == span.stop or guard.exhausted:
                line = _metrics(config, done, agreed, result, rate, guard)
                speed = clock.metrics(saves.stalled_seconds)
                news = {**quarantine.metrics(), **speed, **saves.metrics(), **health.metrics()}
                hooks.metrics(done, {**line, **news})
            if guard.exhausted:
                saves.finish()
                raise LacunaError(_divergence(done, saves.saved, guard, result))
            health.enter("save", done)
            save_due = save_due or config.checkpoint.is_due(done)
            if save_due and done < span.stop and result.accepted:
                saves.begin(done, guard)
                save_due = False
            health.enter("data", done + 1)
    health.enter("save", done)
    saves.conclude(done, guard)
    return done, done < span.stop


def data_wait(own: float, longest: float, held: float) -> float:
    """Seconds that a rank has lost to data: its `own` wait for its batch, and of the time that the others then `held`
    it up what the `longest` wait of a rank explains.
    """
    return own + min(held, max(0.0, longest - own))


def learning_rate(config: RunConfig, step: int) -> float:
    """Rate of step `step` (counted from 0): the schedule at the tokens that the run has seen after it."""
    tokens = (step + 1) * config.train.tokens_per_step
    return config.optimizer.lr * config.optimizer.schedule.factor(tokens, config.train.total_tokens)


def _guarded_step(engine: Engine, batch: StepBatch, agreed: Agreement, rate: float, guard: Guard) -> StepResult:
    def accepts(loss_sum: float, grad_norm: float) -> bool:
        return guard.accepts(loss_sum / agreed.tokens, grad_norm)

    result = engine.train_step(batch.micro_batches, float(agreed.tokens), rate, accepts)
    guard.note(result.loss_sum / agreed.tokens, result.grad_norm, result.accepted)
    return result


def _divergence(step: int, saved: int, guard: Guard, result: StepResult) -> str:
    mend = (
        f"the last good checkpoint is step {saved}: "
        f"continue with --resume-from step-{saved:08d} and a lower optimizer.lr"
        if saved
        else "there is no checkpoint yet: start again with a lower optimizer.lr"
    )
    return (
        f"step {step}: {guard.refused_in_a_row} steps in a row were refused (last: loss sum {result.loss_sum:.6g}, "
        f"gradient norm {result.grad_norm:.6g}); {mend}"
    )


def _metrics(
    config: RunConfig, step: int, agreed: Agreement, result: StepResult, rate: float, guard: Guard
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tokens": step * config.train.tokens_per_step,
        "train/loss": result.loss_sum / agreed.tokens,
        "optim/grad_norm": result.grad_norm,
        "optim/lr": rate,
        "train/refused_steps": guard.refused,
        "data/batch_digest": agreed.digest,
    }
    if config.objective.kind == "masked":
        for level in range(LEVEL_BINS):
            if result.level_counts[level]:
                values[f"train/loss_at_level/{level}"] = result.level_sums[level] / result.level_counts[level]
    return values


class _Clock:
    """Speed since the last logged step; time that saves took from training does not count."""

    def __init__(self, config: RunConfig, mesh: Mesh) -> None:
        objective = config.objective
        work = (config.model, config.train.sequence_length, objective.causal, objective.head_rows)
        self._flops_per_token = training_flops_per_token(*work).total
        self._hardware_flops_per_token = hardware_flops(config).total
        peak = torch.tensor([peak_flops(mesh.device, config.train.precision)], dtype=torch.float64)
        self._peak = mesh.sum_all(peak).item()
        self._device = mesh.device
        self._tokens_per_step = config.train.tokens_per_step
        self._reset(0.0)

    def _reset(self, stalled: float) -> None:
        self._steps, self._wait, self._start, self._stalled = 0, 0.0, time.perf_counter(), stalled

    def tick(self, wait_seconds: float) -> None:
        self._steps += 1
        self._wait += wait_seconds

    def metrics(self, stalled: float) -> dict[str, float]:
        """Metrics of the steps since the last call; `stalled`: seconds that all saves of the attempt have taken."""
        seconds = time.perf_counter() - self._start - (stalled - self._stalled)
        rate = self._steps * self._tokens_per_step / seconds
        values = {
            "perf/tokens_per_second": rate,
            "perf/mfu": rate * self._flops_per_token / self._peak,
            "perf/hfu": rate * self._hardware_flops_per_token / self._peak,
            "perf/flops_per_second": rate * self._flops_per_token,
            "perf/peak_flops_per_second": self._peak,
            "perf/step_seconds": seconds / self._steps,
            "perf/memory_bytes": peak_memory(self._device),
            "data/wait_seconds": self._wait / self._steps,
        }
        self._reset(stalled)
        return values
