"""`lacuna status`, `logs`, `stop`, `requeue`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.output import Json, human, print_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from launch.status import RunStatus

_SECONDS = 5.0
Run = Annotated[Path, typer.Argument(help="Run directory.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(status)
    app.command()(logs)
    app.command()(stop)
    app.command()(requeue)


def status(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories (default: those in runs/).")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every few seconds, until Ctrl-C.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="First note the end of runs that were killed, and show it to MLflow.")
    ] = False,
    json: Json = False,
) -> None:
    """What runs are doing: state, step, loss, speed, time left, last checkpoint, restarts, goodput."""
    import time

    from launch.status import run_statuses

    roots = runs or sorted(path.parent for path in Path("runs").glob("*/run.json"))
    if not roots:
        raise UserError("there are no runs in runs/: name run directories")
    if repair:
        from launch.repair import repair_runs

        for line in repair_runs(roots):
            print(f"lacuna: {line}", file=sys.stderr)
    if json:
        while True:
            print_json([asdict(found) for found in run_statuses(roots)])
            if not watch:
                return
            time.sleep(_SECONDS)
    from rich.console import Console
    from rich.live import Live

    if not watch:
        Console().print(_table(run_statuses(roots)))
        return
    with Live(_table(run_statuses(roots)), auto_refresh=False) as live:
        while True:
            time.sleep(_SECONDS)
            live.update(_table(run_statuses(roots)), refresh=True)


def logs(
    run: Run,
    rank: Annotated[int, typer.Option(min=0, help="Whose log.")] = 0,
    attempt: Annotated[int | None, typer.Option(min=0, help="Which attempt, from 0 (default: the last).")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more, through restarts.")] = False,
    job: Annotated[bool, typer.Option("--job", help="The output of the Slurm job instead.")] = False,
) -> None:
    """What a rank has logged, or what the job has printed."""
    from launch.run_log import job_log, rank_log
    from pretrain.run_directory import RunDirectory

    directory = RunDirectory(run)
    if job:
        print(job_log(directory).read_text(errors="replace"), end="")
        return
    for line in rank_log(directory, rank, attempt, follow):
        print(line, flush=follow)


def stop(run: Run) -> None:
    """Let a run save and end, under Slurm or on this machine; its waiting jobs leave the queue."""
    from launch.slurm.control import stop as stop_run
    from pretrain.run_directory import RunDirectory

    print(f"{run}: {stop_run(RunDirectory(run))}")


def requeue(run: Run) -> None:
    """Send a run back into the queue: a running job saves first, a held one is released, a gone one comes back."""
    from launch.slurm.control import requeue as requeue_run
    from pretrain.run_directory import RunDirectory

    print(f"{run}: {requeue_run(RunDirectory(run))}")


def _table(found: "list[RunStatus]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    headings = ("run", "state", "job", "step", "tokens", "loss", "tokens/s", "MFU", "left", "saved", "restarts")
    for heading in (*headings, "goodput"):
        table.add_column(heading, overflow="fold")
    for row in found:
        more = "; ".join(filter(None, [row.reason, row.slow and f"slow: {row.slow}"]))
        state = f"{row.state} ({more})" if more else row.state
        cells = (
            row.run,
            state,
            " ".join(row.jobs) or "-",
            f"{row.step}/{row.steps}",
            human(row.tokens),
            _number(row.loss, ".4f"),
            "-" if row.tokens_per_second is None else human(row.tokens_per_second),
            _number(row.mfu, ".1%"),
            "-" if row.eta_seconds is None else duration(row.eta_seconds),
            "-" if row.checkpoint is None else str(row.checkpoint),
            str(row.restarts),
            _number(None if row.goodput is None else row.goodput["share"], ".1%"),
        )
        table.add_row(*(escape(cell) for cell in cells))
    return table


def duration(seconds: float) -> str:
    """95 → `1m35s`, 90000 → `1d1h`: the two largest units that there are."""
    parts: list[str] = []
    left = round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
