"""What the training loop asks of an engine, whatever runs beneath."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from parallel.logical import Block, Extent, Rectangle, boxes_of_range, logical_parameters
from parallel.mesh import Mesh

KINDS = ("weight", "exp_avg", "exp_avg_sq")
LEVEL_BINS = 10
STATISTICS = 1 + 2 * LEVEL_BINS


@dataclass(frozen=True)
class StepResult:
    """One optimizer step over the whole global batch, the same numbers on every rank.

    `loss_sum`: weighted sum in nats, not yet divided. `level_sums`, `level_counts`: unweighted cross-entropy
    (nats) and rows by noise-level bin. `grad_norm`: norm of the mean gradient before clipping. `accepted`: whether
    the optimizer took the step; else weights and moments are what they were, to the bit.
    """

    loss_sum: float
    level_sums: tuple[float, ...]
    level_counts: tuple[float, ...]
    grad_norm: float
    accepted: bool


# judges (loss sum, gradient norm), the same numbers and the same verdict on every rank
Verdict = Callable[[float, float], bool]


@dataclass(frozen=True)
class Fragment:
    """A flat piece of one parameter's float32 state that this rank owns.

    Elements [start, start + values.numel()) of the row-major local parameter of shape `shape`; `values` is a
    live one-dimensional view of the engine's own memory. `kind` is one of `KINDS`. `writes` says whether this
    rank writes it to a checkpoint: exactly one rank does for each element.
    """

    kind: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]
    start: int
    values: torch.Tensor
    writes: bool

    def pieces(self) -> Iterator[tuple[str, Extent, Rectangle, torch.Tensor]]:
        """Cut into (logical name, its global shape, box of it, live view of the values of that box)."""
        width = self.shape[-1] if len(self.shape) == 2 else 1
        for box in boxes_of_range(self.shape, self.start, self.start + self.values.numel()):
            first = (box.start[0] * width + box.start[1] if len(box.start) == 2 else box.start[0]) - self.start
            view = self.values[first : first + box.numel].view(box.size)
            zero = (0,) * len(box.start)
            for block in self.blocks:
                common = box.intersect(block.box)
                if common is not None:
                    where = common.moved(block.box.start, block.offset)
                    yield block.name, block.shape, where, view[common.moved(box.start, zero).slices]


class Engine(Protocol):
    """A model under a layout with its optimizer."""

    mesh: Mesh

    def train_step(
        self, micro_batches: Sequence[Any], denominator: float, learning_rate: float, accepts: Verdict
    ) -> StepResult:
        """Forward, backward and, if `accepts` says so, one clipped optimizer step.

        `micro_batches` are this rank's; the model is called with each and returns (loss sum, level statistics).
        The gradient is that of the global loss sum over `denominator`.
        """
        ...

    def fragments(self) -> Iterator[Fragment]:
        """This rank's pieces of weights (float32 masters) and Adam moments."""
        ...

    def finish_load(self, updates: int) -> None:
        """Call after `fragments()` were overwritten: refreshes model weights; Adam has made `updates` updates."""
        ...

    def logical_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and global shapes of all logical tensors this rank holds a part of."""
        ...


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW parameter groups: matrices decay, vectors (norm weights) do not."""
    # by logical shape: a parameter that ZeRO-3 has cut has none of its own
    dims = [(parameter, len(blocks[0].shape)) for parameter, blocks in logical_parameters(model)]
    matrices = [parameter for parameter, dim in dims if dim > 1]
    vectors = [parameter for parameter, dim in dims if dim == 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def is_sharded(parameter: torch.nn.Parameter) -> bool:
    """Whether tensor ranks hold different parts of `parameter` (else each holds all of it)."""
    return bool(getattr(parameter, "tensor_model_parallel", False))


def sum_statistics(mesh: Mesh, stats: torch.Tensor) -> list[float]:
    """Sum local statistics [loss, level sums…, level counts…] (float64, host) over the ranks that have a loss."""
    return mesh.sum_all(stats if mesh.speaks_for_loss else torch.zeros_like(stats)).tolist()


def step_result(total: Sequence[float], grad_norm: float, accepted: bool) -> StepResult:
    """Name the summed statistics."""
    bins = LEVEL_BINS
    return StepResult(total[0], tuple(total[1 : 1 + bins]), tuple(total[1 + bins :]), grad_norm, accepted)


def ensure_adam_state(optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor] | None = None) -> None:
    """Create AdamW's lazy state as zeros, so that a checkpoint can be saved or loaded before the first step.

    `tensors` are what the optimizer updates, by default those of its parameter groups.
    """
    if tensors is None:
        tensors = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in tensors:
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)


def set_adam_steps(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Set AdamW's step count of every parameter (bias correction depends on it)."""
    for state in optimizer.state.values():
        state["step"] = torch.tensor(float(steps))
