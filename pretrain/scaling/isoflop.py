"""IsoFLOP fits: a parabola of loss against log size at each budget, power laws through their lowest points.

The second approach of Hoffmann et al. (arXiv 2203.15556), as SMDM (2410.18514) and the ETH study (2512.10858) use it.
The loss law has no irreducible term. A parabola is only nearly right: see docs/scaling/method.md for its bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.scaling.points import Measured, by_budget
from pretrain.scaling.power_law import Array, PowerLaw, fit_power_law
from runtime.errors import UserError

_FEWEST_SIZES = 3
_BEYOND = np.log(4.0)  # how far outside the sizes a draw's optimum may lie


@dataclass(frozen=True)
class Curve:
    """The parabola of one budget: loss = coefficients · (x², x, 1), x = log N minus `centre`; and its lowest point.

    `inside`: whether the lowest point lies between the sizes tried.
    """

    budget: float
    sizes: Array
    losses: Array
    centre: float
    coefficients: Array
    parameters: float
    tokens: float
    loss: float
    inside: bool


@dataclass(frozen=True)
class IsoFlopFit:
    """Power laws of the best size, data and loss in compute, the parabolas behind them, and what was left out."""

    family: str
    curves: list[Curve]
    size: PowerLaw
    data: PowerLaw
    loss: PowerLaw
    left_out: list[str]

    @property
    def used(self) -> list[Curve]:
        """Curves whose optimum the laws go through."""
        return [curve for curve in self.curves if curve.inside]

    @property
    def budgets(self) -> tuple[float, float]:
        """Smallest and largest budget used."""
        return self.used[0].budget, self.used[-1].budget


def fit_isoflop(points: Sequence[Measured], draws: int = 1000, seed: int = 0) -> IsoFlopFit:
    """Fit the points of one family. Intervals by parametric bootstrap: see `_noisy_losses`.

    Raises UserError if fewer than two budgets have three sizes around an optimum.
    """
    family = points[0].family
    groups, left_out = _groups(points)
    curves = [_curve(group) for group in groups]
    for curve in curves:
        if not curve.inside:
            side = "larger" if curve.parameters > curve.sizes[-1] else "smaller"
            reason = f"its optimum is not between the sizes tried: add {side} ones"
            if curve.coefficients[0] <= 0:
                reason = "its losses bend the wrong way: they are too noisy, or the sizes too near each other"
            left_out.append(f"budget {curve.budget:.3g}: {reason}")
    if sum(curve.inside for curve in curves) < 2:
        why = "; ".join(left_out) or "there is one budget only"
        raise UserError(f"{family}: a law needs optima at two budgets or more ({why})")
    vertices = _drawn_optima(groups, curves, draws, seed)
    inside = np.array([curve.inside for curve in curves])
    compute = np.array([curve.budget for curve in curves])[inside]

    def law(name: str, drawn: Array) -> PowerLaw:
        return fit_power_law(compute, np.array([getattr(c, name) for c in curves])[inside], drawn[:, inside])

    size, data, loss = (law(n, d) for n, d in zip(("parameters", "tokens", "loss"), vertices, strict=True))
    return IsoFlopFit(family, curves, size, data, loss, left_out)


def _groups(points: Sequence[Measured]) -> tuple[list[list[Measured]], list[str]]:
    groups, left_out = [], []
    planned = [point for point in points if point.budget is not None]
    for group in by_budget(planned or points):
        if len({point.parameters for point in group}) < _FEWEST_SIZES:
            left_out.append(f"budget {group[0].budget or group[0].flops:.3g}: fewer than {_FEWEST_SIZES} sizes")
        else:
            groups.append(group)
    return groups, left_out


def _curve(group: Sequence[Measured]) -> Curve:
    sizes, losses = _column(group, "parameters"), _column(group, "loss")
    x = np.log(sizes)
    centre = float(x.mean())
    coefficients = np.polyfit(x - centre, losses, 2)
    optimum, loss = _lowest(coefficients[None])
    low, high = x[0] - centre, x[-1] - centre
    inside = bool(coefficients[0] > 0 and low <= optimum[0] <= high)
    place = float(np.clip(optimum[0], low - _BEYOND, high + _BEYOND)) if np.isfinite(optimum[0]) else 0.0
    return Curve(
        budget=float(np.exp(np.log(_column(group, "flops")).mean())),
        sizes=sizes,
        losses=losses,
        centre=centre,
        coefficients=coefficients,
        parameters=float(np.exp(place + centre)),
        tokens=float(np.exp(np.polyval(_tokens_by_size(group, centre), place))),
        loss=float(loss[0]),
        inside=inside,
    )


def _lowest(coefficients: Array) -> tuple[Array, Array]:
    """Places and values of the lowest points of parabolas [R, 3]; NaN where one opens downwards."""
    a, b, c = coefficients.T
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.where(a > 0, -b / (2 * a), np.nan)
    return place, c + b * place / 2


def _tokens_by_size(group: Sequence[Measured], centre: float) -> Array:
    """log D as a parabola in log N: a straight line of slope −1 by 6ND, and nearly one in any convention."""
    x = np.log(_column(group, "parameters")) - centre
    return np.polyfit(x, np.log(_column(group, "tokens")), 2)


def _drawn_optima(
    groups: Sequence[Sequence[Measured]], curves: Sequence[Curve], draws: int, seed: int
) -> tuple[Array, Array, Array]:
    """Best sizes, tokens and losses [R, budgets] of noisy copies of the points."""
    sizes, tokens, losses = (np.full((draws, len(groups)), np.nan) for _ in range(3))
    noisy = _noisy_losses(groups, curves, draws, seed)
    for index, (group, curve) in enumerate(zip(groups, curves, strict=True)):
        x = np.log(curve.sizes) - curve.centre
        coefficients = np.polyfit(x, noisy[index].T, 2).T
        place, low = _lowest(coefficients)
        place = np.clip(place, x[0] - _BEYOND, x[-1] + _BEYOND)
        sizes[:, index] = np.exp(place + curve.centre)
        tokens[:, index] = np.exp(np.polyval(_tokens_by_size(group, curve.centre), place))
        losses[:, index] = np.where(low > 0, low, np.nan)
    return sizes, tokens, losses


def _noisy_losses(groups: Sequence[Sequence[Measured]], curves: Sequence[Curve], draws: int, seed: int) -> list[Array]:
    """Per budget, fitted losses plus noise [R, n].

    The noise's variance is the residuals' about all parabolas together, over their degrees of freedom, drawn anew
    for each copy from its scaled inverse χ² (few degrees of freedom make it uncertain). With three sizes everywhere
    nothing is left over: then the points' own standard errors, if all have one, else NaN. They are not used
    otherwise, since models scored on the same text share most of theirs.
    """
    generator = np.random.default_rng(seed)
    fitted = [np.polyval(curve.coefficients, np.log(curve.sizes) - curve.centre) for curve in curves]
    squares = sum(float(((curve.losses - fit) ** 2).sum()) for curve, fit in zip(curves, fitted, strict=True))
    freedom = sum(len(curve.sizes) - 3 for curve in curves)
    shared = np.sqrt(squares / generator.chisquare(freedom, draws)) if freedom else None
    noisy = []
    for group, fit in zip(groups, fitted, strict=True):
        own = np.array([np.nan if point.loss_se is None else point.loss_se for point in group])
        sigma = own if shared is None else shared[:, None]
        noisy.append(fit + sigma * generator.standard_normal((draws, len(group))))
    return noisy


def _column(group: Sequence[Measured], name: str) -> Array:
    return np.array([getattr(point, name) for point in group], dtype=np.float64)
