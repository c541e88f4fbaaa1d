"""Runs the grid of layouts, judges every case, and writes its table into docs/parallelism.md.

`python -m tests.prove.grid` runs every combination (about an hour on two cores), where the overlap
switches, which change no arithmetic, stand in the pairwise cover only; `--cases cover` the ones that CI runs.
A case beyond its bounds, with replicas that differ or with a continuation that is another run is named, the page stays
as it is, and the exit code is 1. Results are kept in `runs/grid`, below a digest of the sources: a stopped proof
continues with the launches that are missing, and results of other code are never taken.
"""

import argparse
import datetime
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from runtime.files import read_json, remove_tree, write_json
from tests.integration.test_grid import CI
from tests.prove.page import rewrite
from tests.support.compare import Distance, continuation_faults, distance, distance_faults, replica_faults
from tests.support.grid import Case, all_cases, run_cases
from tests.support.provenance import sources_digest

NAME = "grid"
CASES_PER_LAUNCH = 30  # each mesh makes new groups, and a process holds only so many sockets
SECONDS_PER_LAUNCH = 3600


@dataclass(frozen=True)
class Outcome:
    """A case that was run. `launch`: `date`, `cores`, `torch` and wall `seconds` of its launch; `seconds`: its own."""

    case: Case
    found: Distance
    faults: list[str]
    seconds: float
    launch: dict[str, Any]


def prove(cases: Iterable[Case], work: Path) -> Iterator[Outcome]:
    """Run the launches of `cases` that `work` lacks, and judge every case."""
    cases = list(cases)
    for world in sorted({case.world for case in cases}):
        here = iter([case for case in cases if case.world == world])
        while batch := list(islice(here, CASES_PER_LAUNCH)):
            directory = work / hashlib.sha256(repr(batch).encode()).hexdigest()[:16]
            launch = _launched(batch, directory)
            for case, result in zip(batch, read_json(directory / "results.json"), strict=True):
                found = distance(case, result)
                faults = distance_faults(case, found) + replica_faults(case, result) + continuation_faults(case, result)
                yield Outcome(case, found, faults, result["seconds"], launch)
            print(f"world {world}: {len(batch)} cases", file=sys.stderr, flush=True)


def _launched(batch: Sequence[Case], directory: Path) -> dict[str, Any]:
    """Run `batch` in one launch unless `directory` has its results; when, where and how long that was."""
    done = directory / "launch.json"
    if not done.exists():
        remove_tree(directory)  # what a launch that was stopped has left
        began = time.monotonic()
        run_cases(batch, directory, SECONDS_PER_LAUNCH)
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        place = {"date": date, "cores": len(os.sched_getaffinity(0)), "torch": torch.__version__}
        write_json(done, {**place, "seconds": time.monotonic() - began})
    return dict(read_json(done))


def header(outcomes: Sequence[Outcome], command: str) -> str:
    """What was run when, where and how long, in the words of the page; the same for the same results."""
    launches = list({id(outcome.launch): outcome.launch for outcome in outcomes}.values())
    dates, cores, versions = (sorted({str(launch[key]) for launch in launches}) for key in ("date", "cores", "torch"))
    ci = [outcome for outcome in outcomes if outcome.case in CI]
    return (
        f"{len(outcomes)} cases in {len({outcome.case.world for outcome in outcomes})} worlds by `{command}`, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {' and '.join(cores)} cores, "
        f"torch {' and '.join(versions)}. Batch digests, replicas and continued runs are equal in all, the rest is "
        f"within the bounds above. "
        f"{len(launches)} launches took {sum(launch['seconds'] for launch in launches) / 60:.0f} minutes. "
        f"The {len(ci)} of them that CI runs, in {len({outcome.case.world for outcome in ci})} launches, "
        f"took {sum(outcome.seconds for outcome in ci) / 60:.1f} minutes, starts of processes and the reference apart."
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table, worst figures last."""
    lines = [
        "| layout and data | loss | gradient norm | first gradients | weights / Σlr |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {outcome.case.name} | {_figures([outcome.found])} |" for outcome in outcomes]
    groups: dict[str, list[Distance]] = {}
    for outcome in outcomes:
        precision, edge = outcome.case.precision, outcome.case.data == "edge"
        groups.setdefault(f"{precision} cases" + " with edge data" * edge, []).append(outcome.found)
    lines += [f"| **worst of {len(found)} {words}** | {_figures(found)} |" for words, found in sorted(groups.items())]
    return "\n".join(lines)


def _figures(found: Sequence[Distance]) -> str:
    kinds = ("loss", "grad_norm", "gradient", "weight")
    return " | ".join(f"{max(getattr(each, kind) for each in found):.1e}" for kind in kinds)


def publish(outcomes: Sequence[Outcome], page: Path, command: str) -> int:
    """Rewrite the table in `page` and return 0; if any case has a fault, name them all, change nothing, return 1."""
    faulty = [outcome for outcome in outcomes if outcome.faults]
    for outcome in faulty:
        print(f"{outcome.case.name}: {'; '.join(outcome.faults)}", file=sys.stderr)
    if faulty:
        print(f"{len(faulty)} of {len(outcomes)} cases failed: {page} stays as it was", file=sys.stderr)
        return 1
    rewrite(page, NAME, f"{header(outcomes, command)}\n\n{table(outcomes)}")
    return 0


def main() -> int:
    """Parse arguments, run, judge and publish; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", choices=("all", "cover"), default="all")
    parser.add_argument("--work", type=Path, default=Path("runs/grid"))
    parser.add_argument("--page", type=Path, default=Path("docs/parallelism.md"))
    options = parser.parse_args()
    full = [case for case in all_cases() if not case.parallel.get("overlap")] if options.cases == "all" else []
    outcomes = list(prove([*CI, *(case for case in full if case not in CI)], options.work / sources_digest()))
    return publish(outcomes, options.page, f"python -m tests.prove.grid --cases {options.cases}")


if __name__ == "__main__":
    sys.exit(main())
