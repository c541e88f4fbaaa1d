"""The data-constrained law: what tokens are worth that were seen before.

Muennighoff et al. (arXiv 2305.16264, section 3.1), as used for diffusion in arXiv 2507.15857: in the parametric law D
becomes D' = U + U·R_D*·(1 − exp(−(E − 1)/R_D*)) for E epochs over U unique tokens, and N likewise N' with excess
parameters in place of repeats. D' never exceeds (1 + R_D*)·U, so the law saturates; it cannot describe a loss that
rises with more epochs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from pretrain.scaling.parametric import ParametricLaw
from pretrain.scaling.points import Measured
from pretrain.scaling.power_law import Array, Interval, interval
from runtime.errors import UserError

_DELTA = 1e-3
_BOUND = (np.log(1e-2), np.log(1e6))
_STARTS = tuple(itertools.product(np.log([1.0, 15.0, 200.0]), repeat=2))


def effective(unique: float | Array, repeats: float | Array, worth: float) -> Array:
    """U + U·R*·(1 − exp(−R/R*)): `unique` things and `repeats` = R further rounds of them, `worth` = R*."""
    u, r = np.asarray(unique, dtype=np.float64), np.asarray(repeats, dtype=np.float64)
    return np.asarray(u + u * worth * -np.expm1(-r / worth))


@dataclass(frozen=True)
class RepeatLaw:
    """The parametric law with `data_worth` = R_D* and `size_worth` = R_N*."""

    base: ParametricLaw
    data_worth: float
    size_worth: float

    def loss(self, parameters: Array, unique: Array, epochs: Array) -> Array:
        """Loss of N weights after `epochs` epochs over `unique` tokens."""
        needed = np.minimum(parameters, self.enough_parameters(unique))
        size = effective(needed, parameters / needed - 1, self.size_worth)
        return self.base.loss(size, effective(unique, epochs - 1, self.data_worth))

    def enough_parameters(self, unique: Array) -> Array:
        """U_N: the best size for `unique` tokens seen once, where α·A/N^α = β·B/D^β."""
        law = self.base
        return np.asarray((law.alpha * law.A / (law.beta * law.B) * unique**law.beta) ** (1 / law.alpha))


@dataclass(frozen=True)
class RepeatFit:
    """The law of a family, its two constants with intervals, R² of the loss, and how many points it is from."""

    family: str
    law: RepeatLaw
    data_worth: Interval
    size_worth: Interval
    r_squared: float
    points: int


def fit_repeats(points: Sequence[Measured], base: ParametricLaw, draws: int = 200, seed: int = 0) -> RepeatFit:
    """Fit R_D* and R_N* to the points of one family, the law of fresh tokens being `base`.

    Huber loss on log L, several starts; intervals by parametric bootstrap as for `base`, which is taken as certain.
    Raises UserError for fewer than three points that saw tokens more than once.
    """
    family = points[0].family
    repeated = [point for point in points if point.epochs > 1.01]
    if len(repeated) < 3:
        raise UserError(f"{family}: the worth of repeats needs three points or more with unique_tokens below tokens")
    columns = [np.array([getattr(p, name) for p in repeated]) for name in ("parameters", "unique", "epochs", "loss")]
    problem = _Problem(base, *columns[:3])
    losses = columns[3]
    best = problem.fit(np.log(losses), _STARTS)
    fitted = problem.log_loss(best)
    squares, freedom = float(((np.log(losses) - fitted) ** 2).sum()), len(repeated) - 2
    generator = np.random.default_rng(seed)
    sigmas = np.sqrt(squares / generator.chisquare(freedom, draws))
    noise = sigmas[:, None] * generator.standard_normal((draws, len(repeated)))
    drawn = np.exp(np.array([problem.fit(fitted + row, [best]) for row in noise]).reshape(-1, 2))
    spread = float(((losses - losses.mean()) ** 2).sum())
    miss = float(((losses - np.exp(fitted)) ** 2).sum())
    law = RepeatLaw(base, *np.exp(best))
    worth = interval(law.data_worth, drawn[:, 0]), interval(law.size_worth, drawn[:, 1])
    return RepeatFit(family, law, *worth, 1 - miss / spread if spread else np.nan, len(repeated))


class _Problem:
    """Huber loss of log L in (log R_D*, log R_N*)."""

    def __init__(self, base: ParametricLaw, parameters: Array, unique: Array, epochs: Array) -> None:
        self._base, self._points = base, (parameters, unique, epochs)

    def log_loss(self, theta: Array) -> Array:
        return np.asarray(np.log(RepeatLaw(self._base, *np.exp(theta)).loss(*self._points)))

    def fit(self, log_losses: Array, starts: Sequence[Array | tuple[float, ...]]) -> Array:
        found = [
            minimize(self._objective, start, (log_losses,), method="L-BFGS-B", bounds=[_BOUND] * 2, options=_PRECISE)
            for start in starts
        ]
        return np.asarray(min(found, key=lambda one: one.fun).x)

    def _objective(self, theta: Array, log_losses: Array) -> float:
        miss = np.abs(self.log_loss(theta) - log_losses) / _DELTA
        return float(np.where(miss <= 1, miss**2 / 2, miss - 0.5).sum())


_PRECISE = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500}
