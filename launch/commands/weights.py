"""`lacuna checkpoint reshard | export | import`: state and weights in other files."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.output import DryRun, Json, Overrides, human, print_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer
    from parallel.checkpoint.manifest import CheckpointManifest
    from parallel.checkpoint.reshard import Division

Source = Annotated[Path, typer.Argument(help="A checkpoint, …/step-NNNNNNNN, or a run directory (its newest one).")]


class Format(StrEnum):
    """Layouts of Hugging Face."""

    llada = "llada"
    llama = "llama"


class Dtype(StrEnum):
    """Types that weights are written in."""

    fp32 = "fp32"
    bf16 = "bf16"


class NewRows(StrEnum):
    """How rows of the embedding and head begin that the files do not have."""

    mean = "mean"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(reshard)
    app.command()(export)
    app.command("import")(import_)


def checkpoint_at(path: Path) -> Path:
    """The checkpoint `path`, or the newest one of the run or checkpoints directory `path`. Raises UserError."""
    from parallel.checkpoint.catalogue import newest_checkpoint
    from parallel.checkpoint.manifest import MANIFEST

    if path.name.startswith("step-") or (path / MANIFEST).exists():
        return path
    newest = newest_checkpoint(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if newest is None:
        raise UserError(f"{path} has no checkpoint: give one, or a run directory")
    return newest


def reshard(
    path: Source,
    out: Annotated[Path, typer.Option(help="New directory step-NNNNNNNN, or one to put it into.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="More of --layout.")] = None,
    files: Annotated[int | None, typer.Option(min=1, help="So many files, equally long.")] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(help="A file a rank of this layout: keys of the section parallel, and processes=N."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Rewrite a checkpoint in other files, for readers that want them so; loading never needs it."""
    from parallel.checkpoint.manifest import CheckpointManifest
    from parallel.checkpoint.reshard import even_division, total_bytes
    from parallel.checkpoint.reshard import reshard as rewrite
    from runtime.progress import ProgressBar

    keys = [*(layout or []), *(more or [])]
    if (files is None) == (not keys):
        raise UserError("give one of --files N and --layout KEY=VALUE …: how the files shall be cut")
    source = checkpoint_at(path)
    manifest = CheckpointManifest.read(source)
    final = out if out.name.startswith("step-") else out / f"step-{manifest.step:08d}"
    if final.name != f"step-{manifest.step:08d}":
        raise UserError(f"--out {out} is not named after step {manifest.step}: use step-{manifest.step:08d}")
    division = _layout_division(manifest, keys, json) if keys else even_division(manifest.shapes, files or 1)
    size = total_bytes(division)
    if not dry_run:
        with ProgressBar("reshard", size, visible=not json, in_bytes=True) as bar:
            rewrite(source, manifest, division, final, bar.advance)
    sizes = [total_bytes([pieces]) for pieces in division]
    if json:
        print_json({"path": str(final), "files": len(sizes), "bytes": size, "file_bytes": sizes, "dry_run": dry_run})
    else:
        verb = "would write" if dry_run else "wrote"
        print(f"{verb} {final}: {len(sizes)} files, {human(min(sizes), 'B')} to {human(max(sizes), 'B')} each")


def _layout_division(manifest: "CheckpointManifest", keys: list[str], json: bool) -> "Division":
    """The files of a layout's ranks, from `key=value` of the section `parallel` and `processes`."""
    import os
    import warnings

    from parallel.layout import ParallelConfig
    from pretrain.divide import checkpoint_config, rank_division
    from runtime.progress import ProgressBar
    from runtime.settings import parse_yaml

    values = {}
    for text in " ".join(keys).replace(",", " ").split():
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--layout {text!r} is not key=value, for example tensor=2")
        values[key.removeprefix("parallel.")] = parse_yaml(value)
    processes = values.pop("processes", None)
    parallel = ParallelConfig.parse(values, "--layout")
    world = parallel.model_size if processes is None else processes
    if not isinstance(world, int) or isinstance(world, bool) or world < 1:
        raise UserError(f"--layout processes={processes!r} is no number of processes: give 1 or more")
    config = checkpoint_config(manifest, parallel, "--layout")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing is computed, and played ranks must not meet on real devices
    with warnings.catch_warnings(), ProgressBar("ranks", world, visible=not json) as bar:
        warnings.simplefilter("ignore")  # the engines give many
        return rank_division(config, world, bar.advance)


