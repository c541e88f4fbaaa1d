"""Reports of proofs in pages of the documentation, each between markers of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def rewrite(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, which must be there once."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def renew_rows(page: Path, name: str, head: Sequence[str], rows: Mapping[str, str], order: Sequence[str]) -> None:
    """Rewrite a table, `head` and rows in `order` of their first cells; those not among `rows` stay as they are."""
    text = page.read_text().split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]
    there = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    found = {**there, **rows}
    rewrite(page, name, "\n".join([*head, *(found[first] for first in order if first in found)]))
