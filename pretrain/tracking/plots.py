"""Training curves as a picture: loss, gradient norm and learning rate against tokens, for some runs."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.figures import INK, PALETTE, picture
from pretrain.tracking.spool import iterate_metrics
from runtime.errors import UserError

_LABEL_LENGTH = 60
_LEGEND_ROW = 130
_MOST_MARKS = 8
_WORD_WIDTH = 0.025  # of the width of the picture


@dataclass(frozen=True)
class _Curves:
    """One run: arrays [point], and marks (tokens, words) where its layout or attempt changed."""

    label: str
    tokens: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray
    learning_rate: np.ndarray
    marks: list[tuple[float, str]]


def plot_losses(
    runs: Sequence[tuple[str, Path]], out: Path, title: str = "Pretraining loss", window: int | None = None
) -> None:
    """Write a PNG to `out` with the curves of `runs`, each a (label, metrics file).

    Raw values are faint; the strong line is their mean over `window` logged steps around each point (by
    default a fiftieth of the run). Vertical lines stand where a run changed its layout or was started again.

    Raises UserError if a file is missing, broken, or holds no step with `tokens` and `train/loss`.
    """
    if not runs:
        raise UserError("there is no run to plot: name at least one")
    curves = [_read(label, path) for label, path in runs]
    with warnings.catch_warnings(), picture(out, (10, 6.6), dpi=160) as figure:
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        grid = figure.add_gridspec(2, 2, height_ratios=(2.1, 1))
        loss_axes = figure.add_subplot(grid[0, :])
        norm_axes = figure.add_subplot(grid[1, 0], sharex=loss_axes)
        rate_axes = figure.add_subplot(grid[1, 1], sharex=loss_axes)
        most = max(float(run.tokens.max()) for run in curves)
        scale, unit = _token_unit(most)
        width = window or max(1, max(len(run.tokens) for run in curves) // 50)
        _draw_loss(loss_axes, curves, scale, width)
        _draw_norm(norm_axes, curves, scale, width)
        _draw_rate(rate_axes, curves, scale)
        heading = {"x": 0.008, "ha": "left", "fontsize": 14, "fontweight": "bold", "color": INK}
        figure.suptitle(_plain(title), parse_math=False, **heading)
        for axes in (loss_axes, norm_axes, rate_axes):
            axes.set_xlabel(f"tokens{unit}")
        loss_axes.set_xlim(0, 1.015 * most / scale)


def _draw_loss(axes: Any, curves: Sequence[_Curves], scale: float, window: int) -> None:
    smooth = [_running_mean(run.loss, window) for run in curves]
    handles = []
    for index, (run, mean) in enumerate(zip(curves, smooth, strict=True)):
        colour = _colour(index)
        if window > 1:
            axes.plot(run.tokens / scale, run.loss, color=colour, alpha=0.22, linewidth=0.7)
        handles += axes.plot(run.tokens / scale, mean, color=colour, linewidth=1.9)
    low, high = _limits([run.loss for run in curves], smooth)
    axes.set_ylim(low, high)
    axes.set_ylabel("loss (nats per token)")
    _draw_marks(axes, curves, scale)
    names = [_plain(run.label) for run in curves]
    if window > 1:
        handles += axes.plot([], [], color=INK, alpha=0.35, linewidth=0.8)
        names.append(f"each step (strong: mean of {window})")
    columns = max(1, _LEGEND_ROW // (max(map(len, names)) + 8))
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "borderaxespad": 0.3, "ncols": columns}
    legend = axes.legend(handles, ["x" * len(name) for name in names], **place)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # given to legend() itself, a label could be taken for math, or hidden for its first "_"
        text.set_color(INK)
        text.set_parse_math(False)
        text.set_text(name)


def _draw_norm(axes: Any, curves: Sequence[_Curves], scale: float, window: int) -> None:
    for index, run in enumerate(curves):
        colour = _colour(index)
        if window > 1:
            axes.plot(run.tokens / scale, run.grad_norm, color=colour, alpha=0.22, linewidth=0.7)
        axes.plot(run.tokens / scale, _running_mean(run.grad_norm, window), color=colour, linewidth=1.5)
        for tokens, _ in run.marks:
            axes.axvline(tokens / scale, color=colour, alpha=0.45, linewidth=0.9, linestyle=(0, (4, 3)))
    positive = [run.grad_norm[run.grad_norm > 0] for run in curves]
    if any(len(values) for values in positive):
        axes.set_yscale("log")
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("gradient norm", loc="left", fontsize=11)


def _draw_rate(axes: Any, curves: Sequence[_Curves], scale: float) -> None:
    peak = max((value for run in curves for value in run.learning_rate if value > 0), default=1.0)
    exponent = math.floor(math.log10(peak))
    for index, run in enumerate(curves):
        rate = run.learning_rate / 10.0**exponent
        axes.plot(run.tokens / scale, rate, color=_colour(index), linewidth=1.7)
    axes.set_ylim(0, 1.08 * peak / 10.0**exponent)
    axes.set_title(f"learning rate ($10^{{{exponent}}}$)", loc="left", fontsize=11)


def _draw_marks(axes: Any, curves: Sequence[_Curves], scale: float) -> None:
    """Vertical lines at changes, the first few with words; lines too close together get none."""
    end = max(float(run.tokens.max()) for run in curves)
    marks = sorted((tokens, words, index) for index, run in enumerate(curves) for tokens, words in run.marks)
    last_worded, worded = -math.inf, 0
    for (tokens, words, index), (after, _, _) in pairwise([*marks, (math.inf, "", 0)]):
        axes.axvline(tokens / scale, color=_colour(index), alpha=0.55, linewidth=1, linestyle=(0, (4, 3)))
        if tokens - last_worded < _WORD_WIDTH * end or worded == _MOST_MARKS:
            continue
        offset, side = (4, "left") if after - tokens > _WORD_WIDTH * end else (-4, "right")
        last_worded, worded = tokens, worded + 1
        place = {"xy": (tokens / scale, 1), "xycoords": ("data", "axes fraction"), "xytext": (offset, -4)}
        style = {"rotation": 90, "va": "top", "ha": side, "fontsize": 9, "color": _colour(index)}
        axes.annotate(_plain(words), textcoords="offset points", parse_math=False, **place, **style)


def _read(label: str, path: Path) -> _Curves:
    rows: list[tuple[float, float, float, float]] = []
    marks: list[tuple[float, str]] = []
    before: tuple[object, object] | None = None
    for _, entry in iterate_metrics(path):
        if not all(isinstance(entry.get(key), int | float) for key in ("tokens", "train/loss")):
            continue
        values = (entry.get(key) for key in ("tokens", "train/loss", "optim/grad_norm", "optim/lr"))
        row = tuple(_finite(value) for value in values)
        now = (entry.get("run/layout"), entry.get("run/attempt"))
        if before is not None and now != before:
            words = str(now[0]) if now[0] != before[0] else "restart"
            marks.append((rows[-1][0], words))
        before = now
        rows.append(row)  # type: ignore[arg-type]
    if not rows:
        raise UserError(f"{path} holds no step with tokens and train/loss: let the run log a step first")
    tokens, loss, norm, rate = np.array(rows, dtype=np.float64).T
    return _Curves(label, tokens, loss, norm, rate, marks)


def _finite(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over about `window` points around each point; NaNs count for nothing.

    Near the start it shrinks on both sides alike, or the steep start would look flatter than it is.
    """
    known = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    at = np.arange(len(values))
    half = np.minimum(at, window // 2)
    low, high = at - half, np.minimum(at + half + 1, len(values))
    number = counts[high] - counts[low]
    mean = (sums[high] - sums[low]) / np.maximum(number, 1)
    return np.where(number > 0, mean, math.nan)


def _limits(raw: Sequence[np.ndarray], smooth: Sequence[np.ndarray]) -> tuple[float, float]:
    """Room for every smooth line and for nearly all raw values: masked losses have rare, far spikes."""
    points = np.concatenate([values[np.isfinite(values)] for values in raw])
    lines = np.concatenate([values[np.isfinite(values)] for values in smooth])
    if not len(points):
        return 0.0, 1.0
    low = min(float(np.percentile(points, 0.5)), float(lines.min()))
    high = max(float(np.percentile(points, 99.5)), float(lines.max()))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _token_unit(most: float) -> tuple[float, str]:
    for scale, name in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if most >= scale:
            return scale, f" ({name})"
    return 1.0, ""


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _plain(label: str) -> str:
    """`label` on one short line."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in label).split())
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"
