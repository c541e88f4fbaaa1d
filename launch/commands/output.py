"""What commands print: one JSON object for scripts, a plain table for people."""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An override, like KEY=VALUE.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the recipe.")]


def print_json(value: Any) -> None:
    """One JSON value on standard output; JSON has no words for nan and infinities, they stand as null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)
    print(text, flush=True)  # a command that goes on may have a reader behind a pipe


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table whose columns fit their content."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(soft_wrap=False).print(table)


def human(number: float, unit: str = "") -> str:
    """1234567 → `1.23 M`; units follow the SI."""
    for limit, prefix in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()
