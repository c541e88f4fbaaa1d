"""What failures cost a run: the best time between checkpoints, and the goodput to expect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pretrain.config import RunConfig
from runtime.errors import UserError

_WRITE_RATE = 0.25e9  # bytes/s and rank to a shared file system: an assumption
_COPY_RATE = 10e9  # bytes/s and rank from device to host memory: an assumption


@dataclass(frozen=True)
class Interruptions:
    """How often a run is interrupted and what that takes.

    `gpu_hours` of all ranks together between two interruptions; the default is about what the Llama 3 report had: 419
    unexpected ones in 54 days on 16,384 GPUs (arXiv 2407.21783, section 3.3.4). `restart_seconds`: from an
    interruption to the next step, an assumption. `save_seconds`: what a checkpoint keeps training waiting; None: its
    bytes at assumed rates. Raises UserError for figures that are not above 0.
    """

    gpu_hours: float = 50_000.0
    restart_seconds: float = 600.0
    save_seconds: float | None = None

    def __post_init__(self) -> None:
        for option, value in (
            ("--gpu-hours-per-interruption", self.gpu_hours),
            ("--restart-seconds", self.restart_seconds),
            ("--save-seconds", self.save_seconds),
        ):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{option} {value} is no such figure: use a number above 0")

    def mean_seconds(self, world: int) -> float:
        """Mean time between interruptions of `world` ranks."""
        return self.gpu_hours * 3600 / world

    def expected(self, world: int, seconds: float) -> float:
        """Interruptions to expect in `seconds` of wall time."""
        return seconds / self.mean_seconds(world)


def best_interval(save_seconds: float, mean_seconds: float) -> float:
    """Seconds of training between saves that cost least: √(2·C·MTBF) (Young, CACM 17(9), 1974)."""
    return math.sqrt(2 * save_seconds * mean_seconds)


def expected_goodput(interval: float, save_seconds: float, restart_seconds: float, mean_seconds: float) -> float:
    """Share of the wall time that goes into steps that stay, with a save after every `interval` seconds of training.

    Interruptions come at any time, exponentially: τ / (M·e^(R/M)·(e^((τ+C)/M) - 1)) (Daly, FGCS 22(3), 2006).
    """
    exponent = (interval + save_seconds) / mean_seconds
    if restart_seconds / mean_seconds + exponent > math.log(1e300):
        return 0.0
    return interval / (mean_seconds * math.exp(restart_seconds / mean_seconds) * math.expm1(exponent))


def interruption_plan(
    config: RunConfig, world: int, checkpoint_bytes: float, step_seconds: float, found: Interruptions
) -> dict[str, Any]:
    """Interval and goodput for a run on `world` ranks, as JSON-ready values; see docs/contract.md."""
    rate = _COPY_RATE if config.checkpoint.in_background else _WRITE_RATE
    save = checkpoint_bytes / (world * rate) if found.save_seconds is None else found.save_seconds
    mean = found.mean_seconds(world)
    saves = len(config.checkpoint.moments)  # in an interval
    steps = min(config.train.steps, max(1, round(saves * best_interval(save, mean) / step_seconds)))
    every = min(config.train.steps, config.checkpoint.every)

    def goodput(interval: int) -> float:
        return expected_goodput(interval / saves * step_seconds, save, found.restart_seconds, mean)

    share = goodput(every)
    wall = config.train.steps * step_seconds / share if share else math.inf
    return {
        "gpu_hours": found.gpu_hours,
        "mean_hours": mean / 3600,
        "expected": found.expected(world, wall),
        "save_seconds": save,
        "restart_seconds": found.restart_seconds,
        "goodput": share,
        "best_every_steps": steps,
        "best_every_seconds": steps * step_seconds,
        "best_goodput": goodput(steps),
    }
