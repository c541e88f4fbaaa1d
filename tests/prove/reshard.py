"""Every layout loads every other's checkpoint, bit for bit, and trains on as if nothing had happened.

`python -m tests.prove.reshard` saves after three steps under each layout of `tests.support.matrix`, loads that under
each (itself, too), saves again, takes three more steps, and compares with the runs that were never interrupted. It
rewrites its section of docs/reliability.md and ends with 1 if a pair is not as it must be.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoint.diff import EQUAL, CheckpointDifference
from tests.support.compare import largest
from tests.support.matrix import LAST, LAYOUTS, SAVED, curve, launch

# relative, of losses and gradient norms. In bf16 a rounding is up to 2^-8: the mean loss stays within one, as those of
# the tokens cancel; the gradient goes back through all blocks, which round again: five. Measured: 4.4e-4 and 4.8e-3
TOLERANCE = {"fp32": (1e-5, 1e-5), "bf16": (2**-8, 5 * 2**-8)}
SECONDS_PER_LAUNCH = 3600
BEGIN, END = "<!-- reshard: begin -->", "<!-- reshard: end -->"


@dataclass(frozen=True)
class Pair:
    """A checkpoint of `source` under `target`.

    `round_trip`: tensors (weights and both moments) that are bit-equal after load and save, of `tensors`. `loss`,
    `grad_norm`: largest relative difference of the following steps from the source's own. `weights`: largest
    ‖a - b‖ / ‖a‖ of a weight after them. `same_bits`: nothing at all differs in these steps.
    """

    source: str
    target: str
    tensors: int
    round_trip: int
    loss: float
    grad_norm: float
    weights: float
    same_bits: bool

    @property
    def tolerance(self) -> tuple[float, float]:
        """Of losses and gradient norms: that of bf16 if one of both layouts computes in it."""
        both = {LAYOUTS[self.source].precision, LAYOUTS[self.target].precision}
        return TOLERANCE["bf16" if "bf16" in both else "fp32"]

    @property
    def proven(self) -> bool:
        """Whether the pair is as it must be."""
        near = self.loss <= self.tolerance[0] and self.grad_norm <= self.tolerance[1]
        return self.round_trip == self.tensors and near and (self.same_bits or self.source != self.target)


def compare(source: str, target: str, original: dict[str, Any], found: dict[str, Any]) -> Pair:
    """Judge one pair from the results of both launches."""
    trip = list(CheckpointDifference(Path(original["saved"]), Path(found["saved"])).tensors())
    expected, seen = curve(original), curve(found)
    last = list(CheckpointDifference(expected.last, seen.last).tensors())
    same_curve = (expected.losses, expected.grad_norms) == (seen.losses, seen.grad_norms)
    return Pair(
        source,
        target,
        len(trip),
        sum(tensor.state == EQUAL for tensor in trip),
        _relative(expected.losses, seen.losses),
        _relative(expected.grad_norms, seen.grad_norms),
        largest(tensor.relative for tensor in last if tensor.kind == "weight"),
        same_curve and all(tensor.state == EQUAL for tensor in last),
    )


def _relative(expected: Sequence[float], seen: Sequence[float]) -> float:
    return largest(abs(a - b) / abs(a) for a, b in zip(expected, seen, strict=True))


def prove(names: Sequence[str], work: Path) -> Iterator[Pair]:
    """Run all ordered pairs of layouts `names`, a launch a world, below the empty directory `work`."""
    by_world: dict[int, list[str]] = {}
    for name in names:
        by_world.setdefault(LAYOUTS[name].world, []).append(name)
    original: dict[str, Any] = {}
    for world, here in by_world.items():
        original |= launch(here, {}, work / f"original-{world}", SECONDS_PER_LAUNCH)
        print(f"world {world}: {len(here)} layouts trained", file=sys.stderr, flush=True)
    sources = {name: result["saved"] for name, result in original.items()}
    for world, here in by_world.items():
        found = launch(here, sources, work / f"loaded-{world}", SECONDS_PER_LAUNCH)
        for target, results in found.items():
            yield from (compare(source, target, original[source], result) for source, result in results.items())
        shutil.rmtree(work / f"loaded-{world}")
        print(f"world {world}: {len(here) * len(sources)} pairs", file=sys.stderr, flush=True)


def prove_together(names: Sequence[str], work: Path) -> list[Pair]:
    """The same for layouts of one world, in a single launch in the directory `work`, which must not exist."""
    found = launch(list(names), {}, work, SECONDS_PER_LAUNCH, each_other=True)
    original = found["original"]
    return [
        compare(source, target, original[source], result)
        for target, results in found["loaded"].items()
        for source, result in results.items()
    ]


def table(pairs: Sequence[Pair]) -> str:
    """A Markdown table, for each loading layout its worst figures over all sources of each precision."""
    lines = [
        "| loaded under | ranks | from | bit-equal tensors after load and save | loss | gradient norm | weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for target, precision in dict.fromkeys((pair.target, LAYOUTS[pair.source].precision) for pair in pairs):
        here = [pair for pair in pairs if (pair.target, LAYOUTS[pair.source].precision) == (target, precision)]
        trips = f"{sum(p.round_trip for p in here)} of {sum(p.tensors for p in here)}"
        worst = " | ".join(f"{max(getattr(p, key) for p in here):.1e}" for key in ("loss", "grad_norm", "weights"))
        lines.append(f"| {target} | {LAYOUTS[target].world} | {len(here)} layouts in {precision} | {trips} | {worst} |")
    return "\n".join(lines)


def report(pairs: Sequence[Pair]) -> str:
    """The section of the page."""
    own = [pair for pair in pairs if pair.source == pair.target]
    proven = sum(pair.proven for pair in pairs)
    single, half = TOLERANCE["fp32"][0], TOLERANCE["bf16"]
    lines = [
        f"{len(pairs)} ordered pairs of {len(own)} layouts, {proven} as they must be: every tensor (float32 weights, "
        f"both moments) bit-equal after load and save, losses and gradient norms of steps {SAVED + 1} to {LAST} within "
        f"{single:.0e} of the run that saved and was not interrupted; where one of both computes in bf16, within "
        f"{half[0]:.1e} and {half[1]:.1e}. Under the layout that saved, {sum(pair.same_bits for pair in own)} of "
        f"{len(own)} go on with the same bits. Figures are the worst of each row: relative differences of those steps, "
        "and ‖a - b‖ / ‖a‖ of the weights after them.",
        "",
        table(pairs),
    ]
    lines += [f"\n**Not as it must be:** {pair}" for pair in pairs if not pair.proven]
    return "\n".join(lines)


def main() -> None:
    """Run and rewrite the section between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lacuna-reshard-") as work:
        pairs = list(prove(options.layouts, Path(work)))
    text = options.page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    options.page.write_text(f"{before}{BEGIN}\n{report(pairs)}\n{END}{after}")
    sys.exit(any(not pair.proven for pair in pairs))


if __name__ == "__main__":
    main()
