"""The layout of a run: how many ways each axis is cut, and what no engine can do (DESIGN idea: refuse early)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from parallel.refusals import mends, offer, refusal
from runtime.errors import UserError
from runtime.settings import Settings


class ParallelConfig(Settings):
    """Axes of the layout. The data-parallel size is what remains of the world.

    `zero`: 0 replicates the optimizer; 1, 2, 3 shard its state, also gradients, also weights over data-parallel
    ranks (ZeRO stages). `sequence`: activations between tensor-parallel layers are cut along the sequence.
    `context_exchange`: keys and values are gathered over context ranks, or travel round them (`ring`).
    `recompute`: which activations are computed again in the backward pass instead of kept (`selective`: inside
    attention). `overlap`: reduce gradients and gather parameters while computing. `offload`: keep optimizer state,
    or parameters too, in host memory.
    """

    engine: Literal["megatron", "deepspeed"] = "megatron"
    tensor: int = Field(1, ge=1)
    pipeline: int = Field(1, ge=1)
    virtual_pipeline: int = Field(1, ge=1)
    context: int = Field(1, ge=1)
    context_exchange: Literal["gather", "ring"] = "gather"
    sequence: bool = False
    zero: int = Field(1, ge=0, le=3)
    recompute: Literal["none", "selective", "full"] = "none"
    overlap: bool = False
    offload: Literal["none", "optimizer", "parameters"] = "none"

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if why := refusal(self):
            raise ValueError(f"{why}: {offer(mends(self))}")
        return self

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def chunks(self) -> int:
        """Pieces of the model along its depth."""
        return self.pipeline * self.virtual_pipeline

    def data_size(self, world: int) -> int:
        """Data-parallel size in a world of `world` ranks. Raises UserError if the layout does not divide it."""
        if world % self.model_size:
            axes = " × ".join(
                f"parallel.{axis}={getattr(self, axis)}"
                for axis in ("tensor", "pipeline", "context")
                if getattr(self, axis) > 1
            )
            raise UserError(
                f"{axes} does not divide the world of {world} processes: "
                f"start a multiple of {self.model_size} processes"
            )
        return world // self.model_size

    def describe(self, world: int) -> str:
        """A short name such as `megatron tp2 dp4 zero1`."""
        axes = [
            ("tp", self.tensor), ("pp", self.pipeline), ("v", self.virtual_pipeline),
            ("cp", self.context), ("dp", self.data_size(world)),
        ]  # fmt: skip
        cut = [f"{name}{size}" for name, size in axes if size > 1] or ["single"]
        extra = ["sp"] * self.sequence + ["ring"] * (self.context_exchange == "ring")
        return " ".join([self.engine, *cut, *extra, f"zero{self.zero}"])


def check_divides(key: str, value: int, by_key: str, by: int) -> None:
    """Raise UserError naming both keys and the nearest value if `by` does not divide `value`."""
    if value % by:
        nearest = max(n for n in range(1, by + 1) if value % n == 0)
        raise UserError(f"{by_key}={by} does not divide {key}={value}: set {by_key}={nearest}")


def padded_vocabulary(vocabulary: int, ranks: int) -> int:
    """The vocabulary rounded up to a multiple of the tensor ranks."""
    return -(-vocabulary // ranks) * ranks


def chunk_rows(most: int, positions: int) -> int:
    """Rows of a chunk of the head: at most `most`, and such that chunks of all `positions` are as equal as can be."""
    return -(-positions // -(-positions // most))
