"""`lacuna doctor`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.commands.output import Json, Overrides, human, print_json, print_table
from runtime.errors import PreflightError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe: also look at its data, room, tracking.")] = None,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Directory in which its checkpoints need room.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Local ranks.")] = 1,
    nodes: Annotated[str | None, typer.Option(help="A number or names of nodes to look at, by srun.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks on each of --nodes.")] = 8,
    cluster: Annotated[
        str | None,
        typer.Option(help="Cluster: how --nodes are asked for (else `gpu`); its bad nodes are remembered."),
    ] = None,
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for all ranks.")] = 120.0,
    json: Json = False,
) -> None:
    """Is this machine, or a group of nodes, fit for a run? Also under torchrun or srun. Exit code 3 if it is not."""
    from launch.doctor.examine import examine
    from launch.doctor.local import Subject
    from launch.doctor.start import on_nodes, on_this_machine
    from launch.slurm.cluster import load_cluster
    from runtime.environment import RankInfo

    rank = RankInfo.from_environment()
    again = ["doctor", *([recipe] if recipe else []), *(overrides or []), "--json", f"--patience={patience}"]
    again += [] if run is None else ["--run", str(run.absolute())]
    if nodes is not None:
        cluster = cluster or "gpu"  # as `lacuna submit` does, which leaves out what is found bad here
    site = load_cluster(cluster) if cluster else None
    if nodes is not None:
        assert site is not None
        found = on_nodes(again, nodes, gpus_per_node, site)
    elif processes > 1 and rank.world == 1:
        found = on_this_machine(again, processes)
    else:
        subject = _subject(recipe, overrides, run, rank.world) if recipe else Subject()
        found = examine(subject, rank, patience).as_dict()
        if not rank.is_first:  # rank 0 speaks for all
            raise typer.Exit(0 if found["ok"] else PreflightError.exit_code)
    kept = _remember(found["exclude"], site)
    if kept is not None:
        found["exclude_file"] = str(kept)
    print_json(found) if json else _print(found)
    if not found["ok"]:
        raise PreflightError(_summary(found))


def _subject(recipe: str, overrides: list[str] | None, run: Path | None, world: int) -> Any:
    from launch.doctor.local import Subject
    from launch.recipe import load_recipe
    from launch.train import resolve_paths
    from pretrain.planning.plan import plan

    config = resolve_paths(load_recipe(recipe, overrides or []))
    return Subject(
        run=run or Path("runs") / config.name,
        checkpoint=plan(config, world)["checkpoints"]["bytes"],
        data=config.data.paths(),
        tracking=config.tracking.uri if config.tracking.enabled else None,
        remote=config.data.remote,
    )


def _remember(exclude: dict[str, str], site: Any) -> Path | None:
    """Add the nodes to the list that `lacuna submit` leaves out, if it is known whose list; returns its file."""
    from launch.slurm.bad_nodes import bad_nodes_file, remember

    if not exclude or site is None:
        return None
    path: Path = bad_nodes_file(site)
    remember(path, exclude, site.bad_nodes.days)
    return path


def _summary(found: dict[str, Any]) -> str:
    lines = [_line(problem) for problem in found["problems"]]
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    if found["exclude"] and "exclude_file" in found:
        mend = f"{', '.join(found['exclude'])} left out of the next submissions"
    elif found["exclude"]:
        mend = f"stay away from {', '.join(found['exclude'])}, or give --cluster and submit will"
    else:
        mend = "mend it, then ask again"
    return f"{lines[0]}{more}: {mend}"


def _line(problem: dict[str, Any]) -> str:
    from launch.doctor.report import Finding

    return Finding(**problem).line


def _print(found: dict[str, Any]) -> None:
    ranks = [
        (rank["rank"], rank["node"], human(rank["gemm"], "FLOP/s"), f"{1000 * rank['clock']:+.1f} ms")
        for rank in found["ranks"]
    ]
    print_table(("rank", "node", "matrix product", "clock"), ranks)
    reduced = [
        (row["group"], row["ranks"], human(row["bytes"], "B"), human(row["bytes_per_second"], "B/s"))
        for row in found["all_reduce"]
    ]
    if reduced:
        print_table(("all-reduce over", "ranks", "size", "bus bandwidth"), reduced)
    for problem in found["problems"]:
        print(f"bad: {problem['check']}: {_line(problem)}")
    if found["ok"]:
        print("all is well")
