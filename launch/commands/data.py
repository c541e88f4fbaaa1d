"""`lacuna data build | verify | stats`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.output import DryRun, Json, print_json, print_table

app = typer.Typer(help="Build and check datasets.", no_args_is_help=True)
Dataset = Annotated[Path, typer.Argument(help="Directory of a dataset.")]


@app.command()
def build(
    config: Annotated[Path, typer.Option(help="YAML file: sources, tokenizer, shards.")],
    out: Annotated[Path, typer.Option(help="New directory of the dataset.")],
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes; all cores if not given.")] = None,
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
    manifest = build_dataset(settings, out, means=Means(processes, show_progress=not json))
    summary = {name: {"tokens": split.tokens, "documents": split.documents} for name, split in manifest.splits.items()}
    print_json({"path": str(out), "splits": summary}) if json else print(f"{out}: {summary}")


@app.command()
def verify(path: Dataset, json: Json = False) -> None:
    """Compare every byte of a dataset with its manifest. Exit code 2 names what is damaged."""
    from data_pipeline.verify import verify_dataset

    report = verify_dataset(path, progress=not json)
    if json:
        print_json({"path": str(path), "valid": report.ok, "problems": list(report.problems)})
    report.require_ok()
    if not json:
        print(f"{path}: {report.files} files, {report.tokens:,} tokens, every digest matches")


@app.command()
def stats(path: Dataset, json: Json = False) -> None:
    """Documents, tokens and bytes by source."""
    from data_pipeline.verify import dataset_stats

    values = dataset_stats(path)
    if json:
        print_json(values)
        return
    print_table(("", ""), [(key, value) for key, value in values.items() if not isinstance(value, dict | list)])
    for key, value in values.items():
        if isinstance(value, dict):
            print_table((key, ""), list(value.items()))
