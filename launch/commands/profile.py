"""`lacuna profile`: traces of a run under way."""

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from launch.commands.output import Json, print_json
from runtime.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(profile)


def profile(
    run: Annotated[Path, typer.Argument(help="Directory of a run under way.")],
    steps: Annotated[str, typer.Option(help="Steps A:B, both included; +N: N steps soon.")] = "+3",
    ranks: Annotated[str, typer.Option(help="Ranks, such as 0,8,16.")] = "0",
    json: Json = False,
) -> None:
    """Have steps of a run under way written as chrome traces, a file a rank."""
    from pretrain.config import RunConfig
    from pretrain.health.config import ProfileConfig
    from pretrain.run_directory import RunDirectory
    from runtime.files import write_json
    from runtime.settings import read_yaml

    directory = RunDirectory(run)
    config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
    first, last = _range(directory.metrics, steps, 2 * config.watchdog.tick + 1)
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", ranks, re.ASCII):
        raise UserError(f"--ranks {ranks!r:.40} are no ranks: give numbers such as 0,8,16")
    wanted = ProfileConfig.parse({"first": first, "last": last, "ranks": [int(r) for r in ranks.split(",")]}, "--steps")
    write_json(directory.profile_request, wanted.model_dump(mode="json"))
    folder = directory.traces(first, last)
    if json:
        print_json({"run": str(run), "first": first, "last": last, "ranks": list(wanted.ranks), "traces": str(folder)})
        return
    print(f"steps {first} to {last} of ranks {ranks} will be traced: {folder}")


def _range(metrics: Path, steps: str, notice: float) -> tuple[int, int]:
    """First and last step; ranks look for requests within `notice` seconds.

    Raises UserError if that is no range, or has begun already.
    """
    from pretrain.tracking.spool import read_metrics

    lines = read_metrics(metrics) if metrics.exists() else []
    now = int(lines[-1]["step"]) if lines else 0
    if soon := re.fullmatch(r"\+([1-9]\d{0,3})", steps, re.ASCII):
        pace = float(lines[-1].get("perf/step_seconds", 0)) if lines else 0.0
        if not pace:
            raise UserError(f"{metrics.parent} has taken no step yet: give --steps A:B, or set profile.first and .last")
        first = now + 1 + math.ceil(notice / pace)
        return first, first + int(soon[1]) - 1
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", steps, re.ASCII)
    if not found or int(found[1]) < 1 or int(found[2]) < int(found[1]):
        raise UserError(f"--steps {steps!r:.40} is no range: give A:B with both included, or +N for N steps soon")
    if int(found[1]) <= now:
        raise UserError(f"step {found[1]} has been taken already (the run is at {now}): give later steps, or +N")
    return int(found[1]), int(found[2])
