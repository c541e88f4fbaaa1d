"""Two families against each other: compute at equal loss, size at equal compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.scaling.isoflop import IsoFlopFit
from pretrain.scaling.parametric import FlopsPerToken, ParametricFit, ParametricLaw, six_n
from pretrain.scaling.power_law import Interval, PowerLaw, interval


@dataclass(frozen=True)
class Comparison:
    """`compute_ratio`: FLOPs of `family` over those of `baseline` at `loss`, nats per token. `size_ratio`: best sizes
    at `compute` FLOPs. `loss_ratio`: least losses at `compute`. `extrapolated`: those of `loss` and `compute` that not
    both families have reached, so that what is said there goes beyond the points of one or both."""

    family: str
    baseline: str
    loss: float
    compute: float
    compute_ratio: Interval
    size_ratio: Interval
    loss_ratio: Interval
    extrapolated: tuple[str, ...] = ()


def compare_isoflop(family: IsoFlopFit, baseline: IsoFlopFit) -> Comparison:
    """Compare two frontiers at the middle (in logarithms) of the losses that both reached, and of the budgets that
    both spent; where they do not overlap, of the gap."""
    losses, budgets = ([[getattr(c, name) for c in one.used] for one in (family, baseline)] for name in _MEETINGS)
    loss, compute = common_middle(*losses), common_middle(*budgets)
    return Comparison(
        family=family.family,
        baseline=baseline.family,
        loss=loss,
        compute=compute,
        compute_ratio=interval(
            family.loss.inverse(loss) / baseline.loss.inverse(loss),
            family.loss.draws_inverse(loss) / baseline.loss.draws_inverse(loss),
        ),
        size_ratio=_ratio_at(family.size, baseline.size, compute),
        loss_ratio=_ratio_at(family.loss, baseline.loss, compute),
        extrapolated=extrapolated(losses, budgets),
    )


_MEETINGS = ("loss", "budget")


def compare_parametric(
    family: ParametricFit,
    baseline: ParametricFit,
    loss: float,
    compute: float,
    per_token: tuple[FlopsPerToken, FlopsPerToken] = (six_n, six_n),
    beyond: tuple[str, ...] = (),
) -> Comparison:
    """The same by the parametric laws; `per_token` are the conventions of family and baseline, `beyond` what is
    `extrapolated`."""
    one, other = per_token

    def ratios(a: ParametricLaw, b: ParametricLaw) -> tuple[float, float, float]:
        return (
            a.compute_for(loss, one) / b.compute_for(loss, other),
            a.best_size(compute, one) / b.best_size(compute, other),
            a.best_loss(compute, one) / b.best_loss(compute, other),
        )

    drawn = np.array([ratios(a, b) for a, b in zip(family.draws, baseline.draws, strict=False)]).reshape(-1, 3)
    of_compute, of_size, of_loss = (
        interval(value, drawn[:, i]) for i, value in enumerate(ratios(family.law, baseline.law))
    )
    return Comparison(family.family, baseline.family, loss, compute, of_compute, of_size, of_loss, beyond)


def common_middle(family: Sequence[float], baseline: Sequence[float]) -> float:
    """Where to compare: the middle, in logarithms, of what both reached, or where they do not overlap, of the gap."""
    low, high = _overlap(family, baseline)
    return float(np.sqrt(low * high))


def extrapolated(losses: Sequence[Sequence[float]], computes: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """Which of loss and compute two families have no common range of; each argument is (family's, baseline's)."""
    named = (("loss", _overlap(*losses)), ("compute", _overlap(*computes)))
    return tuple(name for name, (low, high) in named if low > high)


def _overlap(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Ends of the common range; the first is above the second if there is none."""
    return max(min(one), min(other)), min(max(one), max(other))


def _ratio_at(one: PowerLaw, other: PowerLaw, x: float) -> Interval:
    return interval(one.at(x) / other.at(x), one.draws_at(x) / other.draws_at(x))
