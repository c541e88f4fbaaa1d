"""`lacuna checkpoint list | verify | prune | diff`, and what `launch.commands.weights` adds."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands import weights
from launch.commands.output import DryRun, Json, print_json, print_table
from launch.commands.weights import checkpoint_at
from runtime.errors import UserError

app = typer.Typer(help="Look after checkpoints.", no_args_is_help=True)
weights.register(app)
Run = Annotated[Path, typer.Argument(help="Run directory, or its checkpoints directory.")]
_LINES = 40  # of tensors that differ, for people


def _root(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{path} is no directory: give a run directory")
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


@app.command("list")
def list_(
    path: Run,
    quick: Annotated[bool, typer.Option("--quick", help="Trust manifests and lengths, read no tensors.")] = False,
    json: Json = False,
) -> None:
    """All checkpoints of a run, each verified; damaged ones are shown as such."""
    from parallel.checkpoint.catalogue import checkpoint_bytes, list_checkpoints
    from runtime.progress import ProgressBar

    root = _root(path)
    if quick:
        entries = list_checkpoints(root, quick=True)
    else:
        with ProgressBar("verify", checkpoint_bytes(root), visible=not json, in_bytes=True) as bar:
            entries = list_checkpoints(root, advance=bar.advance)
    if json:
        print_json([{"step": e.step, "path": str(e.path), "valid": e.valid, "fault": e.fault} for e in entries])
    else:
        sound = "sizes match" if quick else "valid"
        print_table(("step", "path", "state"), [(e.step, e.path, e.fault or sound) for e in entries])


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="One checkpoint, …/step-NNNNNNNN, or a run directory.")],
    json: Json = False,
) -> None:
    """Compare every byte of a checkpoint, or of all of a run, with the manifests. Exit code 2 names what is bad."""
    from parallel.checkpoint.catalogue import verify_checkpoint
    from parallel.checkpoint.manifest import MANIFEST, CheckpointManifest
    from runtime.progress import ProgressBar

    if path.is_dir() and not path.name.startswith("step-") and not (path / MANIFEST).exists():
        _verify_run(path, json)
        return
    size = sum(file.bytes for file in CheckpointManifest.read(path).files.values())
    with ProgressBar("verify", size, visible=not json, in_bytes=True) as bar:
        manifest = verify_checkpoint(path, bar.advance)
    if json:
        print_json({"path": str(path), "step": manifest.step, "files": len(manifest.files), "bytes": size})
    else:
        print(f"{path}: {len(manifest.files)} files, {size:,} bytes, every digest matches")


def _verify_run(path: Path, json: bool) -> None:
    from parallel.checkpoint.catalogue import checkpoint_bytes, list_checkpoints, newest_checkpoint
    from runtime.progress import ProgressBar

    root = _root(path)
    if newest_checkpoint(root) is None:
        raise UserError(f"{path} has no checkpoints: give a run directory, or one checkpoint")
    size = checkpoint_bytes(root)
    with ProgressBar("verify", size, visible=not json, in_bytes=True) as bar:
        entries = list_checkpoints(root, advance=bar.advance)
    faults = [entry.fault for entry in entries if not entry.valid]
    if json:
        listed = [{"step": e.step, "path": str(e.path), "valid": e.valid, "fault": e.fault} for e in entries]
        print_json({"path": str(path), "valid": not faults, "bytes": size, "checkpoints": listed})
    if faults:
        others = f" ({len(faults)} of {len(entries)} checkpoints are damaged)" if len(faults) > 1 else ""
        raise UserError(f"{faults[0]}{others}")
    if not json:
        print(f"{path}: {len(entries)} checkpoints, {size:,} bytes, every digest matches")


@app.command()
def prune(
    path: Run,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest to keep.")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove old checkpoints, once the newest one is verified; those that the run keeps for ever stay."""
    from parallel.checkpoint.catalogue import newest_checkpoint, prune_checkpoints
    from parallel.checkpoint.manifest import CheckpointManifest
    from runtime.progress import ProgressBar

    root = _root(path)
    newest = None if dry_run else newest_checkpoint(root)
    size = sum(file.bytes for file in CheckpointManifest.read(newest).files.values()) if newest else 0
    with ProgressBar("verify", size, visible=not json and size > 0, in_bytes=True) as bar:
        removed = prune_checkpoints(root, keep, dry_run, _permanent_every(root), bar.advance)
    if json:
        print_json({"removed": [str(p) for p in removed], "dry_run": dry_run})
    else:
        for gone in removed:
            print(f"{'would remove' if dry_run else 'removed'} {gone}")


def _permanent_every(root: Path) -> int | None:
    """What the run's own configuration says of permanent checkpoints; nothing where there is none."""
    from pretrain.config import RunConfig
    from pretrain.run_directory import RunDirectory
    from runtime.settings import read_yaml

    config = RunDirectory(root.absolute().parent).config
    if not config.is_file():
        return None
    return RunConfig.parse(read_yaml(config), str(config)).checkpoint.permanent_every


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint, or a run (its newest one).")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    tolerance: Annotated[float, typer.Option(min=0.0, help="‖a - b‖ / ‖a‖ that still counts as equal.")] = 0.0,
    json: Json = False,
) -> None:
    """Compare two checkpoints tensor by tensor, weights and moments. Exit code 0 if all are equal, 1 if not."""
    from dataclasses import asdict

    from parallel.checkpoint.diff import EQUAL, CheckpointDifference
    from runtime.progress import ProgressBar

    comparison = CheckpointDifference(checkpoint_at(first), checkpoint_at(second))
    found = []
    with ProgressBar("compare", len(comparison), visible=not json) as bar:
        for tensor in comparison.tensors(tolerance):
            found.append(tensor)
            bar.advance(1, f"{tensor.kind} {tensor.name}")
    different = [tensor for tensor in found if tensor.state != EQUAL]
    changes = comparison.manifest_changes()
    if json:
        sides = {key: {"a": a, "b": b} for key, (a, b) in changes.items()}
        print_json({"equal": not different, "manifest": sides, "tensors": [asdict(tensor) for tensor in found]})
    else:
        if changes:
            print_table(("manifest", "A", "B"), [(key, a, b) for key, (a, b) in changes.items()])
        if different:
            headings = ("kind", "tensor", "state", "max |a - b|", "‖a - b‖ / ‖a‖", "shapes")
            rows = [
                (t.kind, t.name, t.state, f"{t.largest:.3g}", f"{t.relative:.3g}", _shapes(t.shapes)) for t in different
            ]
            print_table(headings, rows[:_LINES])
            if len(rows) > _LINES:
                print(f"and {len(rows) - _LINES} more tensors that differ; --json shows all")
        print(f"{len(found) - len(different)} of {len(found)} tensors are equal")
    raise typer.Exit(int(bool(different)))


def _shapes(shapes: tuple[object, object]) -> str:
    return str(shapes[0]) if shapes[0] == shapes[1] else f"{shapes[0]}, {shapes[1]}"
