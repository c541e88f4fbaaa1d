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
from runtime.errors import UserError
from runtime.files import read_json, write_atomic

_SHAPES = {MASKED: "llada", BASELINE: "ar"}


def study_of(paths: list[Path], convention: str | None, draws: int) -> Study:
    """Fit the points of CSV files and of sweeps' directories (`lacuna scaling run --out`).

    A sweep says how its FLOPs were counted; for CSV files `convention` does. Raises UserError if they disagree, or
    what `read_points` and the fits refuse.
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
    return make_study(points, named.pop() if named else "as given", draws)


def write_recipe(rows: list[dict[str, Any]], family: str, recipe: str, path: Path) -> RunConfig:
    """Write the recipe of the run predicted for `family`: its shape, steps, batch and rate, all else from `recipe`.

    The parametric law's prediction if there is one. Raises UserError for a family without prediction or shape rule.
    """
    chosen = [row for row in rows if row["family"] == family]
    if not chosen or family not in _SHAPES:
        known = ", ".join(sorted({row["family"] for row in rows} & set(_SHAPES)))
        raise UserError(f"--family {family!r}: a recipe can be written for {known or 'masked or autoregressive only'}")
    row = chosen[-1]
    base = load_recipe(recipe, [])
    size, tokens = row["parameters"]["value"], row["tokens"]["value"]
    shape = shape_of_size(_SHAPES[family], size, base.model.vocabulary)
    values = base.model_dump()
    values["name"] = f"{family}-{row['budget']:.2e}".replace("+", "")
    if base.objective.kind != family:
        values["objective"] = {"kind": family}
    kept = {"rope_theta": base.model.rope_theta, "norm_epsilon": base.model.norm_epsilon}
    values["model"] = {**shape.model_dump(), **kept}
    length, causal = base.train.sequence_length, family == BASELINE
    layers = forward_flops_per_token(shape, length, causal, head_rows=0.0).times(3.0).total
    rule = DeepSeekRule().at(size, tokens, layers * tokens)
    unit = base.train.micro_batch * base.parallel.model_size
    batch = max(1, round(rule.batch_tokens / length / unit)) * unit
    values["train"] |= {"global_batch": batch, "steps": max(1, round(tokens / (batch * length)))}
    warmup = round(0.02 * tokens)
    values["optimizer"] |= {"lr": float(f"{rule.lr:.3g}"), "schedule": {"kind": "wsd", "warmup": warmup}}
    config = RunConfig.parse(values, str(path))
    head = f"# {row['text']}\n# batch and learning rate by arXiv 2401.02954; all else as in {recipe}\n"
    write_atomic(path, head + dump_config(config))
    return config
