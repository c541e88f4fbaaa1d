"""Lines that the pictures show, as numbers: what is drawn is what the tables hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from pretrain.scaling.points import Measured
from pretrain.scaling.power_law import LEVEL, Array, Interval, PowerLaw, interval
from pretrain.scaling.study import FamilyFits, Study

FRONTIERS = ("size", "data", "loss")
"""Laws of best size, data and loss in compute."""
_CONSTANTS = ("E", "A", "B", "alpha", "beta", "size_exponent", "data_exponent", "loss_exponent")
_FEWEST_DRAWS = 20
_LOSS_DRAWS = 60


@dataclass(frozen=True)
class Line:
    """A fitted line of a picture: y at x [n], and the ends of its 95 % interval [n], NaN where there is none."""

    picture: str
    family: str
    series: str
    x: Array
    y: Array
    low: Array
    high: Array


def frontier(fits: FamilyFits, series: str) -> Line:
    """Best size, data or loss (`series`, of `FRONTIERS`) against compute, by the power law through the optima."""
    assert fits.isoflop is not None
    law: PowerLaw = getattr(fits.isoflop, series)
    used = fits.isoflop.used
    compute = np.geomspace(used[0].budget / 1.5, used[-1].budget * 3, 60)
    return _line("frontier", fits.family, series, compute, law.at, law.draws_at)


def least_loss(fits: FamilyFits) -> Line:
    """Least loss against compute by the parametric law; a part of its draws gives the interval."""
    assert fits.parametric is not None
    law, drawn, per_token = fits.parametric.law, fits.parametric.draws[:_LOSS_DRAWS], fits.per_token
    flops = [point.flops for point in fresh(fits)]
    return _line(
        "loss",
        fits.family,
        "loss",
        np.geomspace(min(flops), max(flops) * 3, 30),
        lambda compute: law.best_loss(compute, per_token),
        lambda compute: np.array([one.best_loss(compute, per_token) for one in drawn]),
    )


def repeated(fits: FamilyFits, label: str, group: list[Measured]) -> Line:
    """Loss against epochs by the data-constrained law, for a group of `repeat_groups`."""
    assert fits.repeats is not None
    epochs = np.geomspace(1, max(point.epochs for point in group), 50)
    size, unique = np.full(50, group[0].parameters), np.full(50, group[0].unique)
    unknown = np.full(50, np.nan)
    return Line("repeats", fits.family, label, epochs, fits.repeats.law.loss(size, unique, epochs), unknown, unknown)


def fresh(fits: FamilyFits) -> list[Measured]:
    """Points that saw no token twice."""
    return [point for point in fits.points if point.epochs <= 1.01]


def repeat_groups(points: list[Measured]) -> dict[str, list[Measured]]:
    """Points of the same size and unique tokens that include repeats, by label, sorted by epochs."""
    groups: dict[tuple[float, float], list[Measured]] = {}
    for point in points:
        if point.unique_tokens is not None:
            groups.setdefault((point.parameters, float(f"{point.unique:.2g}")), []).append(point)
    several = {key: group for key, group in sorted(groups.items()) if max(p.epochs for p in group) > 1.01}
    return {
        f"N {n:.2g}, {u:.2g} unique tokens": sorted(group, key=lambda p: p.epochs) for (n, u), group in several.items()
    }


def lines_of(study: Study) -> list[Line]:
    """Every fitted line of `frontier.png`, `loss.png` and `repeats.png`; parabolas stand in `optima.csv`."""
    found = []
    for fits in study.fits:
        if fits.isoflop:
            found += [frontier(fits, series) for series in FRONTIERS]
        if fits.parametric:
            found.append(least_loss(fits))
        if fits.repeats:
            found += [repeated(fits, label, group) for label, group in repeat_groups(fits.points).items()]
    return found


def curves_table(study: Study) -> str:
    """CSV of the samples of all lines; ends of an interval that is unknown are left empty."""
    rows = [
        [line.picture, line.family, line.series, *(_cell(value) for value in sample)]
        for line in lines_of(study)
        for sample in zip(line.x, line.y, line.low, line.high, strict=True)
    ]
    return _csv(["picture", "family", "series", "x", "y", "low", "high"], rows)


def laws_table(study: Study) -> str:
    """CSV of the laws' constants with their 95 % intervals: `law` isoflop, parametric or repeats."""
    rows = [
        [fits.family, law, constant, *(_cell(value) for value in found)]
        for fits in study.fits
        for law, constant, found in _constants(fits)
    ]
    return _csv(["family", "law", "constant", "value", "low", "high"], rows)


def _constants(fits: FamilyFits) -> list[tuple[str, str, Interval]]:
    found: list[tuple[str, str, Interval]] = []
    for series in FRONTIERS if fits.isoflop else ():
        law: PowerLaw = getattr(fits.isoflop, series)
        coefficient = interval(float(np.exp(law.constant)), np.exp(law.draws[:, 1]))
        found += [("isoflop", f"{series}_exponent", law.exponent_interval)]
        found += [("isoflop", f"{series}_coefficient", coefficient)]
    if fits.parametric:
        found += [("parametric", name, fits.parametric.interval(attrgetter(name))) for name in _CONSTANTS]
    if fits.repeats:
        found += [("repeats", name, getattr(fits.repeats, name)) for name in ("data_worth", "size_worth")]
    return found


def _line(
    picture: str, family: str, series: str, x: Array, at: Callable[[float], float], draws_at: Callable[[float], Array]
) -> Line:
    drawn = np.array([draws_at(float(one)) for one in x])
    known = np.isfinite(drawn).all(axis=0)
    low = high = np.full(len(x), np.nan)
    if known.sum() >= _FEWEST_DRAWS:
        low, high = np.quantile(drawn[:, known], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return Line(picture, family, series, x, np.array([at(float(one)) for one in x]), low, high)


def _cell(value: float) -> Any:
    return float(value) if np.isfinite(value) else ""


def _csv(head: list[str], rows: list[list[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return out.getvalue()
