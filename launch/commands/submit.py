"""`lacuna submit`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from launch.commands.output import DryRun, Json, Overrides, human, print_json

Recipe = Annotated[str, typer.Argument(help="A shipped recipe or the path of a YAML file.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(submit)


def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the job.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks per node, a GPU each (CPU clusters: ranks).")] = 8,
    cluster: Annotated[str, typer.Option(help="A shipped cluster file or the path of one.")] = "gpu",
    run: Annotated[Path | None, typer.Option(help="Run directory; the same one again continues the run.")] = None,
    chain: Annotated[int, typer.Option(min=1, max=100, help="Jobs, one after the other, instead of requeues.")] = 1,
    time: Annotated[str | None, typer.Option(help="Time limit of a job, instead of the cluster file's.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Check a run, write its directory and job script, and put it into Slurm's queue."""
    from launch.recipe import load_recipe
    from launch.slurm.cluster import ClusterConfig, load_cluster
    from launch.slurm.submit import SCRIPT, Request, prepare
    from launch.slurm.submit import submit as submit_prepared

    config, site = load_recipe(recipe, overrides or []), load_cluster(cluster)
    if time is not None:
        ClusterConfig.parse({"name": site.name, "time": time}, "--time")
    directory = run or Path("runs") / config.name
    prepared = prepare(Request(config, site, directory, nodes, gpus_per_node, chain, time))
    root = prepared.request.run
    if dry_run:
        print_json({"run": str(root), "script": prepared.script, **prepared.plan}) if json else print(
            prepared.script, end=""
        )
        return
    jobs = submit_prepared(prepared)
    if json:
        print_json({"run": str(root), "jobs": jobs, "script": str(root / SCRIPT)})
        return
    quoted, memory = shlex.quote(str(root)), human(prepared.plan["memory"]["per_rank"]["total"], "B")
    print(
        f"job {', '.join(jobs)}: {nodes * gpus_per_node} ranks, {config.parallel.describe(nodes * gpus_per_node)}, "
        f"about {memory} a rank\n"
        f"  script   {root / SCRIPT}\n"
        f"  follow   lacuna status {quoted} --watch\n"
        f"           lacuna logs {quoted} --follow\n"
        f"  stop     lacuna stop {quoted}"
    )
