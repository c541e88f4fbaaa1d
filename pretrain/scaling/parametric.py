"""The parametric law L = E + A/N^α + B/D^β, and what it says about the best use of compute.

Third approach of Hoffmann et al. (arXiv 2203.15556, section 3.3 and appendix D.3): Huber loss on log L, many starts,
L-BFGS.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize

from pretrain.scaling.points import Measured
from pretrain.scaling.power_law import Array, Interval, interval
from runtime.errors import UserError

_DELTA = 1e-3
_BOUNDS = [(None, None), (None, None), (np.log(1e-6), None), (1e-3, 4.0), (1e-3, 4.0)]
_STARTS = tuple(itertools.product((0.2, 0.5, 1.0), (0.2, 0.5, 1.0), (0.3, 0.7, 0.95), (0.3, 0.7)))
_RANGE = (1e2, 1e16)  # sizes and tokens looked through for an optimum
FlopsPerToken = Callable[[Any], Any]
"""Training FLOPs per token of models of N weights (a number or an array), by some convention."""


def six_n(parameters: Any) -> Any:
    """The convention 6·N·D."""
    return 6.0 * parameters


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A/N^alpha + B/D^beta, in nats per token."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float | Array, tokens: float | Array) -> Array:
        """Loss of models of N weights after D tokens."""
        n, d = np.asarray(parameters, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)

    @property
    def size_exponent(self) -> float:
        """a of N* ∝ C^a by 6·N·D."""
        return self.beta / (self.alpha + self.beta)

    @property
    def data_exponent(self) -> float:
        """b of D* ∝ C^b by 6·N·D."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def loss_exponent(self) -> float:
        """c of (L* − E) ∝ C^c by 6·N·D; negative."""
        return -self.alpha * self.beta / (self.alpha + self.beta)

    def best_size(self, compute: float, per_token: FlopsPerToken = six_n) -> float:
        """N of least loss for `compute` FLOPs: in closed form by 6·N·D, else by search to about 1e-5."""
        if per_token is six_n:
            ratio = self.alpha * self.A / (self.beta * self.B)
            return float(ratio ** (1 / (self.alpha + self.beta)) * (compute / 6) ** self.size_exponent)
        low, high = np.log(_RANGE)
        for points in (400, 65):
            places = np.linspace(low, high, points)
            sizes = np.exp(places)
            losses = self.A * sizes**-self.alpha + self.B * (compute / per_token(sizes)) ** -self.beta
            best = int(np.clip(losses.argmin(), 1, points - 2))
            low, high = places[best - 1], places[best + 1]
        left, middle, right = losses[best - 1 : best + 2]
        bend = left - 2 * middle + right
        shift = (left - right) / (2 * bend) if bend > 0 else 0.0
        return float(np.exp(places[best] + np.clip(shift, -1, 1) * (places[1] - places[0])))

    def best_loss(self, compute: float, per_token: FlopsPerToken = six_n) -> float:
        """Least loss for `compute` FLOPs."""
        size = self.best_size(compute, per_token)
        return float(self.loss(size, compute / float(per_token(size))))

    def compute_for(self, loss: float, per_token: FlopsPerToken = six_n) -> float:
        """Least FLOPs that reach `loss`; infinite if the law never does, NaN if beyond any sensible range."""
        if loss <= self.E:
            return np.inf

        def excess(log_compute: float) -> float:
            return self.best_loss(float(np.exp(log_compute)), per_token) - loss

        low, high = np.log(1e3), np.log(1e40)
        if not excess(low) > 0 > excess(high):
            return np.nan
        return float(np.exp(brentq(excess, low, high, xtol=1e-8)))


@dataclass(frozen=True)
class ParametricFit:
    """The law of a family, refits to noisy copies of the points, and the standard deviation of log L about it."""

    family: str
    law: ParametricLaw
    draws: list[ParametricLaw]
    residual: float
    points: int

    def interval(self, of: Callable[[ParametricLaw], float]) -> Interval:
        """Any number that follows from the law, with its interval."""
        return interval(of(self.law), np.array([of(law) for law in self.draws], dtype=np.float64))


