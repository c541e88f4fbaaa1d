"""Kills runs with SIGKILL at seeded points, resumes them, and writes what came of it into docs/reliability.md.

`python -m tests.prove.kill` takes 50 points, half of them in steps and half inside saves, over one and two ranks and
synchronous and background saves. Results are kept in `runs/kill`, below a digest of the sources: a stopped proof
continues where it was, and results of other code are never taken.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.files import write_json
from tests.prove.page import rewrite
from tests.support.kill_points import (
    EVERY,
    STEPS,
    Point,
    Setting,
    choose_points,
    prepare,
    reference,
    run_point,
)
from tests.support.provenance import sources_digest

SETTINGS = [Setting(world, background) for world in (1, 2) for background in (False, True)]
NAME = "kill"


def prove(count: int, seed: int, work: Path) -> list[tuple[Point, dict[str, Any]]]:
    """Run the points that are missing. Raises AssertionError at the first that fails."""
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    references = {setting: reference(work, setting) for setting in SETTINGS}
    first = references[SETTINGS[0]]
    for setting, found in references.items():
        assert setting.world > 1 or found.manifest == first.manifest, "background saves differ from synchronous ones"
    rows = []
    for point in choose_points(count, seed, references):
        done = work / f"point-{seed}-{point.number:02d}.json"
        if not done.exists():
            began = time.monotonic()
            shutil.rmtree(work / f"point {point.number:02d}", ignore_errors=True)
            result = run_point(work, point, references[point.setting])
            write_json(done, {**result, "seconds": round(time.monotonic() - began, 1), "point": repr(point)})
        result = json.loads(done.read_text())
        assert result["point"] == repr(point), f"{done} is of another choice of points: remove {work}"
        print(f"{point.number + 1}/{count} {point.place}: lost {result['lost']} steps", file=sys.stderr, flush=True)
        rows.append((point, result))
    return rows


def report(rows: Sequence[tuple[Point, dict[str, Any]]], seed: int) -> str:
    """Markdown: what was killed where, and what was lost."""
    places = list(dict.fromkeys(point.place for point, _ in sorted(rows, key=lambda row: row[0].place != "step")))
    lines = [
        f"{len(rows)} points by `python -m tests.prove.kill --points {len(rows)} --seed {seed}`; {STEPS} steps, a "
        f"checkpoint every {EVERY}. All resumed to the same metrics, weights and moments, bit by bit.",
        "",
        "| killed | " + " | ".join(setting.name for setting in SETTINGS) + " | one rank, all ranks, launcher |",
        "|---|" + "---|" * (len(SETTINGS) + 1),
    ]
    for place in places:
        here = [point for point, _ in rows if point.place == place]
        counts = [str(sum(point.setting == setting for point in here)) for setting in SETTINGS]
        kinds = ("rank", "ranks", "launcher")
        victims = ", ".join(str(sum(point.victims.split()[0] == kind for point in here)) for kind in kinds)
        where = "in a step" if place == "step" else f"in a save: {place}"
        lines.append(f"| {where} | {' | '.join(counts)} | {victims} |")
    lines.append("")
    for background, words in ((False, "synchronous saves"), (True, "background saves")):
        lost = [result["lost"] for point, result in rows if point.setting.background == background]
        if lost:
            lines.append(
                f"- Steps lost with {words}: {max(lost)} at most, {sum(lost) / len(lost):.1f} on average "
                f"(bound: one interval; here {EVERY})"
            )
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, run, and rewrite the report between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/kill"))
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    work = options.work.absolute() / sources_digest("tests/prove/kill.py")
    rows = prove(options.points, options.seed, work)
    rewrite(options.page, NAME, report(rows, options.seed))


if __name__ == "__main__":
    main()
