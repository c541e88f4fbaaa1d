"""Runs the grid of layouts and writes its table into docs/parallelism.md.

`python -m tests.prove.grid` runs every combination (about an hour on two cores), where the overlap
switches, which change no arithmetic, stand in the pairwise cover only; `--cases cover` the ones that CI runs.
Results are kept in `runs/grid`, so that a stopped proof continues with the launches that are missing.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from runtime.files import remove_tree
from tests.integration.test_grid import COVER, SPECIAL
from tests.support.compare import Distance, distance
from tests.support.grid import Case, all_cases, run_cases

CASES_PER_LAUNCH = 30  # each mesh makes new groups, and a process holds only so many sockets
SECONDS_PER_LAUNCH = 3600
BEGIN, END = "<!-- grid: begin -->", "<!-- grid: end -->"


def prove(cases: Sequence[Case], work: Path) -> Iterator[tuple[Case, Distance]]:
    """Run `cases` launch by launch and yield how far each is from the reference."""
    for world in sorted({case.world for case in cases}):
        here = iter([case for case in cases if case.world == world])
        while batch := list(islice(here, CASES_PER_LAUNCH)):
            directory = work / hashlib.sha256(repr(batch).encode()).hexdigest()[:16]
            done = directory / "results.json"
            if not done.exists():
                remove_tree(directory)  # what a launch that was stopped has left
                run_cases(batch, directory, SECONDS_PER_LAUNCH)
            found = json.loads(done.read_text())
            for case, result in zip(batch, found, strict=True):
                yield case, distance(case, result)
            print(f"world {world}: {len(batch)} cases", file=sys.stderr, flush=True)


def table(rows: Sequence[tuple[Case, Distance]]) -> str:
    """A Markdown table, worst figures last."""
    lines = [
        "| layout and data | digests | loss | gradient norm | first gradients | weights / Σlr |",
        "|---|---|---|---|---|---|",
    ]
    for case, found in rows:
        figures = " | ".join(f"{x:.1e}" for x in (found.loss, found.grad_norm, found.gradient, found.weight))
        lines.append(f"| {case.name} | {'equal' if found.digests_equal else 'DIFFER'} | {figures} |")
    exact = [found for case, found in rows if case.precision == "fp32" and case.data != "edge"]
    worst = " | ".join(f"{max(getattr(f, k) for f in exact):.1e}" for k in ("loss", "grad_norm", "gradient", "weight"))
    lines.append(f"| **worst of {len(exact)} fp32 cases (edge data apart)** | | {worst} |")
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, run, and rewrite the table between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", choices=("all", "cover"), default="all")
    parser.add_argument("--page", type=Path, default=Path("docs/parallelism.md"))
    options = parser.parse_args()
    full = [case for case in all_cases() if not case.parallel.get("overlap")] if options.cases == "all" else []
    cases = [*SPECIAL, *COVER, *(case for case in full if case not in COVER)]
    rows = list(prove(cases, Path("runs") / "grid"))
    text = options.page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    command = f"`python -m tests.prove.grid --cases {options.cases}`"
    options.page.write_text(f"{before}{BEGIN}\n{len(rows)} cases, by {command}.\n\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main()
