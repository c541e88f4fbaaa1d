"""Planted laws through the fits: recovery, interval coverage, a gap of 16, and the bias of parabolas.

`python -m tests.prove.scaling` writes its tables into docs/scaling/method.md (some minutes on one core).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pretrain.scaling.compare import compare_isoflop, compare_parametric
from pretrain.scaling.isoflop import fit_isoflop
from pretrain.scaling.parametric import ParametricLaw, fit_parametric
from pretrain.scaling.points import Measured
from pretrain.scaling.power_law import Interval
from tests.support.planted import BUDGETS, CHINCHILLA, SYMMETRIC, behind_by, planted_points

NOISE, DRAWS = 0.003, 100
LAWS = {
    "Chinchilla's": CHINCHILLA,
    "α = β = 0.3": SYMMETRIC,
    "steep in N": ParametricLaw(1.2, 900.0, 150.0, 0.45, 0.25),
}
BEGIN, END = "<!-- proof: begin -->", "<!-- proof: end -->"


def recovery() -> Iterator[str]:
    """Exponents from points without noise against the planted ones."""
    yield "Points without noise, five budgets from 1e18 to 1e20 FLOPs, sizes at ¼, ½, 1, 2, 4 times the best:"
    yield ""
    yield "| law | planted a | parabolas | parametric | planted c | parametric c | largest error |"
    yield "|---|---|---|---|---|---|---|"
    for name, law in LAWS.items():
        points = planted_points(law)
        parabolas, found = fit_isoflop(points, draws=20), fit_parametric(points, draws=0).law
        errors = [
            parabolas.size.exponent - law.size_exponent,
            found.size_exponent - law.size_exponent,
            found.loss_exponent - law.loss_exponent,
        ]
        yield (
            f"| {name} | {law.size_exponent:.4f} | {parabolas.size.exponent:.4f} | {found.size_exponent:.4f} "
            f"| {law.loss_exponent:.4f} | {found.loss_exponent:.4f} | {max(map(abs, errors)):.1e} |"
        )


def coverage(trials: int) -> Iterator[str]:
    """How many of `trials` intervals hold what was planted, for every number that is reported."""
    hits: dict[str, list[bool]] = {}

    def note(name: str, found: Interval, truth: float) -> None:
        hits.setdefault(name, []).append(found.low <= truth <= found.high)

    straight = fit_isoflop(planted_points(SYMMETRIC), draws=20)
    behind = behind_by(SYMMETRIC, 16.0)
    for seed in range(trials):
        curves = fit_isoflop(planted_points(SYMMETRIC, "ar", noise=NOISE, seed=seed), DRAWS, seed)
        note("parabolas: exponent of N", curves.size.exponent_interval, SYMMETRIC.size_exponent)
        note("parabolas: exponent of D", curves.data.exponent_interval, SYMMETRIC.data_exponent)
        note("parabolas: exponent of L", curves.loss.exponent_interval, straight.loss.exponent)
        law = fit_parametric(planted_points(CHINCHILLA, "ar", noise=NOISE, seed=seed), DRAWS, seed)
        note("parametric: a", law.interval(lambda one: one.size_exponent), CHINCHILLA.size_exponent)
        note("parametric: c", law.interval(lambda one: one.loss_exponent), CHINCHILLA.loss_exponent)
        note("parametric: E", law.interval(lambda one: one.E), CHINCHILLA.E)
        note(
            "parametric: least loss at 1e22", law.interval(lambda one: one.best_loss(1e22)), CHINCHILLA.best_loss(1e22)
        )
        far = [16 * budget for budget in BUDGETS]
        others = planted_points(behind, "masked", far, noise=NOISE, seed=1000 + seed)
        both = fit_isoflop(others, DRAWS, 1000 + seed), curves
        note("parabolas: gap of 16", compare_isoflop(*both).compute_ratio, 16.0)
        own = fit_parametric(planted_points(SYMMETRIC, "ar", noise=NOISE, seed=seed), DRAWS, seed)
        theirs = fit_parametric(others, DRAWS, 1000 + seed)
        note("parametric: gap of 16", compare_parametric(theirs, own, 3.0, 1e20).compute_ratio, 16.0)
        print(f"coverage: {seed + 1} of {trials}", file=sys.stderr, flush=True)
    yield f"{trials} sets of such points with {NOISE:.1%} noise; how many of the 95 % intervals hold the truth:"
    yield ""
    yield "| number | intervals that hold it |"
    yield "|---|---|"
    for name, held in hits.items():
        assert sum(held) >= 0.9 * trials, (name, sum(held))
        yield f"| {name} | {sum(held)} |"


Placed = Callable[[int], Sequence[float]]
GRIDS: dict[str, Placed] = {
    "½ to 2 times the best": lambda _: (0.5, 0.7, 1, 1.4, 2),
    "¼ to 4 times": lambda _: (0.25, 0.5, 1, 2, 4),
    "1/10 to 10 times": lambda _: (0.1, 0.32, 1, 3.2, 10),
    "¼ to 4 times, all 2 times too large": lambda _: (0.5, 1, 2, 4, 8),
    "¼ to 4 times, from ½ (smallest budget) to 2 times (largest) off": lambda i: [
        2.0 ** (i / 2 - 1) * f for f in (0.25, 0.5, 1, 2, 4)
    ],
}


def bias() -> Iterator[str]:
    """What parabolas say of points without noise."""
    law = CHINCHILLA
    yield "Chinchilla's law without noise through parabolas (E + A/N^α + B/D^β is no parabola in log N):"
    yield ""
    yield "| sizes tried | best N, found / true | a (true 0.4516) | least loss at 1e19, found − true | N at 1e22, found / true | loss at 1e22, found − true |"  # noqa: E501 - one row
    yield "|---|---|---|---|---|---|"
    for name, placed in GRIDS.items():
        points: list[Measured] = []
        for index, budget in enumerate(BUDGETS):
            points += planted_points(law, budgets=[budget], factors=placed(index))
        fit = fit_isoflop(points, draws=20)
        middle = fit.curves[2]
        yield (
            f"| {name} | {middle.parameters / law.best_size(middle.budget):.3f} | {fit.size.exponent:.4f} "
            f"| {middle.loss - law.best_loss(middle.budget):+.4f} "
            f"| {fit.size.at(1e22) / law.best_size(1e22):.3f} | {fit.loss.at(1e22) - law.best_loss(1e22):+.3f} |"
        )
    yield ""
    yield "The last column is the price of a loss law without E: a straight line in log L falls below the truth."


def main() -> None:
    """Run all proofs and rewrite the page between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/scaling/method.md"))
    parser.add_argument("--trials", type=int, default=100, help="sets of noisy points for the intervals' coverage")
    options = parser.parse_args()
    parts = [recovery(), bias(), coverage(options.trials)]
    text = "\n\n".join("\n".join(part) for part in parts)
    page = options.page.read_text()
    before, rest = page.split(BEGIN)
    command = f"By `python -m tests.prove.scaling --trials {options.trials}`."
    options.page.write_text(f"{before}{BEGIN}\n{command}\n\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