def export(
    path: Source,
    out: Annotated[Path, typer.Option(help="New directory.")],
    format_: Annotated[Format | None, typer.Option("--format", help="Default: the one of the objective.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="bf16 rounds the weights.")] = Dtype.fp32,
    shard_bytes: Annotated[int, typer.Option(min=1, help="Usual size of a file.")] = 5_000_000_000,
    tokenizer: Annotated[Path | None, typer.Option(help="Model file or dataset (default: the run's data).")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write the weights as Hugging Face files: LLaDA's layout for masked diffusion, LLaMA's for the baseline."""
    from pretrain.interop.export import prepare_export

    checkpoint = checkpoint_at(path)
    layout = None if format_ is None else format_.value
    plan = prepare_export(checkpoint, _tokenizer_of(checkpoint, tokenizer), layout, dtype.value, shard_bytes)
    if not dry_run:
        plan.write(out, show_progress=not json)
    summary = {"path": str(out), **plan.summary(), "dry_run": dry_run}
    if json:
        print_json(summary)
    else:
        verb = "would write" if dry_run else "wrote"
        print(
            f"{verb} {out}: {summary['format']} layout, {summary['tensors']} tensors, {human(plan.bytes, 'B')} "
            f"of {plan.dtype} in {summary['shards']} files, step {summary['step']}"
        )


def _tokenizer_of(checkpoint: Path, given: Path | None) -> "Tokenizer":
    from data_pipeline.dataset import TokenDataset
    from data_pipeline.tokenizer import Tokenizer
    from pretrain.config import RunConfig
    from pretrain.run_directory import RunDirectory
    from runtime.settings import read_yaml

    if given is not None:
        return Tokenizer.load(given)
    run = RunDirectory(checkpoint.absolute().parent.parent)
    if not run.config.is_file():
        raise UserError(f"{checkpoint} is not in a run directory, which names the tokenizer: give it with --tokenizer")
    config = RunConfig.parse(read_yaml(run.config), str(run.config))
    return TokenDataset(config.data.sources()[0][0], remote=config.data.remote).open_tokenizer()


def import_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="config.json and safetensors files.")],
    recipe: Annotated[str, typer.Option(help="A shipped recipe or the path of a YAML file.")],
    run: Annotated[Path, typer.Option(help="Run directory that shall begin with these weights.")],
    overrides: Overrides = None,
    new_rows: Annotated[NewRows | None, typer.Option(help="How rows begin that the files do not have.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make the checkpoint of step 0 from LLaDA or LLaMA weights; `lacuna train` then goes on from it."""
    from data_pipeline.dataset import SampleReader
    from launch.recipe import load_recipe, write_config
    from launch.train import leased, resolve_paths
    from parallel.checkpoint.catalogue import newest_checkpoint
    from parallel.checkpoint.store import step_directory
    from pretrain.interop.importer import prepare_import
    from pretrain.run_directory import RunDirectory
    from pretrain.session import build_objective, run_identity

    config = resolve_paths(load_recipe(recipe, overrides or []))
    target = RunDirectory(run)
    if (newest := newest_checkpoint(target.checkpoints)) is not None:
        raise UserError(f"{run} has {newest.name} already: give another --run")
    train = config.train
    reader = SampleReader(config.data, train.sequence_length, train.seed, global_batch=train.global_batch)
    build_objective(config, reader.manifests[0].tokenizer)
    plan = prepare_import(directory, config, reader.datasets[0].open_tokenizer(), new_rows and new_rows.value)
    final = step_directory(target.checkpoints, 0)
    if not dry_run:
        with leased(target, config.lease):
            plan.write(final, run_identity(config, reader.digest_before(0)), show_progress=not json)
            write_config(target.config, config)
    summary = {"path": str(final), **plan.summary(), "dry_run": dry_run}
    if json:
        print_json(summary)
        return
    print(f"{'would write' if dry_run else 'wrote'} {final}: {summary['tensors']} tensors from {plan.layout} layout")
    for note in plan.notes():
        print(note)
