"""`lacuna data build | append | merge | split | verify | stats | simulate | pack | audit`."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.commands.output import DryRun, Json, print_json, print_table
from runtime.errors import UserError

if TYPE_CHECKING:
    from data_pipeline.manifest import DatasetManifest, SourceInfo
    from pretrain.audit import Audit

app = typer.Typer(help="Build and check datasets.", no_args_is_help=True)
Processes = Annotated[int | None, typer.Option(min=1, help="Worker processes; all cores if not given.")]


class PackingName(StrEnum):
    """Packings that need an index."""

    best_fit = "best_fit"
    document = "document"


Dataset = Annotated[Path, typer.Argument(help="Directory of a dataset.")]


@app.command()
def build(
    config: Annotated[Path, typer.Option(help="YAML file: sources, tokenizer, shards.")],
    out: Annotated[Path, typer.Option(help="New directory of the dataset.")],
    processes: Processes = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Text to deduplicated, tokenized, digested shards. What a killed build finished is taken up by the next."""
    from data_pipeline.build import Means, build_dataset
    from data_pipeline.config import BuildConfig
    from runtime.settings import read_yaml

    settings = BuildConfig.parse(read_yaml(config), str(config))
    if dry_run:
        print_json(settings.model_dump(mode="json"))
        return
    _print_summary(out, build_dataset(settings, out, means=Means(processes, show_progress=not json)), json)


@app.command()
def append(
    path: Dataset,
    config: Annotated[Path, typer.Option(help="YAML file as for `build`, with the dataset's own tokenizer.")],
    processes: Processes = None,
    json: Json = False,
) -> None:
    """Add sources to a dataset as new shards after its own; documents that it has already are dropped."""
    from data_pipeline.append import append_sources
    from data_pipeline.build import Means
    from data_pipeline.config import BuildConfig
    from runtime.settings import read_yaml

    settings = BuildConfig.parse(read_yaml(config), str(config))
    _print_summary(path, append_sources(path, settings, Means(processes, show_progress=not json)), json)


@app.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(help="Directories of datasets of one tokenizer.")],
    out: Annotated[Path, typer.Option(help="New directory of the dataset.")],
    json: Json = False,
) -> None:
    """One dataset of the shards of several, linked where the file system can."""
    from data_pipeline.combine import merge_datasets

    _print_summary(out, merge_datasets(paths, out, progress=not json), json)


@app.command()
def split(
    path: Dataset,
    out: Annotated[Path, typer.Option(help="New directory, which will hold a dataset for each part.")],
    parts: Annotated[int | None, typer.Option(min=1, help="As many datasets, each of the next shards.")] = None,
    json: Json = False,
) -> None:
    """Several datasets of one: by shards with --parts, else one for each source."""
    from data_pipeline.combine import split_by_shards, split_by_source

    made = (
        split_by_shards(path, out, parts, progress=not json) if parts else split_by_source(path, out, progress=not json)
    )
    values = [{name: of.tokens for name, of in manifest.splits.items()} for manifest in made]
    print_json({"path": str(out), "parts": values}) if json else print(f"{out}: {len(made)} datasets")


@app.command()
def verify(path: Dataset, processes: Processes = None, json: Json = False) -> None:
    """Compare every byte of a dataset with its manifest. Exit code 2 names what is damaged."""
    from data_pipeline.verify import verify_dataset

    report = verify_dataset(path, progress=not json, processes=processes)
    if json:
        print_json({"path": str(path), "valid": report.ok, "problems": list(report.problems)})
    report.require_ok()
    if not json:
        print(f"{path}: {report.files} files, {report.tokens:,} tokens, every digest matches")


@app.command()
def stats(
    path: Dataset,
    plot: Annotated[Path | None, typer.Option(help="Write a histogram of document lengths to this PNG file.")] = None,
    processes: Processes = None,
    json: Json = False,
) -> None:
    """Documents, tokens and bytes by source."""
    from data_pipeline.stats import dataset_stats, plot_lengths

    values = dataset_stats(path, progress=not json, processes=processes)
    if plot is not None:
        plot_lengths(values, plot)
    if json:
        print_json(values)
        return
    print_table(("", ""), [(key, value) for key, value in values.items() if not isinstance(value, dict | list)])
    for key, value in values.items():
        if isinstance(value, dict):
            print_table((key, ""), list(value.items()))


