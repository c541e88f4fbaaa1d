"""`lacuna scaling plan | run | shape` for sweeps, `fit | report` for their points."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.commands.output import DryRun, Json, human, print_json, print_table

if TYPE_CHECKING:
    from launch.sweep import LoadedSweep

app = typer.Typer(help="Scaling laws: sweeps, fits and reports.", no_args_is_help=True)

SweepPath = Annotated[Path, typer.Argument(help="YAML file of the sweep.")]
Points = Annotated[list[Path], typer.Argument(help="CSV files of points, or directories of sweeps.")]
Convention = Annotated[str | None, typer.Option(help="How the FLOPs of CSV files are counted, for instance 6nd.")]
Draws = Annotated[int, typer.Option(min=20, help="Bootstrap draws behind each interval.")]


@app.command()
def plan(sweep: SweepPath, json: Json = False) -> None:
    """Points of a sweep: sizes, tokens, steps, batch, learning rate, cost, warnings; starts nothing."""
    from launch.sweep import load_sweep, sweep_summary

    summary = sweep_summary(load_sweep(sweep, need_data=False))
    print_json(summary) if json else _print_sweep(summary)


@app.command()
def run(
    sweep: SweepPath,
    out: Annotated[Path, typer.Option(help="Where the runs are put; the same one again continues.")],
    processes: Annotated[
        int | None, typer.Option(min=1, help="Points at a time (default: 1 here, all on Slurm).")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="Submit the points as a Slurm array; name or path.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="The sweep's table, kept here too: its points are done, others are added.")
    ] = None,
    collect: Annotated[bool, typer.Option(help="Run nothing: write the table of the points that are done.")] = False,
    track: Annotated[bool, typer.Option(help="Show the points to MLflow.")] = True,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow's URI (default: mlflow.db below --out).")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train and validate every point of a sweep that is not done yet, here or as a Slurm array."""
    from launch.sweep import SweepDirectory, collect_sweep, load_sweep, run_sweep, sweep_summary
    from runtime.errors import UserError

    if cluster is not None and collect:
        raise UserError("--collect runs nothing: leave out --cluster, or --collect")
    loaded = load_sweep(sweep, need_data=True, table=table)
    if cluster is not None:
        _submit_array(loaded, sweep, out, cluster, processes, dry_run, json)
    elif dry_run:
        summary = sweep_summary(loaded)
        print_json(summary) if json else _print_sweep(summary)
    else:
        if collect:
            done = collect_sweep(loaded, out, track, tracking_uri)
        else:
            run_sweep(loaded, out, processes or 1, track, tracking_uri)
            done = len(loaded.points)
        written = SweepDirectory(out).table
        print_json({"points": done, "table": str(written)}) if json else print(f"{done} points in {written}")


def _submit_array(
    loaded: "LoadedSweep", sweep: Path, out: Path, cluster: str, at_once: int | None, dry_run: bool, json: bool
) -> None:
    from launch.slurm.cluster import load_cluster
    from launch.slurm.sweep_array import prepare_array, submit_array

    script, waiting = prepare_array(loaded, sweep, out, load_cluster(cluster), at_once)
    if dry_run:
        print_json({"points": waiting, "script": script}) if json else print(script, end="")
        return
    job = submit_array(loaded, out, script)
    if json:
        print_json({"points": waiting, "job": job})
    else:
        print(f"{len(waiting)} points wait in the queue as job {job}; logs in {out / 'logs'}")
        print(f"the table so far: lacuna scaling run {sweep} --out {out} --collect")


@app.command()
def shape(
    family: Annotated[str, typer.Argument(help="llada or ar.")],
    size: Annotated[str, typer.Argument(help="1B, 7B, 8B, or weights in the layers, for example 3e8.")],
    vocabulary: Annotated[int, typer.Option(min=1)] = 126_464,
    json: Json = False,
) -> None:
    """The model shape of a size."""
    from pretrain.scaling.families import shape_of_size

    found = shape_of_size(family, size, vocabulary)
    counts = found.parameters()
    values = {key: getattr(found, key) for key in ("layers", "width", "heads", "kv_heads", "ffn", "vocabulary")}
    sizes = {"non_embedding": counts.non_embedding_matrices, "total": counts.total}
    if json:
        print_json({**values, "parameters": sizes})
    else:
        print("model:")
        print("\n".join(f"  {key}: {value}" for key, value in values.items()))
        print(f"# {sizes['non_embedding']:,} weights in the layers, {sizes['total']:,} parameters")


@app.command()
def fit(
    points: Points,
    budget: Annotated[float | None, typer.Option(help="Predict the best run for so many FLOPs.")] = None,
    write_recipe: Annotated[Path | None, typer.Option(help="Write the recipe of the predicted run.")] = None,
    family: Annotated[str, typer.Option(help="Family of that recipe.")] = "masked",
    recipe: Annotated[str, typer.Option(help="What that recipe takes all else from.")] = "llada-8b",
    convention: Convention = None,
    draws: Draws = 500,
    json: Json = False,
) -> None:
    """Fit IsoFLOP parabolas and the parametric law to points; compare families; predict for a budget."""
    from launch import scaling_study
    from pretrain.scaling.predict import predict
    from pretrain.scaling.report import lines
    from runtime.errors import UserError

    if write_recipe is not None and budget is None:
        raise UserError("--write-recipe needs --budget: say for how many FLOPs")
    study = scaling_study.study_of(points, convention, draws)
    found = predict(study, budget) if budget is not None else []
    if write_recipe is not None:
        scaling_study.write_recipe(found, family, recipe, write_recipe, scaling_study.sweep_behind(points))
    if json:
        print_json({**study.as_dict(), "predictions": found})
    else:
        print("\n".join([*lines(study), *(row["text"] for row in found)]))


@app.command()
def report(
    points: Points,
    out: Annotated[Path, typer.Option(help="Directory for the page, plots and tables.")],
    convention: Convention = None,
    draws: Draws = 500,
    json: Json = False,
) -> None:
    """Write plots, the tables behind them, and a page that compares with published fits."""
    from launch.scaling_study import study_of
    from pretrain.scaling.report import write_report

    files = write_report(study_of(points, convention, draws), out)
    if json:
        print_json({"files": [str(path) for path in files]})
    else:
        print("\n".join(str(path) for path in files))


def _print_sweep(summary: dict[str, Any]) -> None:
    rows = [
        (
            row["family"],
            f"{row['flops']:.3g}",
            human(row["parameters"]),
            f"{row['layers']}×{row['width']}",
            human(row["tokens"]),
            f"{row['steps']:,} × {row['global_batch']}",
            f"{row['lr']:.2g}",
            f"{row['epochs']:.3g}",
        )
        for row in summary["points"]
    ]
    print(f"{summary['name']}: FLOPs of training by the convention {summary['convention']}")
    print_table(("family", "FLOPs", "N", "shape", "D", "steps × batch", "lr", "epochs"), rows)
    for row in summary["points"]:
        for warning in row["warnings"]:
            print(f"{row['name']}: {warning}")
    hours = summary["process_hours"]
    estimate = "" if hours is None else f", about {hours:.2g} hours of one process at the sweep's expected_rate"
    data = "" if summary["data_tokens"] else "; the data is not there yet, so repeats are unknown"
    print(
        f"{len(rows)} points: {summary['training_flops']:.3g} FLOPs of training (computed), "
        f"{summary['evaluation_flops']:.3g} of validation{estimate}{data}"
    )
