"""Straight lines in log-log, for many draws at once, and intervals over draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its central 95 % interval; NaN ends if the points say nothing about their noise."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not np.isfinite([self.low, self.high]).all():
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def interval(value: float, draws: Array) -> Interval:
    """`value` with the quantiles of `draws`; draws that are not finite are left out."""
    known = draws[np.isfinite(draws)]
    if len(known) < 20:
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


@dataclass(frozen=True)
class PowerLaw:
    """y = exp(constant) · x^exponent; `draws` [R, 2] are refits (exponent, constant) to noisy copies of the points."""

    exponent: float
    constant: float
    draws: Array

    def at(self, x: float) -> float:
        """y at `x`."""
        return float(np.exp(self.constant + self.exponent * np.log(x)))

    def draws_at(self, x: float) -> Array:
        """y at `x` of every draw [R]."""
        return np.asarray(np.exp(self.draws[:, 1] + self.draws[:, 0] * np.log(x)))

    def interval_at(self, x: float) -> Interval:
        """y at `x` with its interval."""
        return interval(self.at(x), self.draws_at(x))

    @property
    def exponent_interval(self) -> Interval:
        """The exponent with its interval."""
        return interval(self.exponent, self.draws[:, 0])

    def inverse(self, y: float) -> float:
        """x at which the law gives `y`."""
        return float(np.exp((np.log(y) - self.constant) / self.exponent))

    def draws_inverse(self, y: float) -> Array:
        """The same of every draw [R]."""
        return np.asarray(np.exp((np.log(y) - self.draws[:, 1]) / self.draws[:, 0]))


def fit_power_law(x: Array, y: Array, y_draws: Array) -> PowerLaw:
    """Least squares of log `y` [n] on log `x` [n], and of every row of `y_draws` [R, n]."""
    (exponent, constant), draws = _line(np.log(x), np.log(y)[None])[0], _line(np.log(x), np.log(y_draws))
    return PowerLaw(float(exponent), float(constant), draws)


def _line(x: Array, y: Array) -> Array:
    """(slope, intercept) [R, 2] of the rows of `y` [R, n] on `x` [n], NaNs of a row left out."""
    known = np.isfinite(y)
    count = known.sum(1)
    wide = np.where(known, x, 0.0)
    filled = np.where(known, y, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_x, mean_y = wide.sum(1) / count, filled.sum(1) / count
        centred = np.where(known, x - mean_x[:, None], 0.0)
        spread = (centred**2).sum(1)
        slope = (centred * (filled - mean_y[:, None])).sum(1) / np.where(spread > 0, spread, np.nan)
        return np.stack([slope, mean_y - slope * mean_x], axis=1)
