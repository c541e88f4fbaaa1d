"""`lacuna study reversal`: questions about the families, answered by runs on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.commands.output import DryRun, Json, Overrides, print_json, print_table

app = typer.Typer(help="Studies that compare the families.", no_args_is_help=True)


@app.callback()
def _studies() -> None:
    """Keep `reversal` a command of its own while it is the only one."""


@app.command()
def reversal(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Where data and runs are put; the same one again continues.")] = Path(
        "runs/reversal"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each family.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the masked runs (default: the recipe's).")] = None,
    points: Annotated[int, typer.Option(min=1, help="How often a run is asked, at equal shares of its FLOPs.")] = 10,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time on this machine.")] = 1,
    poems: Annotated[Path | None, typer.Option(help="A fortune file of verse (default: Debian's fortunes-zh).")] = None,
    report: Annotated[Path | None, typer.Option(help="Directory for page, picture and table (default: --out).")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Trained on couplets A，B: which line comes before B? Masked diffusion against the baseline at equal FLOPs."""
    from launch.studies.reversal import StudyDirectory, prepare_data, run_study, scores_of, study_runs
    from launch.studies.reversal_report import write_report

    directory = StudyDirectory(out)
    wanted = [*(overrides or []), *([] if steps is None else [f"train.steps={steps}"])]
    if not dry_run:
        prepare_data(directory, poems, show_progress=not json)
    runs = study_runs(directory.data, _vocabulary(directory.data), seeds, points, wanted)
    if dry_run:
        _print_runs(runs, directory.data.exists(), json)
        return
    run_study(directory, runs, processes, show_progress=not json)
    files = write_report(scores_of(directory, runs), runs, report or out)
    if json:
        print_json({"files": [str(path) for path in files]})
    else:
        print("\n".join(str(path) for path in files))


def _vocabulary(data: Path) -> int | None:
    from data_pipeline.manifest import DatasetManifest

    return DatasetManifest.load(data).tokenizer.vocabulary if data.exists() else None


def _print_runs(runs: list[Any], exact: bool, json: bool) -> None:
    rows = [
        {
            "name": run.name,
            "steps": run.config.train.steps,
            "flops": run.flops_per_step * run.config.train.steps,
            "asked_after": list(run.asked_after),
        }
        for run in runs
    ]
    if json:
        print_json({"runs": rows, "exact": exact})
        return
    print_table(
        ("run", "steps", "FLOPs (computed)"),
        [(row["name"], f"{row['steps']:,}", f"{row['flops']:.3g}") for row in rows],
    )
    if not exact:
        print("the data is not there yet: its vocabulary, and so the FLOPs, are guessed")