def fit_parametric(points: Sequence[Measured], draws: int = 200, seed: int = 0) -> ParametricFit:
    """Fit the points of one family that saw (nearly) no token twice; intervals by parametric bootstrap.

    The noise of log L has the residuals' variance over their degrees of freedom, drawn anew for each copy from its
    scaled inverse χ². Raises UserError for fewer than six points, or sizes or tokens that do not vary.
    """
    family = points[0].family
    sizes, tokens, losses = (
        np.array([getattr(point, name) for point in points], dtype=np.float64)
        for name in ("parameters", "tokens", "loss")
    )
    if len(points) <= 5 or len(set(sizes)) < 3 or len(set(tokens)) < 3:
        raise UserError(f"{family}: L = E + A/N^α + B/D^β needs six points or more, of three sizes and token counts")
    problem = _Problem(sizes, tokens)
    best = problem.fit(np.log(losses))
    fitted = problem.log_loss(best)
    squares, freedom = float(((np.log(losses) - fitted) ** 2).sum()), len(points) - 5
    generator = np.random.default_rng(seed)
    sigmas = np.sqrt(squares / generator.chisquare(freedom, draws))
    noise = sigmas[:, None] * generator.standard_normal((draws, len(points)))
    refits = [problem.law(problem.refit(fitted + row, best)) for row in noise]
    return ParametricFit(family, problem.law(best), refits, float(np.sqrt(squares / freedom)), len(points))


class _Problem:
    """Huber loss of log L in θ = (a, b, e, α, β): L = exp(a − α·n) + exp(b − β·d) + exp(e), n and d centred logs."""

    def __init__(self, sizes: Array, tokens: Array) -> None:
        logs = np.log(sizes), np.log(tokens)
        self._centres = float(logs[0].mean()), float(logs[1].mean())
        self._n, self._d = logs[0] - self._centres[0], logs[1] - self._centres[1]

    def law(self, theta: Array) -> ParametricLaw:
        """The law in the usual constants."""
        a, b, e, alpha, beta = theta
        big_a, big_b = np.exp(a + alpha * self._centres[0]), np.exp(b + beta * self._centres[1])
        return ParametricLaw(float(np.exp(e)), float(big_a), float(big_b), float(alpha), float(beta))

    def log_loss(self, theta: Array) -> Array:
        """log L of every point."""
        return np.asarray(np.log(self._parts(theta).sum(0)))

    def _parts(self, theta: Array) -> Array:
        a, b, e, alpha, beta = theta
        exponents = np.stack([a - alpha * self._n, b - beta * self._d, np.full_like(self._n, e)])
        return np.exp(np.minimum(exponents, 300.0))  # a line search may wander far, where exp would overflow

    def fit(self, log_losses: Array) -> Array:
        """The best of all starts after some steps each, polished: the best three, should they differ."""
        tried = sorted((self._descend(s, log_losses, 60) for s in self._starts(log_losses)), key=lambda one: one[0])
        polished = (self._descend(start, log_losses, 2000) for _, start in tried[:3])
        return min(polished, key=lambda one: one[0])[1]

    def refit(self, log_losses: Array, start: Array) -> Array:
        """From a good start to the nearest minimum."""
        return self._descend(start, log_losses, 2000)[1]

    def _starts(self, log_losses: Array) -> list[Array]:
        least, mean = float(np.exp(log_losses).min()), float(np.exp(log_losses).mean())
        starts = []
        for alpha, beta, floor, share in _STARTS:
            reducible = mean - floor * least
            constants = np.log([share * reducible, (1 - share) * reducible, floor * least])
            starts.append(np.array([*constants, alpha, beta]))
        return starts

    def _descend(self, start: Array, log_losses: Array, steps: int) -> tuple[float, Array]:
        options = {"maxiter": steps, "maxfun": 4 * steps, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 20}
        found = minimize(
            self._objective, start, (log_losses,), method="L-BFGS-B", jac=True, bounds=_BOUNDS, options=options
        )
        return float(found.fun), np.asarray(found.x)

    def _objective(self, theta: Array, log_losses: Array) -> tuple[float, Array]:
        """Σ Huber(log L − log L̂) and its gradient, in units of δ²."""
        parts = self._parts(theta)
        whole = parts.sum(0)
        miss = (np.log(whole) - log_losses) / _DELTA
        inside = np.abs(miss) <= 1
        value = float(np.where(inside, miss**2 / 2, np.abs(miss) - 0.5).sum())
        slope = np.clip(miss, -1, 1) / whole / _DELTA * parts
        gradient = [slope[0].sum(), slope[1].sum(), slope[2].sum(), -(slope[0] @ self._n), -(slope[1] @ self._d)]
        return value, np.array(gradient)
