"""A study as a page: its laws beside the published ones, its plots, and the tables behind them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

from pretrain.scaling.compare import Comparison
from pretrain.scaling.curves import curves_table, laws_table, repeat_groups
from pretrain.scaling.plots import plot_frontier, plot_isoflop, plot_loss, plot_repeats
from pretrain.scaling.points import write_points
from pretrain.scaling.published import EXPONENTS, RATIOS, REPEATS
from pretrain.scaling.study import FamilyFits, Study
from runtime.files import write_atomic


def write_report(study: Study, out: Path) -> list[Path]:
    """Write `report.md`, PNG plots and the tables behind them below `out`; returns their paths.

    `points.csv`; `optima.csv`, the parabolas; `laws.csv`, the laws' constants; `curves.csv`, the lines and intervals
    as drawn.
    """
    files = [out / "points.csv", out / "laws.csv", out / "curves.csv"]
    write_points(files[0], [point for fits in study.fits for point in fits.points])
    write_atomic(files[1], laws_table(study))
    write_atomic(files[2], curves_table(study))
    plots: list[tuple[Path, str]] = []
    if any(fits.isoflop for fits in study.fits):
        write_atomic(out / "optima.csv", _optima(study))
        files.append(out / "optima.csv")
        plot_isoflop(study, out / "isoflop.png")
        plot_frontier(study, out / "frontier.png")
        plots += [
            (out / "isoflop.png", "IsoFLOP curves: points, parabolas, lowest points"),
            (out / "frontier.png", "Best size, data and loss against compute, with 95 % intervals"),
        ]
    plot_loss(study, out / "loss.png")
    plots.append((out / "loss.png", "Loss against compute"))
    if any(repeat_groups(fits.points) for fits in study.fits):
        plot_repeats(study, out / "repeats.png")
        plots.append((out / "repeats.png", "Repeated data: loss against epochs; dashed: the data-constrained law"))
    write_atomic(out / "report.md", "\n".join([*page(study), *_pictures(plots)]) + "\n")
    return [out / "report.md", *files, *(path for path, _ in plots)]


def page(study: Study) -> list[str]:
    """The page as lines of Markdown, without the pictures."""
    lines = ["# Scaling study", ""]
    lines += [f"FLOPs are counted by the convention `{study.convention}`. Losses are held-out nats per token: an upper"]
    lines += ["bound for masked diffusion, exact for the baseline. Intervals are 95 %, by parametric bootstrap.", ""]
    lines += _ratios(study)
    lines += _exponents(study)
    lines += _constants(study)
    lines += _repeats(study)
    notes = [f"- {note}" for fits in study.fits for note in fits.notes]
    return lines + (["## What was left out", "", *notes, ""] if notes else [])


def lines(study: Study) -> list[str]:
    """The same for a terminal."""
    return [line for line in page(study) if line]


def _ratios(study: Study) -> list[str]:
    found = [(name, one) for name, one in (("IsoFLOP", study.by_isoflop), ("parametric", study.by_parametric)) if one]
    if not found:
        return []
    rows = [[name, *_ratio_cells(one)] for name, one in found]
    head = ["by", "compute, at loss", "best size, at FLOPs", "least loss, at FLOPs"]
    beyond = sorted({what for _, one in found for what in one.extrapolated})
    said = [f"No {what} was reached by both: what stands at it goes beyond the points." for what in beyond]
    return ["## Masked diffusion against the baseline", "", *_table(head, rows), "", *_bullets([*said, *RATIOS]), ""]


def _ratio_cells(one: Comparison) -> list[str]:
    return [
        f"{one.compute_ratio} × at {one.loss:.3g}",
        f"{one.size_ratio} × at {one.compute:.2g}",
        f"{one.loss_ratio} × at {one.compute:.2g}",
    ]


def _exponents(study: Study) -> list[str]:
    rows = []
    for fits in study.fits:
        if fits.isoflop:
            laws = (fits.isoflop.size, fits.isoflop.data, fits.isoflop.loss)
            rows.append(["**ours**, IsoFLOP", fits.family, *(str(law.exponent_interval) for law in laws), _range(fits)])
        if fits.parametric:
            of = fits.parametric.interval
            size, data, loss = (of(attrgetter(f"{name}_exponent")) for name in ("size", "data", "loss"))
            rows.append(["**ours**, parametric (by 6·N·D)", fits.family, str(size), str(data), f"{loss} (L − E)", ""])
    if not rows:
        return []
    for one in EXPONENTS:
        numbers = ["–" if value is None else f"{value:g}" for value in (one.size, one.data, one.loss)]
        rows.append([one.study, one.model, *numbers, one.counts + (f"; {one.note}" if one.note else "")])
    head = ["study", "model", "N* ∝ C^", "D* ∝ C^", "L* ∝ C^", "FLOPs"]
    return ["## Exponents beside published ones", "", *_table(head, rows), ""]


def _range(fits: FamilyFits) -> str:
    assert fits.isoflop is not None
    low, high = fits.isoflop.budgets
    return f"{low:.2g} to {high:.2g}, {len(fits.isoflop.used)} budgets"


def _constants(study: Study) -> list[str]:
    rows = []
    for fits in study.fits:
        if fits.parametric:
            fit = fits.parametric
            found = [str(fit.interval(attrgetter(name))) for name in _NAMES]
            rows.append([fits.family, *found, f"{fit.residual:.2%}", str(fit.points)])
    if not rows:
        return []
    head = ["model", *_NAMES, "residual of log L", "points"]
    return ["## L = E + A/N^alpha + B/D^beta", "", *_table(head, rows), ""]


_NAMES = ("E", "A", "B", "alpha", "beta")


def _repeats(study: Study) -> list[str]:
    fitted = [fits.repeats for fits in study.fits if fits.repeats]
    rows = [[r.family, str(r.data_worth), str(r.size_worth), f"{r.r_squared:.3f}", str(r.points)] for r in fitted]
    best = [
        f"{fits.family}, {label}: least loss {min(p.loss for p in group):.3f} at epoch "
        f"{min(group, key=lambda p: p.loss).epochs:.3g} of {group[-1].epochs:.3g}, last {group[-1].loss:.3f}"
        for fits in study.fits
        for label, group in repeat_groups(fits.points).items()
    ]
    if not rows and not best:
        return []
    table = _table(["model", "R_D*", "R_N*", "R²", "points"], rows) if rows else []
    return ["## Repeated data", "", *table, "", *_bullets(best), "", *_bullets(REPEATS), ""]


def _optima(study: Study) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["family", "budget", "parameters", "tokens", "loss", "inside", "a", "b", "c", "centre"])
    for fits in study.fits:
        for curve in fits.isoflop.curves if fits.isoflop else []:
            place = [curve.budget, curve.parameters, curve.tokens, curve.loss, curve.inside]
            writer.writerow([fits.family, *place, *curve.coefficients.tolist(), curve.centre])
    return out.getvalue()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _bullets(texts: Sequence[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def _pictures(plots: Sequence[tuple[Path, str]]) -> list[str]:
    return [line for path, words in plots for line in (f"![{words}]({path.name})", "")]
