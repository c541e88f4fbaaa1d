"""From files of points to fits, and from a fitted law to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.recipe import dump_config, load_recipe
from launch.sweep import SWEEP_FILE
from pretrain.config import RunConfig
from pretrain.flops import forward_flops_per_token
from pretrain.scaling.families import shape_of_size
from pretrain.scaling.points import Measured, read_points
from pretrain.scaling.rules import DeepSeekRule
from pretrain.scaling.study import BASELINE, MASKED, Study, make_study
from pretrain.scaling.sweep import IsoFlopSweep, SchedulePlan, Sweep, initial_std, parse_sweep, trained_share
from pretrain.shape import ModelShape
from runtime.errors import UserError
from runtime.files import read_json, write_atomic

_SHAPES = {MASKED: "llada", BASELINE: "ar"}


def study_of(paths: list[Path], convention: str | None, draws: int) -> Study:
    """Fit the points of CSV files and of sweeps' directories (`lacuna scaling run --out`).

    A sweep says how its FLOPs were counted; for CSV files `convention` does. Raises UserError if they disagree or hold
    no points, and for what `read_points` and the fits refuse.
    """
    points: list[Measured] = []
    named = {convention} if convention else set()
    for path in paths:
        if path.is_dir():
            named.add(str(read_json(path / SWEEP_FILE)["convention"]))
            points += read_points(path / "points.csv")
        else:
            points += read_points(path)
    if len(named) > 1:
        raise UserError(f"points are counted by {' and by '.join(sorted(named))}: fit them apart")
    if not points:
        raise UserError(f"{' and '.join(map(str, paths))}: no points yet: give a line for each trained model")
    return make_study(points, named.pop() if named else "as given", draws)


def sweep_behind(paths: list[Path]) -> Sweep | None:
    """The sweep whose rule a recipe for a prediction follows: those of `paths` that have budgets, else any; None for
    CSV files alone.

    Raises UserError if they differ in rule, schedule or shape families that they share.
    """
    found = [
        (path, parse_sweep(read_json(path / SWEEP_FILE), str(path / SWEEP_FILE))) for path in paths if path.is_dir()
    ]
    chosen = [one for one in found if isinstance(one[1], IsoFlopSweep)] or found
    if not chosen:
        return None
    (first_path, first), *others = chosen
    families = dict(first.families)
    for path, other in others:
        for kind, family in other.families.items():
            families.setdefault(kind, family)
        if (other.rule, other.schedule) != (first.rule, first.schedule) or families != {**families, **other.families}:
            raise UserError(
                f"--write-recipe: {first_path} and {path} differ in rule, schedule or families: give those of one rule"
            )
    return first.model_copy(update={"families": families})


def write_recipe(
    rows: list[dict[str, Any]], family: str, recipe: str, path: Path, sweep: Sweep | None = None
) -> RunConfig:
    """Write the recipe of the run predicted for `family`: its shape, steps, batch and rate, all else from `recipe`.

    The parametric law's prediction if there is one. Batch, rate, schedule, shape family and initialisation are those
    that `sweep` gives its points; without one, DeepSeek's rule. D counts tokens trained on, so a masked run with
    samples of random length has more steps. Raises UserError for a family without prediction or shape rule.
    """
    chosen = [row for row in rows if row["family"] == family]
    shapes: dict[str, str] = {**_SHAPES}
    if sweep is not None:
        shapes |= {str(kind): name for kind, name in sweep.families.items()}
    if not chosen or family not in shapes:
        known = ", ".join(sorted({row["family"] for row in rows} & set(shapes)))
        raise UserError(f"--family {family!r}: a recipe can be written for {known or 'masked or autoregressive only'}")
    row, base = chosen[-1], load_recipe(recipe, [])
    shape = shape_of_size(shapes[family], row["parameters"]["value"], base.model.vocabulary)
    values = base.model_dump()
    values["name"] = f"{family}-{row['budget']:.2e}".replace("+", "")
    if base.objective.kind != family:
        values["objective"] = {"kind": family}
    kept = {"rope_theta": base.model.rope_theta, "norm_epsilon": base.model.norm_epsilon}
    values["model"] = {**shape.model_dump(), **kept}
    if sweep is not None:
        values["model"]["init_std"] = initial_std(shape)
    positions = row["tokens"]["value"] / trained_share(RunConfig.parse(values, str(path)))
    values = _with_batch(values, base, shape, positions, sweep)
    config = RunConfig.parse(values, str(path))
    head = f"# {row['text']}\n# batch and learning rate by {_rule_said(sweep)}; all else as in {recipe}\n"
    write_atomic(path, head + dump_config(config))
    return config


def _rule_said(sweep: Sweep | None) -> str:
    if sweep is None:
        return "arXiv 2401.02954"
    keys = ", ".join(f"{key} {value}" for key, value in sweep.rule.model_dump().items())
    return f"the rule of the sweep {sweep.name} ({keys}), schedule and initialisation too"


def _with_batch(
    values: dict[str, Any], base: RunConfig, shape: ModelShape, positions: float, sweep: Sweep | None
) -> dict[str, Any]:
    """`values` with batch, steps, rate and schedule for `positions` tokens of input."""
    length, causal = base.train.sequence_length, values["objective"]["kind"] == BASELINE
    layers = forward_flops_per_token(shape, length, causal, head_rows=0.0).times(3.0).total
    rule = DeepSeekRule() if sweep is None else sweep.rule
    found = rule.at(shape.parameters().non_embedding_matrices, positions, layers * positions)
    unit = base.train.micro_batch * base.parallel.model_size
    batch = max(1, round(found.batch_tokens / length / unit)) * unit
    steps = max(1, round(positions / (batch * length)))
    plan = SchedulePlan() if sweep is None else sweep.schedule
    optimizer = {"lr": float(f"{found.lr:.3g}"), "schedule": plan.over(steps * batch * length)}
    return {
        **values,
        "train": {**values["train"], "global_batch": batch, "steps": steps},
        "optimizer": {**values["optimizer"], **optimizer},
    }
