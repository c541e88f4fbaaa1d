"""The layout of a run: how many ways each axis is cut, and what no engine can do (DESIGN idea: refuse early)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from runtime.errors import UserError
from runtime.settings import Settings


class ParallelConfig(Settings):
    """Axes of the layout. The data-parallel size is what remains of the world.

    `zero`: 0 replicates the optimizer, 1 shards its state over data-parallel ranks (ZeRO stage 1).
    `recompute`: which activations are computed again in the backward pass instead of kept.
    """

    engine: Literal["megatron", "deepspeed"] = "megatron"
    tensor: int = Field(1, ge=1)
    pipeline: int = Field(1, ge=1)
    virtual_pipeline: int = Field(1, ge=1)
    context: int = Field(1, ge=1)
    sequence: bool = False
    zero: int = Field(1, ge=0, le=3)
    recompute: Literal["none", "selective", "full"] = "none"

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        for axis in ("pipeline", "virtual_pipeline", "context"):
            if getattr(self, axis) > 1:
                raise ValueError(
                    f"parallel.{axis}={getattr(self, axis)} is not offered by this version: set parallel.{axis}=1"
                )
        if self.zero > 1:
            raise ValueError(f"parallel.zero={self.zero} is not offered by this version: set parallel.zero=1")
        if self.engine == "deepspeed" and self.zero == 0:
            raise ValueError(
                "parallel.zero=0 with parallel.engine=deepspeed reports no gradient norm: set parallel.zero=1"
            )
        if self.sequence and self.tensor == 1:
            raise ValueError(
                "parallel.sequence=true needs tensor ranks: set parallel.tensor above 1 or parallel.sequence=false"
            )
        return self

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    def data_size(self, world: int) -> int:
        """Data-parallel size in a world of `world` ranks. Raises UserError if the layout does not divide it."""
        if world % self.model_size:
            fit = max(n for n in range(1, self.tensor + 1) if self.tensor % n == 0 and world % n == 0)
            raise UserError(
                f"parallel.tensor={self.tensor} does not divide the world of {world} processes: "
                f"set parallel.tensor={fit} or start a multiple of {self.model_size} processes"
            )
        return world // self.model_size

    def describe(self, world: int) -> str:
        """A short name such as `megatron tp2 dp4 zero1`."""
        axes = [("tp", self.tensor), ("pp", self.pipeline), ("cp", self.context), ("dp", self.data_size(world))]
        cut = [f"{name}{size}" for name, size in axes if size > 1] or ["single"]
        extra = ["sp"] if self.sequence else []
        return " ".join([self.engine, *cut, *extra, f"zero{self.zero}"])


def check_divides(key: str, value: int, by_key: str, by: int) -> None:
    """Raise UserError naming both keys and the nearest value if `by` does not divide `value`."""
    if value % by:
        nearest = max(n for n in range(1, by + 1) if value % n == 0)
        raise UserError(f"{by_key}={by} does not divide {key}={value}: set {by_key}={nearest}")


def padded_vocabulary(vocabulary: int, ranks: int) -> int:
    """The vocabulary rounded up to a multiple of the tensor ranks."""
    return -(-vocabulary // ranks) * ranks
