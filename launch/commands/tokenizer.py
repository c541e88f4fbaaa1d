"""`lacuna tokenizer evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.output import Json, print_json, print_table

app = typer.Typer(help="Look at tokenizers.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `evaluate` a command of its own."""


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="Directory of a dataset, whose text is encoded.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Another tokenizer than the dataset's own.")] = None,
    documents: Annotated[int, typer.Option(min=1, help="Documents of each source.")] = 1000,
    json: Json = False,
) -> None:
    """Bytes per token by source, byte pieces, vocabulary in use, and whether every text comes back."""
    from data_pipeline.tokenizer.evaluate import evaluate_tokenizer

    values = evaluate_tokenizer(path, tokenizer, documents, progress=not json)
    if json:
        print_json(values)
        return
    print_table(("", ""), [(key, value) for key, value in values.items() if key != "sources"])
    columns = ("documents", "bytes", "tokens", "bytes_per_token", "byte_pieces", "not_exact")
    rows = [(name, *(counts[column] for column in columns)) for name, counts in values["sources"].items()]
    print_table(("source", *(column.replace("_", " ") for column in columns)), rows)
