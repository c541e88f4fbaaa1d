"""The configuration of a training run. What is written to the run directory is all that ranks read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from data_pipeline.config import DataConfig
from parallel.engines.settings import AdamWSettings
from parallel.layout import ParallelConfig, check_divides
from pretrain.flops import expected_mask_ratio
from pretrain.guards import GuardConfig
from pretrain.health.config import ProfileConfig, WatchdogConfig
from pretrain.layout_fit import misfit, uncompiled
from pretrain.schedule import Schedule, WarmupStableDecay
from pretrain.shape import ModelShape
from runtime.deadline import duration
from runtime.errors import UserError
from runtime.lease import LeaseConfig
from runtime.settings import Settings


class MaskedObjective(Settings):
    """Masked diffusion as LLaDA trains it (2502.09992, eq. 3).

    `epsilon`: least mask probability. `random_length`: share of samples that get a logical length ~ U{1..S}.
    `stratified`: one noise level per stratum of the global batch (lower variance, same expectation).
    """

    kind: Literal["masked"] = "masked"
    epsilon: float = Field(1e-3, gt=0, lt=1)
    random_length: float = Field(0.01, ge=0, le=1)
    stratified: bool = True

    @property
    def causal(self) -> bool:
        """Every position sees every other."""
        return False

    @property
    def head_rows(self) -> float:
        """Expected share of positions that need logits."""
        return expected_mask_ratio(self.epsilon)


class AutoregressiveObjective(Settings):
    """Next-token prediction; the first token is predicted from BOS, so every token of a window counts."""

    kind: Literal["autoregressive"] = "autoregressive"

    @property
    def causal(self) -> bool:
        """A position sees only earlier ones."""
        return True

    @property
    def head_rows(self) -> float:
        """Every position needs logits."""
        return 1.0


Objective = Annotated[MaskedObjective | AutoregressiveObjective, Field(discriminator="kind")]


class OptimizerConfig(AdamWSettings):
    """AdamW with peak learning rate `lr` and a schedule over tokens."""

    lr: float = Field(gt=0)
    schedule: Schedule = WarmupStableDecay()


class TrainConfig(Settings):
    """Sizes of a step and of the run. `global_batch` and `micro_batch` count sequences.

    `head_chunk`: rows that go through the head at a time; the last chunk is filled up, half a chunk on average.
    `compile`: torch.compile on each block of the model.
    `time_limit`: seconds (or a text such as `3h55m`) after which an attempt must have ended; `time_reserve` seconds of
    them are kept free beyond what a step and a save take.
    """

    steps: int = Field(gt=0)
    global_batch: int = Field(gt=0)
    micro_batch: int = Field(1, gt=0)
    sequence_length: int = Field(gt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = Field(0, ge=0, lt=1 << 63)
    log_every: int = Field(1, gt=0)
    head_chunk: int = Field(256, gt=0)
    compile: bool = False
    time_limit: Annotated[float, BeforeValidator(duration), Field(gt=0)] | None = None
    time_reserve: Annotated[float, BeforeValidator(duration), Field(ge=0)] = 60.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a global batch."""
        return self.global_batch * self.sequence_length

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.tokens_per_step


class CheckpointConfig(Settings):
    """Save every `every` steps (and at the end); keep the newest `keep`, and for ever those of `permanent_every` steps.

    `every` is also what a kill costs at most. `async`: training waits only while its state is copied to host memory,
    and a save is begun halfway, too: it takes steps to be published. `max_failures` failed saves in a row end the run.
    """

    every: int = Field(1000, gt=0)
    keep: int = Field(3, gt=0)
    permanent_every: int | None = Field(None, gt=0)
    in_background: bool = Field(False, alias="async")
    max_failures: int = Field(3, gt=0)

    @property
    def moments(self) -> set[int]:
        """Steps within an interval after which a save is due; 0 is the interval's end."""
        return {0, self.every // 2} if self.in_background else {0}

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` is to be saved."""
        return step % self.every in self.moments

    def written(self, steps: int) -> int:
        """Checkpoints that a run of `steps` writes, the last one included."""
        whole, rest = divmod(steps, self.every)
        return whole * len(self.moments) + (rest > 0) + sum(0 < moment < rest for moment in self.moments)


class TrackingConfig(Settings):
    """Where the run is shown: an MLflow tracking URI (default: sqlite beside the run directory)."""

    uri: str | None = None
    experiment: str = "lacuna"
    enabled: bool = True


class RunConfig(Settings):
    """A whole recipe."""

    name: str = Field(min_length=1)
    objective: Objective = MaskedObjective()
    model: ModelShape
    optimizer: OptimizerConfig
    train: TrainConfig
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    guard: GuardConfig = GuardConfig()
    lease: LeaseConfig = LeaseConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    profile: ProfileConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        layout, train = self.parallel, self.train
        if why := misfit(self):
            raise ValueError(why)
        try:
            check_divides("train.global_batch", train.global_batch, "train.micro_batch", train.micro_batch)
        except UserError as error:
            raise ValueError(str(error)) from None
        if self.data.document_mask and layout.context_exchange == "ring":
            raise ValueError(
                "data.document_mask=true is not offered with parallel.context_exchange=ring: "
                "set parallel.context_exchange=gather or data.document_mask=false"
            )
        if train.compile and (why := uncompiled(layout)):
            raise ValueError(why)
        return self

    def micro_batches(self, world: int) -> int:
        """Micro-batches per step and data-parallel rank. Raises UserError if the batch does not divide."""
        data = self.parallel.data_size(world)
        unit = data * self.train.micro_batch
        if self.parallel.virtual_pipeline > 1:
            unit *= self.parallel.pipeline  # interleaved schedules take micro-batches a pipeline's width at a time
        if self.train.global_batch % unit:
            parts = f"{data} data-parallel ranks × train.micro_batch={self.train.micro_batch}"
            if self.parallel.virtual_pipeline > 1:
                parts += f" × parallel.pipeline={self.parallel.pipeline} (interleaved)"
            nearest = max(1, round(self.train.global_batch / unit)) * unit
            raise UserError(
                f"train.global_batch={self.train.global_batch} is not a multiple of {parts}: "
                f"set train.global_batch={nearest}"
            )
        return self.train.global_batch // (data * self.train.micro_batch)
