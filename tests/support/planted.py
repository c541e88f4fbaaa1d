"""Points that follow a known law, with known noise."""

from collections.abc import Sequence

import numpy as np

from pretrain.scaling.parametric import ParametricLaw
from pretrain.scaling.points import Measured

CHINCHILLA = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv 2203.15556, eq. 10
SYMMETRIC = ParametricLaw(E=1.8, A=300.0, B=300.0, alpha=0.3, beta=0.3)  # its IsoFLOP curves are even in log N
BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def planted_points(
    law: ParametricLaw,
    family: str = "masked",
    budgets: Sequence[float] = BUDGETS,
    factors: Sequence[float] = FACTORS,
    noise: float = 0.0,
    seed: int = 0,
) -> list[Measured]:
    """IsoFLOP points by 6·N·D: sizes at `factors` times the best one, losses times 1 + `noise`·(a normal number)."""
    generator = np.random.default_rng(seed)
    points = []
    for budget in budgets:
        for factor in factors:
            size = law.best_size(budget) * factor
            tokens = budget / (6 * size)
            loss = float(law.loss(size, tokens)) * (1 + noise * float(generator.standard_normal()))
            points.append(Measured(family, size, tokens, budget, loss, budget=budget))
    return points


def behind_by(law: ParametricLaw, factor: float) -> ParametricLaw:
    """The law of a family that needs `factor` times the compute for every loss, at √factor times size and data."""
    each = factor**0.5
    return ParametricLaw(law.E, law.A * each**law.alpha, law.B * each**law.beta, law.alpha, law.beta)
