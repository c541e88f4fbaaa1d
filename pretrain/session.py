"""A run's state on disk around the loop: resume, metrics, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

from data_pipeline.manifest import TokenizerInfo
from parallel.checkpoint.manifest import OtherFormat
from parallel.checkpoint.store import Progress, load_checkpoint, sweep
from parallel.engines.base import Engine
from pretrain.config import RunConfig
from pretrain.goodput import Ledger, attempt_began, note_accounts, open_accounts
from pretrain.guards import Guard
from pretrain.health.health import Health
from pretrain.loop import Hooks
from pretrain.objectives.autoregressive import AutoregressiveSamples
from pretrain.objectives.base import SampleObjective
from pretrain.objectives.documents import DocumentSamples
from pretrain.objectives.masked import MaskedSamples
from pretrain.objectives.noise import NoiseSource
from pretrain.objectives.padded import PaddedSamples
from pretrain.resume import check_continues, way_out
from pretrain.run_directory import RunDirectory
from pretrain.saves import Saves
from pretrain.tracking.spool import Spool
from pretrain.tracking.system import SystemMonitor
from runtime.deadline import Deadline
from runtime.errors import LacunaError, UserError
from runtime.files import digest_bytes
from runtime.lease import Fence
from runtime.logs import log

T = TypeVar("T")
_LOOK_EVERY = 1.0
"""Seconds between looks at the lease while lines are written. A later attempt replaces the file of lines, so what its
orphan writes meanwhile goes nowhere."""


class DataIdentity(Protocol):
    """The data of a run as far as a checkpoint must know it."""

    def digest_before(self, samples: int) -> str:
        """Identifies all that decides the first `samples` samples."""
        ...


def build_objective(config: RunConfig, tokenizer: TokenizerInfo) -> SampleObjective:
    """The sample side of the configured objective. Raises UserError if the vocabulary does not fit the model."""
    if tokenizer.vocabulary > config.model.vocabulary:
        raise UserError(
            f"model.vocabulary={config.model.vocabulary} is less than the tokenizer's {tokenizer.vocabulary} ids: "
            f"set model.vocabulary={tokenizer.vocabulary} or build the data with a smaller one"
        )
    data, samples = config.data, _samples(config, tokenizer)
    if data.packing != "stream" or data.on_corrupt == "quarantine":
        samples = PaddedSamples(samples, config.train.sequence_length, tokenizer.pad_id)
    if data.document_mask:
        bos_id = tokenizer.bos_id if config.objective.causal else None
        samples = DocumentSamples(samples, tokenizer.eos_id, bos_id)
    return samples


def _samples(config: RunConfig, tokenizer: TokenizerInfo) -> SampleObjective:
    objective, train = config.objective, config.train
    if objective.kind == "autoregressive":
        return AutoregressiveSamples(tokenizer.bos_id)
    noise = NoiseSource(
        seed=train.seed,
        sequence_length=train.sequence_length,
        global_batch=train.global_batch,
        epsilon=objective.epsilon,
        random_length=objective.random_length,
        stratified=objective.stratified,
    )
    return MaskedSamples(noise, tokenizer.mask_id, tokenizer.pad_id)


def run_identity(config: RunConfig, data_digest: str) -> dict[str, Any]:
    """What a run cannot change halfway and stay the same run: model, objective, data and its order."""
    model = {f"model.{key}": value for key, value in config.model.model_dump(mode="json").items()}
    objective = {f"objective.{key}": value for key, value in config.objective.model_dump(mode="json").items()}
    order = {f"train.{key}": getattr(config.train, key) for key in ("seed", "global_batch", "sequence_length")}
    return {**model, **objective, **order, "data": data_digest}


class Session:
    """Resumes, logs and saves one attempt of a run on one rank."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        engine: Engine,
        data: DataIdentity,
        attempt: int,
        fence: Fence,
        deadline: Deadline,
    ) -> None:
        self._config, self._directory, self._engine = config, directory, engine
        self._data = data
        self._attempt, self._fence, self._deadline = attempt, fence, deadline
        self._layout = config.parallel.describe(engine.mesh.world)
        self._spool: Spool | None = None
        self._looked = -math.inf
        self._ledger: Ledger | None = None
        self._system: SystemMonitor | None = None
        self._saves: Saves | None = None

    def resume(self) -> tuple[int, Guard]:
        """Load the newest checkpoint, if there is one. Returns the step to continue from (0: a new run) and the guard.

        Raises UserError if it is damaged (naming the newest older valid one) or belongs to another run.
        """
        newest = self._on_first(lambda: check_continues(self._config, self._directory, self._identity_at))
        if newest is None:
            return 0, Guard(self._config.guard)
        try:
            step = int(newest.name.removeprefix("step-"))
            manifest = load_checkpoint(newest, self._engine, self._identity_at(step))
        except OtherFormat:
            raise
        except UserError as error:
            raise UserError(f"{error}{self._on_first(lambda: way_out(newest))}") from None
        log.info("continue from %s with %s", newest, self._layout)
        return manifest.step, Guard(self._config.guard, manifest.loop)

    def _identity_at(self, step: int) -> dict[str, Any]:
        """What the run is, as far as its first `step` steps tell."""
        return run_identity(self._config, self._data.digest_before(step * self._config.train.global_batch))

    def _on_first(self, action: Callable[[], T]) -> T:
        """What `action` returns or raises (a UserError) on rank 0, on every rank: only one reads the files."""
        mesh = self._engine.mesh
        failure, result = None, None
        if mesh.rank == 0:
            try:
                result = action()
            except UserError as error:
                failure = error
        failure, result = mesh.gather((failure, result))[0]
        if failure is not None:
            raise failure
        return cast(T, result)

    @contextmanager
    def opened(self, start: int) -> Iterator[None]:
        """Keep the metrics spool open on rank 0; lines after `start` belong to lost work and are dropped.

        What killed attempts have left among the checkpoints is removed. Ends with the writer of checkpoints ended too.
        """
        self._saves = Saves(
            self._config.checkpoint,
            self._directory.checkpoints,
            self._engine,
            self._progress,
            start,
            self._fence,
            self._deadline.note_save,
        )
        if self._engine.mesh.rank == 0:
            self._fence.check()
            sweep(self._directory.checkpoints)
            began = attempt_began(self._directory, self._attempt)
            accounts = open_accounts(self._directory, start, began, time.time())
            note_accounts(self._directory, start, accounts)
            self._spool = Spool(self._directory.metrics, resume_step=start)
            self._ledger, self._system = Ledger(accounts), SystemMonitor(self._directory.root)
        try:
            yield
        finally:
            self._saves.close()
            if self._spool is not None:
                self._spool.close()
                self._write_accounts(max(start, self._spool.last_step))
                self._spool = None

    def _waited(self, step: int, seconds: float) -> None:
        """The batch of `step`, which is done, was waited for."""
        assert self._ledger is not None
        self._ledger.wait(seconds)
        if self._ledger.must_tell:
            self._write_accounts(step)

    def _write_accounts(self, step: int) -> None:
        assert self._ledger is not None
        assert self._saves is not None
        self._ledger.told()
        with suppress(OSError, LacunaError):  # a full disk, or a later attempt's run: why it ends is said elsewhere
            self._fence.check()
            note_accounts(self._directory, step, self._ledger.accounts(self._saves.stalled_seconds))

    def log_metrics(self, step: int, values: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl` (rank 0).

        Raises LeaseLost, at the latest a second after it was lost, if the run is no longer this attempt's.
        """
        if self._spool is not None and self._ledger and self._system and self._saves:
            self._look_after_lease()
            accounts = self._ledger.accounts(self._saves.stalled_seconds)
            where: dict[str, int | str] = {"run/layout": self._layout, "run/attempt": self._attempt}
            self._spool.write(step, {**values, **accounts.metrics(), **self._system.sample(), **where})
            self._ledger.told()

    def _look_after_lease(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY:
            self._fence.check()
            self._looked = now

    def hooks(self, report: Callable[[int, dict[str, Any]], None], health: Health) -> Hooks:
        """What the loop calls."""
        assert self._saves is not None, "the session is not opened"
        if self._ledger is None:
            return Hooks(report, self._saves, health=health)
        return Hooks(report, self._saves, self._waited, health)

    def _progress(self, step: int, guard: Guard) -> Progress:
        """What a checkpoint after `step` must say of the run."""
        train = self._config.train
        return Progress(
            step=step,
            updates=step - guard.refused,
            samples=step * train.global_batch,
            tokens=step * train.tokens_per_step,
            identity=self._identity_at(step),
            provenance={
                "layout": self._layout,
                "precision": train.precision,
                "config_digest": digest_bytes(self._config.model_dump_json().encode()),
                "attempt": self._attempt,
            },
            loop=guard.state(),
        )
