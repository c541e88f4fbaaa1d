"""What a run costs: FLOPs by every convention, days and GPU-hours at an assumed MFU, bytes of checkpoints."""

from __future__ import annotations

from typing import Any

from pretrain.config import RunConfig
from pretrain.flop_conventions import CONVENTIONS, Training
from pretrain.flops import training_flops_per_token
from pretrain.hardware_flops import hardware_flops
from pretrain.planning.estimate import Device
from runtime.errors import UserError

_SMALLEST_PRINTED = 50_000_000  # below it, hundredths of a billion say nothing
_HARDWARE = "all that a step of this recipe computes: hidden pairs of attention and recomputation too; HFU uses it"
_CHECKPOINT_BYTES = 12  # float32 weight and two moments


def training_of(config: RunConfig) -> Training:
    """What the FLOPs of the run's tokens depend on."""
    objective = config.objective
    return Training(config.model, config.train.sequence_length, objective.causal, objective.head_rows)


def flops(config: RunConfig) -> dict[str, Any]:
    """FLOPs per token and in all by convention, the components of `exact`, and what each convention counts."""
    run, tokens = training_of(config), config.train.total_tokens
    small = run.shape.parameters().non_embedding_matrices < _SMALLEST_PRINTED
    rules = {name: rule for name, rule in CONVENTIONS.items() if not (small and name == "6nd_printed")}
    per_token = {name: rule.per_token(run) for name, rule in rules.items()}
    per_token["hardware"] = hardware_flops(config).total
    exact = training_flops_per_token(run.shape, run.sequence_length, run.causal)
    return {
        **{f"per_token_{name}": value for name, value in per_token.items()},
        **{f"total_{name}": value * tokens for name, value in per_token.items()},
        "components": {"projections": exact.projections, "attention": exact.attention, "head": exact.head},
        "conventions": {**{name: rule.counts for name, rule in rules.items()}, "hardware": _HARDWARE},
    }


def duration(config: RunConfig, world: int, device: Device, mfu: float) -> dict[str, float]:
    """Time of the run if every rank reaches `mfu` of the device's bf16 peak (computed FLOPs).

    Raises UserError for an MFU outside 0 … 1.
    """
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu} is no share of the peak: use a number above 0 and up to 1, for example 0.4")
    per_token = CONVENTIONS["computed"].per_token(training_of(config))
    per_step = per_token * config.train.tokens_per_step / (mfu * device.flops * world)
    seconds = per_step * config.train.steps
    return {
        "mfu": mfu,
        "step_seconds": per_step,
        "days": seconds / 86400,
        "gpu_hours": seconds * world / 3600,
        "tokens_per_second": config.train.tokens_per_step / per_step,
    }


def checkpoints(config: RunConfig, step_seconds: float) -> dict[str, float]:
    """Bytes of one checkpoint and of all that are kept, and how often one is written at `step_seconds` a step."""
    every, steps = config.checkpoint.every, config.train.steps
    written = config.checkpoint.written(steps)
    one = config.model.parameters().total * _CHECKPOINT_BYTES
    return {
        "bytes": one,
        "every_steps": every,
        "every_tokens": every * config.train.tokens_per_step,
        "every_hours": every * step_seconds / 3600,
        "written": written,
        "kept_bytes": one * min(written, config.checkpoint.keep),
    }
