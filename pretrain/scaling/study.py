"""All fits to a table of points, by family, and the comparison of masked diffusion with its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from data_pipeline.order import derive_key
from pretrain.scaling.compare import Comparison, common_middle, compare_isoflop, compare_parametric, extrapolated
from pretrain.scaling.isoflop import IsoFlopFit, fit_isoflop
from pretrain.scaling.parametric import FlopsPerToken, ParametricFit, fit_parametric, six_n
from pretrain.scaling.points import Measured, families, single_epoch
from pretrain.scaling.power_law import Interval
from pretrain.scaling.repeats import RepeatFit, fit_repeats
from runtime.errors import UserError

MASKED, BASELINE = "masked", "autoregressive"


@dataclass(frozen=True)
class FamilyFits:
    """The fits of a family; what could not be fitted is None, and `notes` says why."""

    family: str
    points: list[Measured]
    per_token: FlopsPerToken
    isoflop: IsoFlopFit | None
    parametric: ParametricFit | None
    repeats: RepeatFit | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """Fits by family; comparisons of masked diffusion with the baseline by parabolas and by the parametric law.

    `convention` names how the points' FLOPs were counted.
    """

    convention: str
    fits: list[FamilyFits]
    by_isoflop: Comparison | None
    by_parametric: Comparison | None

    def of(self, family: str) -> FamilyFits:
        """The fits of `family`. Raises UserError if there are no points of it."""
        for fits in self.fits:
            if fits.family == family:
                return fits
        raise UserError(f"no points of family {family!r}: there are {', '.join(fits.family for fits in self.fits)}")

    def as_dict(self) -> dict[str, Any]:
        """Everything that was fitted, as JSON-ready values."""
        comparisons = {"isoflop": self.by_isoflop, "parametric": self.by_parametric}
        return {
            "convention": self.convention,
            "families": {fits.family: _family_dict(fits) for fits in self.fits},
            "comparison": {name: None if one is None else _plain(vars(one)) for name, one in comparisons.items()},
        }


def make_study(points: Sequence[Measured], convention: str, draws: int = 500, seed: int = 0) -> Study:
    """Fit everything that the points allow. Raises UserError if they allow nothing."""
    fits = [  # each family with noise of its own: equal noise would cancel in ratios
        _fit_family([p for p in points if p.family == name], draws, derive_key(seed, name) % (1 << 32))
        for name in families(points)
    ]
    if not any(one.isoflop or one.parametric or one.repeats for one in fits):
        raise UserError("nothing can be fitted: " + "; ".join(note for one in fits for note in one.notes))
    by_name = {one.family: one for one in fits}
    masked, baseline = by_name.get(MASKED), by_name.get(BASELINE)
    isoflop = parametric = None
    if masked and baseline:
        if masked.isoflop and baseline.isoflop:
            isoflop = compare_isoflop(masked.isoflop, baseline.isoflop)
        if masked.parametric and baseline.parametric:
            losses, computes = _reached(masked, baseline)
            parametric = compare_parametric(
                masked.parametric,
                baseline.parametric,
                common_middle(*losses),
                common_middle(*computes),
                (masked.per_token, baseline.per_token),
                extrapolated(losses, computes),
            )
    return Study(convention, fits, isoflop, parametric)


def _reached(masked: FamilyFits, baseline: FamilyFits) -> tuple[list[list[float]], list[list[float]]]:
    """Losses and FLOPs of both families: those of the parabolas' lowest points, else of all points."""
    if masked.isoflop and baseline.isoflop:
        curves = [one.isoflop.used for one in (masked, baseline) if one.isoflop]
        return [[c.loss for c in some] for some in curves], [[c.budget for c in some] for some in curves]
    points = [one.points for one in (masked, baseline)]
    return [[p.loss for p in some] for some in points], [[p.flops for p in some] for some in points]


def _fit_family(points: list[Measured], draws: int, seed: int) -> FamilyFits:
    notes: list[str] = []
    fresh = single_epoch(points)
    isoflop = parametric = repeats = None
    if fresh:
        try:
            isoflop = fit_isoflop(fresh, draws, seed)
            notes += [f"{isoflop.family}: {line}" for line in isoflop.left_out]
        except UserError as error:
            notes.append(str(error))
        try:
            parametric = fit_parametric(fresh, min(draws, 200), seed)
        except UserError as error:
            notes.append(str(error))
    if parametric and len(fresh) < len(points):
        try:
            repeats = fit_repeats(points, parametric.law, min(draws, 200), seed)
        except UserError as error:
            notes.append(str(error))
    return FamilyFits(
        points[0].family, points, flops_per_token_of(fresh or points), isoflop, parametric, repeats, notes
    )


def flops_per_token_of(points: Sequence[Measured]) -> FlopsPerToken:
    """FLOPs per token by size, as the points were counted: 6·N plus a power law for what is not in N (head, attention).

    So any convention is met without knowing it; points counted by 6·N·D give 6·N.
    """
    sizes = np.array([point.parameters for point in points])
    rest = np.array([point.flops / point.tokens for point in points]) - 6 * sizes
    if (rest <= 1e-3 * 6 * sizes).any() or len(set(sizes)) < 2:
        return six_n
    exponent, constant = np.polyfit(np.log(sizes), np.log(rest), 1)

    def per_token(parameters: Any) -> Any:
        return 6 * parameters + np.exp(constant + exponent * np.log(parameters))

    return per_token


def _family_dict(fits: FamilyFits) -> dict[str, Any]:
    values: dict[str, Any] = {"points": len(fits.points), "notes": fits.notes}
    if fits.isoflop:
        laws = {"size": fits.isoflop.size, "data": fits.isoflop.data, "loss": fits.isoflop.loss}
        values["isoflop"] = {
            name: {"exponent": _plain(law.exponent_interval), "coefficient": float(np.exp(law.constant))}
            for name, law in laws.items()
        }
        values["isoflop"]["optima"] = [
            {key: getattr(curve, key) for key in ("budget", "parameters", "tokens", "loss", "inside")}
            for curve in fits.isoflop.curves
        ]
    if fits.parametric:
        fit = fits.parametric
        constants = {name: _plain(fit.interval(attrgetter(name))) for name in _CONSTANTS}
        values["parametric"] = {**constants, "residual": fit.residual}
    if fits.repeats:
        worth = {"data_worth": fits.repeats.data_worth, "size_worth": fits.repeats.size_worth}
        values["repeats"] = {**_plain(worth), "r_squared": fits.repeats.r_squared, "points": fits.repeats.points}
    return values


_CONSTANTS = ("E", "A", "B", "alpha", "beta", "size_exponent", "data_exponent", "loss_exponent")


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    return value
