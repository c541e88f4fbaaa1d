"""The best run for a budget, by the fitted laws."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.scaling.power_law import Interval, interval
from pretrain.scaling.study import FamilyFits, Study
from runtime.errors import UserError


def predict(study: Study, budget: float) -> list[dict[str, Any]]:
    """Best N, D and expected loss for `budget` FLOPs (by the study's convention), per family and law, JSON-ready.

    `factor` is how far beyond the largest budget of the points that is. Raises UserError for a budget that is not
    positive, or if no law was fitted.
    """
    if not (np.isfinite(budget) and budget > 0):
        raise UserError(f"--budget {budget} is no number of FLOPs: use a positive one, for example 1e22")
    rows = [row for fits in study.fits for row in _family(fits, budget, study.convention)]
    if not rows:
        raise UserError("no law was fitted that could predict: add points of three sizes at two budgets")
    return rows


def _family(fits: FamilyFits, budget: float, convention: str) -> list[dict[str, Any]]:
    factor = budget / max(point.flops for point in fits.points)
    rows = []
    if fits.isoflop:
        laws = (fits.isoflop.size, fits.isoflop.data, fits.isoflop.loss)
        found = (law.interval_at(budget) for law in laws)
        rows.append(_row(fits.family, "isoflop", budget, convention, factor, *found))
    if fits.parametric:
        law, drawn = fits.parametric.law, fits.parametric.draws
        sizes = np.array([one.best_size(budget, fits.per_token) for one in drawn])
        losses = np.array([one.best_loss(budget, fits.per_token) for one in drawn])
        tokens = budget / np.asarray(fits.per_token(sizes))
        size = law.best_size(budget, fits.per_token)
        at_best = (
            interval(size, sizes),
            interval(budget / float(fits.per_token(size)), tokens),
            interval(law.best_loss(budget, fits.per_token), losses),
        )
        rows.append(_row(fits.family, "parametric", budget, convention, factor, *at_best))
    return rows


def _row(family: str, law: str, budget: float, convention: str, factor: float, *found: Interval) -> dict[str, Any]:
    size, tokens, loss = found
    values = {name: one._asdict() for name, one in zip(("parameters", "tokens", "loss"), found, strict=True)}
    text = (
        f"{family}, {law}, {budget:.3g} FLOPs by {convention} ({factor:.3g} times the largest run): N {size}, "
        f"D {tokens}, loss {loss} nats per token"
    )
    return {"family": family, "law": law, "budget": budget, "factor": factor, **values, "text": text}
