"""`lacuna checkpoint list | verify | prune`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.output import DryRun, Json, print_json, print_table
from runtime.errors import UserError

app = typer.Typer(help="Look after checkpoints.", no_args_is_help=True)
Run = Annotated[Path, typer.Argument(help="Run directory, or its checkpoints directory.")]


def _root(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path} is no directory: give a run directory")
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


@app.command("list")
def list_(path: Run, json: Json = False) -> None:
    """All checkpoints of a run, each verified."""
    from parallel.checkpoint.catalogue import list_checkpoints

    entries = list_checkpoints(_root(path))
    if json:
        print_json([{"step": e.step, "path": str(e.path), "valid": e.valid, "fault": e.fault} for e in entries])
    else:
        print_table(("step", "path", "state"), [(e.step, e.path, e.fault or "valid") for e in entries])


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="One checkpoint, …/step-NNNNNNNN.")], json: Json = False) -> None:
    """Compare every file of a checkpoint with its manifest. Exit code 2 names the bad file."""
    from parallel.checkpoint.catalogue import verify_checkpoint

    manifest = verify_checkpoint(path)
    size = sum(file.bytes for file in manifest.files.values())
    if json:
        print_json({"path": str(path), "step": manifest.step, "files": len(manifest.files), "bytes": size})
    else:
        print(f"{path}: {len(manifest.files)} files, {size:,} bytes, every digest matches")


@app.command()
def prune(
    path: Run,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest to keep.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove old checkpoints, once the newest one is verified."""
    from parallel.checkpoint.catalogue import prune_checkpoints

    removed = prune_checkpoints(_root(path), keep, dry_run)
    if json:
        print_json({"removed": [str(p) for p in removed], "dry_run": dry_run})
    else:
        for gone in removed:
            print(f"{'would remove' if dry_run else 'removed'} {gone}")
