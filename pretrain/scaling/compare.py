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
    at `compute` FLOPs. `loss_ratio`: least losses at `compute`."""

    family: str
    baseline: str
    loss: float
    compute: float
    compute_ratio: Interval
    size_ratio: Interval
    loss_ratio: Interval


def compare_isoflop(family: IsoFlopFit, baseline: IsoFlopFit) -> Comparison:
    """Compare two frontiers, at the middle (in logarithms) of the losses that both reached, else of all losses, and
    at the middle of the budgets."""
    loss = common_loss([curve.loss for curve in family.used], [curve.loss for curve in baseline.used])
    compute = middle_compute(family, baseline)
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
    )


def compare_parametric(
    family: ParametricFit,
    baseline: ParametricFit,
    loss: float,
    compute: float,
    per_token: tuple[FlopsPerToken, FlopsPerToken] = (six_n, six_n),
) -> Comparison:
    """The same by the parametric laws; `per_token` are the conventions of family and baseline."""
    one, other = per_token

    def ratios(a: ParametricLaw, b: ParametricLaw) -> tuple[float, float, float]:
        return (
            a.compute_for(loss, one) / b.compute_for(loss, other),
            a.best_size(compute, one) / b.best_size(compute, other),
            a.best_loss(compute, one) / b.best_loss(compute, other),
        )

    drawn = np.array([ratios(a, b) for a, b in zip(family.draws, baseline.draws, strict=False)]).reshape(-1, 3)
    found = [interval(value, drawn[:, i]) for i, value in enumerate(ratios(family.law, baseline.law))]
    return Comparison(family.family, baseline.family, loss, compute, *found)


def common_loss(family: Sequence[float], baseline: Sequence[float]) -> float:
    """A loss to compare at: the middle of what both reached, or where they do not overlap, of the gap."""
    low, high = max(min(family), min(baseline)), min(max(family), max(baseline))
    return float(np.sqrt(low * high))


def middle_compute(family: IsoFlopFit, baseline: IsoFlopFit) -> float:
    """The geometric mean of the budgets of both."""
    return float(np.exp(np.log([*family.budgets, *baseline.budgets]).mean()))


def _ratio_at(one: PowerLaw, other: PowerLaw, x: float) -> Interval:
    return interval(one.at(x) / other.at(x), one.draws_at(x) / other.draws_at(x))
