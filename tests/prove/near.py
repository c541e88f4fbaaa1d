"""Plants near-copies at known similarities, and writes who finds how many into docs/data.md.

`python -m tests.prove.near`: the passes of a build and datasketch's usual loop decide about the same texts.
"""

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from tests.prove.flips import rewrite
from tests.support.near_copies import PERMUTATIONS, THRESHOLD, N, dropped_by_datasketch, dropped_by_us, plant

BEGIN, END = "<!-- near: begin -->", "<!-- near: end -->"
CHANGES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 60)
BORDERS = (0.0, 0.5, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.01)
TOLERANCE = 0.15
"""How far from the threshold the two may disagree."""


def table(copies: dict[int, tuple[int, float]], ours: set[int], theirs: set[int]) -> str:
    """Copies by similarity, and how many of them each drops."""
    lines = ["| similarity | copies | dropped by a build | by datasketch |", "|---|---:|---:|---:|"]
    for low, high in pairwise(BORDERS):
        inside = {copy for copy, (_, truth) in copies.items() if low <= truth < high}
        name = f"{low:.2f} to {min(high, 1):.2f}"
        lines.append(f"| {name} | {len(inside)} | {len(inside & ours)} | {len(inside & theirs)} |")
    return "\n".join(lines)


def quality(dropped: set[int], alike: set[int]) -> str:
    """Recall and precision in words."""
    found = len(dropped & alike)
    return f"recall {found / len(alike):.1%}, precision {found / len(dropped):.1%}"


def main() -> None:
    """Parse arguments, run, and rewrite the table between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=100, help="copies of each sort")
    parser.add_argument("--page", type=Path, default=Path("docs/data.md"))
    options = parser.parse_args()
    texts, copies = plant(CHANGES * options.copies)
    with tempfile.TemporaryDirectory() as folder:
        ours = dropped_by_us(texts, Path(folder))
    theirs = dropped_by_datasketch(texts)
    alike = {copy for copy, (_, truth) in copies.items() if truth >= THRESHOLD}
    apart = max((abs(copies[copy][1] - THRESHOLD) for copy in ours ^ theirs), default=0.0)
    good = ours <= set(copies) and apart <= TOLERANCE
    note = (
        f"{len(copies)} copies among {len(texts)} texts, {N}-grams of words, {PERMUTATIONS} hashes, threshold "
        f"{THRESHOLD}. A build: {quality(ours, alike)}; datasketch: {quality(theirs, alike)}. They disagree about "
        f"{len(ours ^ theirs)} copies, none farther than {apart:.3f} from the threshold; "
        f"originals dropped: {len(ours - set(copies))}. (`python -m tests.prove.near`)"
    )
    rewrite(options.page, BEGIN, END, f"{note}\n\n{table(copies, ours, theirs)}")
    print(note)
    sys.exit(not good)


if __name__ == "__main__":
    main()
