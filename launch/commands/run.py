"""`lacuna train`, `plan`, `demo`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.commands.output import DryRun, Json, Overrides, Set, human, print_json, print_table
from runtime.errors import UserError

if TYPE_CHECKING:
    from pretrain.config import RunConfig

Device = Annotated[str, typer.Option(help="Device to plan or rehearse for: h200, h100, a100 or b200.")]
Recipe = Annotated[str, typer.Argument(help="A shipped recipe or the path of a YAML file.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(train)
    app.command()(plan)
    app.command()(demo)


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Local worker processes.")] = 1,
    run: Annotated[Path | None, typer.Option(help="Run directory; the same one again continues the run.")] = None,
    until: Annotated[int | None, typer.Option(min=1, help="Stop after this step with a checkpoint.")] = None,
    resume_from: Annotated[str | None, typer.Option(help="Go on from step-N; later checkpoints are set aside.")] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Set damaged newest checkpoints aside; go on from the newest valid one.")
    ] = False,
    allow_fresh: Annotated[
        bool, typer.Option("--allow-fresh", help="Start from step 0 if there are checkpoints but none is valid.")
    ] = False,
    time_limit: Annotated[
        str | None, typer.Option(help="Save and end with code 75 within this time, such as 3h55m.")
    ] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="Write the run directory for torchrun or srun.")] = False,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Build the layout without GPUs; train nothing.")] = False,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes to rehearse.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks a node, for --nodes.")] = 8,
    device: Device = "h200",
    sets: Set = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train in the foreground. The same --run again continues it, under any layout and engine."""
    limit = [] if time_limit is None else [f"train.time_limit={time_limit}"]
    config = _load(recipe, [*(overrides or []), *limit], sets)
    if rehearse or nodes is not None:
        from launch.commands.rehearse import rehearse as build

        build(config, _world(rehearse, nodes, gpus_per_node), device, json)
        return
    from launch.train import check_before_start, prepare_only, resolve_paths, run_local
    from pretrain.planning.plan import plan as make_plan
    from pretrain.resume import ResumeChoice
    from pretrain.run_directory import RunDirectory

    choice = ResumeChoice(resume_from, fallback, allow_fresh)
    directory = run or Path("runs") / config.name
    if dry_run:
        check_before_start(resolve_paths(config), RunDirectory(directory), processes, choice)
        summary = {"run": str(directory), "layout": config.parallel.describe(processes), **make_plan(config, processes)}
        print_json(summary) if json else _print_plan(summary)
        return
    if prepare:
        prepare_only(config, directory, processes, choice)
    else:
        run_local(config, directory, processes, until, choice)
    if json:
        print_json({"run": str(directory), "metrics": str(directory / "metrics.jsonl")})


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Ranks to plan for.")] = None,
    device: Device = "h200",
    mfu: Annotated[float, typer.Option(help="Assumed share of the device's bf16 peak.")] = 0.4,
    gpu_hours_per_interruption: Annotated[float, typer.Option(help="Of all ranks together (Llama 3: 50000).")] = 5e4,
    restart_seconds: Annotated[float, typer.Option(help="From an interruption to the next step.")] = 600.0,
    save_seconds: Annotated[
        float | None, typer.Option(help="What a checkpoint keeps training waiting (default: by its bytes).")
    ] = None,
    sets: Set = None,
    json: Json = False,
) -> None:
    """Parameters, FLOPs, time, checkpoints, goodput, memory per rank and valid layouts of a recipe; starts nothing."""
    from pretrain.planning.interruptions import Interruptions
    from pretrain.planning.plan import plan as make_plan

    interruptions = Interruptions(gpu_hours_per_interruption, restart_seconds, save_seconds)
    result = make_plan(_load(recipe, overrides, sets), gpus, device, mfu, interruptions)
    print_json(result) if json else _print_plan(result)


def demo(
    out: Annotated[Path, typer.Option(help="Where everything is put.")] = Path("runs/demo"),
) -> None:
    """The main job: real text to a trained, resumed, evaluated and sampled model, in minutes on two cores."""
    from launch.demo import run_demo

    run_demo(out)


def _load(recipe: str, overrides: list[str] | None, sets: list[str] | None) -> "RunConfig":
    from launch.recipe import load_recipe

    return load_recipe(recipe, [*(overrides or []), *(sets or [])])


def _world(rehearse: bool, nodes: int | None, gpus_per_node: int) -> int:
    if not rehearse:
        raise UserError("--nodes is for --rehearse: add that, or say --processes N for ranks on this machine")
    if nodes is None:
        raise UserError("--rehearse needs the size of the cluster: give --nodes N")
    return nodes * gpus_per_node


def _interruptions(found: dict[str, Any]) -> str:
    return (
        f"one in {found['mean_hours']:.3g} h assumed, {found['expected']:.3g} in all: goodput {found['goodput']:.1%}; "
        f"a checkpoint every {found['best_every_steps']:,} steps ({found['best_every_seconds'] / 3600:.3g} h) would "
        f"give {found['best_goodput']:.1%}"
    )


def _bytes(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {human(size, 'B')}" for name, size in parts.items())


def _print_plan(result: dict[str, Any]) -> None:
    counts, memory = result["parameters"], result["memory"]["per_rank"]
    time, saved, world = result["time"], result["checkpoints"], f"{result['world']} {result['device']}"
    rows = [
        ("parameters", f"{counts['total']:,} ({counts['non_embedding']:,} without embeddings)"),
        ("run", f"{result['steps']:,} steps, {human(result['tokens'])} tokens"),
        (
            f"time, {world}",
            f"{time['days']:.3g} days, {time['gpu_hours']:,.0f} GPU-hours at an assumed MFU of {time['mfu']:.0%}",
        ),
        (
            "checkpoints",
            f"{human(saved['bytes'], 'B')} every {saved['every_steps']:,} steps ({saved['every_hours']:.3g} h), "
            f"{saved['written']:,} in all, {human(saved['kept_bytes'], 'B')} kept",
        ),
        ("interruptions", _interruptions(result["interruptions"])),
        (f"memory, {world}", _bytes(memory)),
        ("activations by recompute", _bytes(result["memory"]["activations_by_recompute"])),
    ]
    if len(result["stages"]) > 1:
        rows.append(("layers by chunk", " ".join(result["stages"])))
    print_table((result["name"], ""), rows)
    flops = result["flops"]
    counted = [
        (name, human(flops[f"per_token_{name}"]), f"{flops[f'total_{name}']:.2e}", counts)
        for name, counts in flops["conventions"].items()
    ]
    print_table(("FLOPs by convention", "per token", "in all", "what is counted"), counted)
    layouts = [
        (
            row["layout"],
            human(row["memory_bytes"], "B") + ("" if row["fits"] else " (too much)"),
            f"{row['step_seconds']:.3g} s",
            human(row["sent_bytes"], "B"),
            " ".join(row["stages"]),
        )
        for row in result["layouts"]
    ]
    title = f"layouts for {result['world']} {result['device']}, best first (estimates)"
    print_table((title, "per rank", "step", "sent", "layers by chunk"), layouts)
