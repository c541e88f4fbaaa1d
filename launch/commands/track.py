"""`lacuna track sync`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.output import Json, print_json

app = typer.Typer(help="Show runs to MLflow.", no_args_is_help=True)


@app.command()
def sync(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    uri: Annotated[str | None, typer.Option(help="MLflow tracking URI (default: the run's own).")] = None,
    json: Json = False,
) -> None:
    """Send MLflow what it does not have yet of a run, every point once."""
    from launch.tracking import sync_run
    from pretrain.run_directory import RunDirectory

    report = sync_run(RunDirectory(run), uri)
    if json:
        print_json({"points": report.points, "steps": report.steps, "run_id": report.run_id})
    else:
        print(f"{run}: {report.points} points of {report.steps} steps sent to MLflow run {report.run_id}")