@app.command()
def simulate(
    tokens: Annotated[float, typer.Option(min=1, help="Tokens of all data, as in 5e12.")],
    ranks: Annotated[int, typer.Option(min=1, help="Data-parallel ranks.")],
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens of a sample.")] = 4096,
    global_batch: Annotated[int | None, typer.Option(min=1, help="Samples of a step; 4 a rank if not given.")] = None,
    sources: Annotated[int, typer.Option(min=1, max=256, help="Datasets; shares and weights are 1 : 2 : 3 ….")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps of which every sample is looked at.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Another order.")] = 0,
    json: Json = False,
) -> None:
    """Start and walk a run of any size without data: what a rank pays, and whether its order is a good one."""
    from data_pipeline.simulate import Workload
    from data_pipeline.simulate import simulate as walk

    if not math.isfinite(tokens):
        raise UserError(f"--tokens {tokens} is not a number of tokens")
    workload = Workload(int(tokens), ranks, sequence_length, global_batch or 0, sources, seed, steps)
    values = walk(workload, progress=not json)
    if json:
        print_json(values)
        return
    shown = {
        key: f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
        for key, value in values.items()
        if key != "p_values"
    }
    print_table(("", ""), list(shown.items()))
    print_table(
        ("probability that chance looks worse", ""), [(name, f"{p:.3g}") for name, p in values["p_values"].items()]
    )


@app.command()
def pack(
    path: Dataset,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a window: train.sequence_length.")],
    packing: Annotated[PackingName, typer.Option(help="As data.packing.")] = PackingName.best_fit,
    json: Json = False,
) -> None:
    """Decide once which pieces of documents make a window, for runs with that data.packing."""
    from data_pipeline.dataset import TokenDataset
    from data_pipeline.manifest import DatasetManifest
    from data_pipeline.windows import write_index

    streams = [TokenDataset(path, split) for split in DatasetManifest.load(path).splits]
    index, splits = write_index(streams, length, packing.value, progress=not json)
    if json:
        print_json({"path": str(index), "splits": splits})
        return
    for name, found in splits.items():
        filled = found["tokens"] / max(1, found["windows"] * length)
        print(f"{index}: {name}, {found['windows']:,} windows of {length}, {filled:.2%} filled")


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    steps: Annotated[int, typer.Option(min=1, help="At most so many steps are read again.")] = 256,
    json: Json = False,
) -> None:
    """Prove what each source has given, and that no window was used twice in an epoch. Exit code 3 if it is not so."""
    from dataclasses import asdict

    from pretrain.audit import audit_run
    from pretrain.run_directory import RunDirectory

    found = audit_run(RunDirectory(run), steps, show_progress=not json)
    if json:
        print_json(asdict(found))
    found.require_proof()
    if not json:
        _print_audit(found)


def _print_audit(found: "Audit") -> None:
    rows = [
        (s.path, f"{s.samples:,}", f"{s.windows:,}", f"{s.epochs:.4f}", s.complete_epochs, s.quarantined)
        for s in found.sources
    ]
    print_table(("source", "samples", "windows", "epochs", "complete", "left out"), rows)
    print(
        f"{found.run}: {found.samples:,} samples of {found.steps:,} steps, no window twice in an epoch; "
        f"{found.steps_read:,} batch digests of {found.steps_logged:,} found again"
    )


def _print_summary(path: Path, manifest: "DatasetManifest", json: bool) -> None:
    summary = {name: {"tokens": split.tokens, "documents": split.documents} for name, split in manifest.splits.items()}
    counts = {source.name: _counts(source) for source in manifest.sources}
    if json:
        print_json({"path": str(path), "splits": summary, "sources": counts})
        return
    print(f"{path}: {summary}")
    for name, of in counts.items():
        seen = ", ".join(f"{key.replace('_', ' ')} {count:,}" for key, count in of.items())
        print(f"{name}: {seen or 'nothing'}")


def _counts(source: "SourceInfo") -> dict[str, int]:
    """What became of the source's documents: all counts that are not 0."""
    keys = (
        "documents",
        "duplicates",
        "near_duplicates",
        "undecodable",
        "without_text",
        "empty",
        "oversized",
        "damaged",
    )
    found = {key: getattr(source, key) for key in keys} | source.filtered
    return {key: count for key, count in found.items() if count}
