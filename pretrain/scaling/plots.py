"""Pictures of a study: IsoFLOP curves, frontiers of both families with intervals, loss against compute, repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pretrain.figures import BLUE, GREEN, GREY, INK, OCHRE, RUST, VIOLET, panels
from pretrain.scaling.curves import FRONTIERS, Line, fresh, frontier, least_loss, repeat_groups, repeated
from pretrain.scaling.isoflop import Curve
from pretrain.scaling.points import Measured
from pretrain.scaling.power_law import PowerLaw
from pretrain.scaling.study import FamilyFits, Study

COLOURS = {"masked": RUST, "autoregressive": BLUE}
_OTHERS = (GREEN, VIOLET, OCHRE, GREY)


def plot_isoflop(study: Study, out: Path) -> None:
    """Loss against size at every budget with its parabola and lowest point, a panel for each family."""
    fitted = [fits for fits in study.fits if fits.isoflop]
    with panels(out, 1, len(fitted), (5.4 * len(fitted), 4.4)) as all_axes:
        for axes, fits in zip(all_axes, fitted, strict=True):
            assert fits.isoflop is not None
            curves = fits.isoflop.curves
            for shade, curve in zip(np.linspace(0.35, 1.0, len(curves)), curves, strict=True):
                _draw_curve(axes, curve, _colour(study, fits.family), float(shade))
            axes.set_xscale("log")
            axes.set_xlabel("N (weights of the layers)")
            axes.set_ylabel("held-out loss (nats per token)")
            axes.set_title(f"{fits.family}: loss at equal FLOPs ({study.convention})", loc="left", fontsize=11)
            axes.legend(fontsize=8.5, title="FLOPs", title_fontsize=8.5)


def _draw_curve(axes: Any, curve: Curve, colour: str, shade: float) -> None:
    place = np.linspace(np.log(curve.sizes[0]) - 0.15, np.log(curve.sizes[-1]) + 0.15, 100)
    axes.plot(curve.sizes, curve.losses, "o", color=colour, alpha=shade, markersize=4.5)
    line = np.polyval(curve.coefficients, place - curve.centre)
    axes.plot(np.exp(place), line, color=colour, alpha=shade, linewidth=1.6, label=f"{curve.budget:.2g}")
    if curve.inside:
        axes.plot(curve.parameters, curve.loss, "*", color=INK, markersize=9)


def plot_frontier(study: Study, out: Path) -> None:
    """Best size, data and loss against compute: optima, power laws, 95 % intervals, all families."""
    shown = (("parameters", "best N"), ("tokens", "best D"), ("loss", "least loss (nats)"))
    with panels(out, 1, 3, (14, 4.2)) as all_axes:
        for axes, series, (value, label) in zip(all_axes, FRONTIERS, shown, strict=True):
            for fits in study.fits:
                if fits.isoflop is None:
                    continue
                colour = _colour(study, fits.family)
                law: PowerLaw = getattr(fits.isoflop, series)
                used = fits.isoflop.used
                axes.plot([c.budget for c in used], [getattr(c, value) for c in used], "o", color=colour, markersize=5)
                _draw(axes, frontier(fits, series), colour, f"{fits.family}: exponent {law.exponent_interval}")
            axes.set_xscale("log")
            axes.set_yscale("log")
            if series == "loss":
                _plain_ticks(axes)
            axes.set_xlabel(f"training FLOPs ({study.convention})")
            axes.set_title(label, loc="left", fontsize=11)
            axes.legend(fontsize=8.5)


def plot_loss(study: Study, out: Path) -> None:
    """Loss of every fresh-data point against its compute, with the parametric law's frontier and its interval."""
    with panels(out, 1, 1, (7.4, 4.8)) as (axes,):
        for fits in study.fits:
            colour = _colour(study, fits.family)
            points = fresh(fits)
            axes.plot([p.flops for p in points], [p.loss for p in points], ".", color=colour, alpha=0.5)
            if fits.parametric is None:
                axes.plot([], [], color=colour, label=fits.family)
                continue
            _draw(axes, least_loss(fits), colour, f"{fits.family}: least loss by E + A/N^α + B/D^β")
        axes.set_xscale("log")
        axes.set_xlabel(f"training FLOPs ({study.convention})")
        axes.set_ylabel("held-out loss (nats per token)")
        axes.legend(fontsize=9)


def plot_repeats(study: Study, out: Path) -> None:
    """Loss against epochs for each number of unique tokens, a panel for each family, with the fitted law."""
    with_repeats = [fits for fits in study.fits if any(point.epochs > 1.01 for point in fits.points)]
    with panels(out, 1, len(with_repeats), (5.4 * len(with_repeats), 4.4)) as all_axes:
        for axes, fits in zip(all_axes, with_repeats, strict=True):
            groups = repeat_groups(fits.points)
            for shade, (label, group) in zip(np.linspace(0.4, 1.0, len(groups)), groups.items(), strict=True):
                _draw_repeats(axes, fits, label, group, _colour(study, fits.family), float(shade))
            axes.set_xscale("log")
            axes.set_xlabel("epochs over the unique tokens")
            axes.set_ylabel("held-out loss (nats per token)")
            axes.set_title(fits.family, loc="left", fontsize=11)
            axes.legend(fontsize=8.5)


def _draw_repeats(axes: Any, fits: FamilyFits, label: str, group: list[Measured], colour: str, shade: float) -> None:
    epochs = [point.epochs for point in group]
    axes.plot(epochs, [p.loss for p in group], "o-", color=colour, alpha=shade, markersize=4, linewidth=1, label=label)
    if fits.repeats is not None:
        line = repeated(fits, label, group)
        axes.plot(line.x, line.y, "--", color=INK, alpha=0.6 * shade, linewidth=1)


def _draw(axes: Any, line: Line, colour: str, label: str) -> None:
    axes.plot(line.x, line.y, color=colour, linewidth=1.7, label=label)
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)


def _plain_ticks(axes: Any) -> None:
    """Numbers on a logarithmic axis that spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _colour(study: Study, family: str) -> str:
    others = [fits.family for fits in study.fits if fits.family not in COLOURS]
    return COLOURS[family] if family in COLOURS else _OTHERS[others.index(family) % len(_OTHERS)]
