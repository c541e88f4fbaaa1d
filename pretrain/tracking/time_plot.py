"""Where a run's wall time went, as a picture: the share of each kind, step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain.figures import picture
from pretrain.goodput import Accounts
from pretrain.tracking.spool import iterate_metrics
from runtime.errors import UserError

_KINDS = {"productive": "#2d8a5f", "data_wait": "#a8862a", "checkpoint": "#1f5fa8", "restart": "#9aa2ac",
          "lost": "#c8542b"}  # fmt: skip


def plot_time(metrics: Path, out: Path) -> None:
    """Write a PNG to `out`. Raises UserError if no line of `metrics` has accounts."""
    steps: list[int] = []
    rows: list[list[float]] = []
    for _, line in iterate_metrics(metrics):
        accounts = Accounts.of_line(line)
        if accounts is not None and accounts.wall > 0:
            steps.append(line["step"])
            rows.append([getattr(accounts, kind) / accounts.wall for kind in _KINDS])
    if not rows:
        raise UserError(f"{metrics} has no line that says where the time went: let the run log a step first")
    with picture(out, (10, 4), dpi=160) as figure:
        axes = figure.add_subplot()
        shares = np.array(rows).T
        words = [f"{kind.replace('_', ' ')} {share[-1]:.1%}" for kind, share in zip(_KINDS, shares, strict=True)]
        axes.stackplot(steps, shares, colors=list(_KINDS.values()), labels=words, alpha=0.9)
        axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
        axes.set_ylim(0, 1)
        axes.set_xlabel("step")
        axes.set_ylabel("share of the wall time so far")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(_KINDS))
