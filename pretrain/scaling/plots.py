"""Pictures of a study: IsoFLOP curves, frontiers of both families with intervals, loss against compute, repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.figures import BLUE, GREEN, GREY, INK, OCHRE, RUST, VIOLET, panels
from pretrain.scaling.isoflop import Curve
from pretrain.scaling.points import Measured
from pretrain.scaling.power_law import LEVEL, Array, PowerLaw
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
    names = (("size", "parameters", "best N"), ("data", "tokens", "best D"), ("loss", "loss", "least loss (nats)"))
    with panels(out, 1, 3, (14, 4.2)) as all_axes:
        for axes, (law_name, value, label) in zip(all_axes, names, strict=True):
            for fits in study.fits:
                if fits.isoflop is None:
                    continue
                colour = _colour(study, fits.family)
                law: PowerLaw = getattr(fits.isoflop, law_name)
                used = fits.isoflop.used
                axes.plot([c.budget for c in used], [getattr(c, value) for c in used], "o", color=colour, markersize=5)
                compute = np.geomspace(used[0].budget / 1.5, used[-1].budget * 3, 60)
                _band(axes, compute, law.at, law.draws_at, colour, _labelled(fits.family, law))
            axes.set_xscale("log")
            axes.set_yscale("log")
            if law_name == "loss":
                _plain_ticks(axes)
            axes.set_xlabel(f"training FLOPs ({study.convention})")
            axes.set_title(label, loc="left", fontsize=11)
            axes.legend(fontsize=8.5)


def _labelled(family: str, law: PowerLaw) -> str:
    return f"{family}: exponent {law.exponent_interval}"


def plot_loss(study: Study, out: Path) -> None:
    """Loss of every fresh-data point against its compute, with the parametric law's frontier and its interval."""
    with panels(out, 1, 1, (7.4, 4.8)) as (axes,):
        for fits in study.fits:
            colour = _colour(study, fits.family)
            fresh = [point for point in fits.points if point.epochs <= 1.01]
            axes.plot([p.flops for p in fresh], [p.loss for p in fresh], ".", color=colour, alpha=0.5)
            if fits.parametric is None:
                axes.plot([], [], color=colour, label=fits.family)
                continue
            law, drawn, per_token = fits.parametric.law, fits.parametric.draws, fits.per_token
            compute = np.geomspace(min(p.flops for p in fresh), max(p.flops for p in fresh) * 3, 30)

            def best(x: float, law: Any = law, per_token: Any = per_token) -> float:
                return law.best_loss(x, per_token)

            def best_drawn(x: float, drawn: Any = drawn, per_token: Any = per_token) -> Array:
                return np.array([one.best_loss(x, per_token) for one in drawn[:60]])

            _band(axes, compute, best, best_drawn, colour, f"{fits.family}: least loss by E + A/N^α + B/D^β")
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


def repeat_groups(points: list[Measured]) -> dict[str, list[Measured]]:
    """Points of the same size and unique tokens that include repeats, by label, sorted by epochs."""
    groups: dict[tuple[float, float], list[Measured]] = {}
    for point in points:
        if point.unique_tokens is not None:
            groups.setdefault((point.parameters, float(f"{point.unique:.2g}")), []).append(point)
    repeated = {key: group for key, group in sorted(groups.items()) if max(p.epochs for p in group) > 1.01}
    return {
        f"N {n:.2g}, {u:.2g} unique tokens": sorted(group, key=lambda p: p.epochs) for (n, u), group in repeated.items()
    }


def _draw_repeats(axes: Any, fits: FamilyFits, label: str, group: list[Measured], colour: str, shade: float) -> None:
    epochs = np.array([point.epochs for point in group])
    axes.plot(epochs, [p.loss for p in group], "o-", color=colour, alpha=shade, markersize=4, linewidth=1, label=label)
    if fits.repeats is not None:
        line = np.geomspace(1, epochs.max(), 50)
        size, unique = np.full(50, group[0].parameters), np.full(50, group[0].unique)
        axes.plot(line, fits.repeats.law.loss(size, unique, line), "--", color=INK, alpha=0.6 * shade, linewidth=1)


def _band(
    axes: Any, x: Array, at: Callable[[float], float], draws_at: Callable[[float], Array], colour: str, label: str
) -> None:
    axes.plot(x, [at(float(one)) for one in x], color=colour, linewidth=1.7, label=label)
    drawn = np.array([draws_at(float(one)) for one in x])
    known = np.isfinite(drawn).all(axis=0)
    if known.sum() >= 20:
        low, high = np.quantile(drawn[:, known], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def _plain_ticks(axes: Any) -> None:
    """Numbers on a logarithmic axis that spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _colour(study: Study, family: str) -> str:
    others = [fits.family for fits in study.fits if fits.family not in COLOURS]
    return COLOURS[family] if family in COLOURS else _OTHERS[others.index(family) % len(_OTHERS)]
