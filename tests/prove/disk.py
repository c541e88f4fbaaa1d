"""Lets the disk fail at every call by which a save writes, and writes what came of it into docs/reliability.md.

`python -m tests.prove.disk` fails each call with EIO, with EROFS, and with ENOSPC from there on, on one and two ranks,
with synchronous and background saves; and fills a real small file system, if it may mount one. Results are kept in
`runs/disk`, below a digest of the sources: a stopped proof continues, and results of other code are never taken.
"""

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.prove.page import rewrite
from tests.support.mounting import mounting_command
from tests.support.provenance import sources_digest

NAME = "disk"
SECONDS = 3000
SHARES = [k / 12 for k in range(14)]
ERRORS = [errno.EIO, errno.EROFS]
_ON_A_SMALL_DISK = 'mount -t tmpfs -o size=4m tmpfs "$1" && shift && exec "$@"'


def prove(work: Path, stride: int) -> list[dict[str, Any]]:
    """Run the trials that are missing and return their results. Raises AssertionError if one fails."""
    results = []
    for world in (1, 2):
        for background in (False, True):
            words = f"{world} {'rank' if world == 1 else 'ranks'}, {'async' if background else 'sync'}"
            for kind in ("calls", "full"):
                if kind == "full" and mounting_command() is None:
                    print("no real full disk: neither root nor user namespaces may mount here", file=sys.stderr)
                    continue
                folder = work / f"{kind}, {words}, {stride}"
                if not (folder / "result.json").exists():
                    run(folder, world, background, stride, kind == "full")
                result = json.loads((folder / "result.json").read_text())
                results.append({**result, "kind": kind, "setting": words})
                print(f"{kind}, {words}: {len(result['found'])} faults", file=sys.stderr, flush=True)
    return results


def run(folder: Path, world: int, background: bool, stride: int, full: bool) -> None:
    """One trial in processes of its own; `folder` then holds `result.json`."""
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "run"
    root.mkdir(parents=True)
    plan = {"root": str(root), "background": background, "stride": stride, "errors": ERRORS, "compared": 40}
    (folder / "plan.json").write_text(json.dumps({**plan, "shares": SHARES if full else []}))
    launch = [sys.executable, "-m"]
    if world > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    command = [*launch, "tests.support.disk_faults", str(folder / "plan.json")]
    if full:
        command = [*(mounting_command() or []), "sh", "-c", _ON_A_SMALL_DISK, "sh", str(root), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{folder.name}: {done.stderr[-4000:]}"


def report(results: Sequence[dict[str, Any]], stride: int) -> str:
    """Markdown: faults by call, and what the run made of them."""
    calls = [one for result in results if result["kind"] == "calls" for one in result["found"]]
    full = [one for result in results if result["kind"] == "full" for one in result["found"]]
    every = "every call" if stride == 1 else f"each {stride}-th call"
    lines = [
        f"{len(calls)} faults at {every}, {len(full)} on a full file system, by `python -m tests.prove.disk`. After "
        "each, training went on with the same losses, all published checkpoints were valid, and the next save worked.",
        "",
        "| the call that failed | faults | said so, not published | said so, published | went on, published |",
        "|---|---|---|---|---|",
    ]
    for met in dict.fromkeys(one["met"] for one in calls):
        lines.append(f"| {met} | {_counts([one for one in calls if one['met'] == met])} |")
    if full:
        lines.append(f"| (full file system) | {_counts(full)} |")
    return "\n".join(lines)


def _counts(found: Sequence[dict[str, Any]]) -> str:
    kinds = [(one["told"], one["published"]) for one in found]
    numbers = [len(kinds), *(kinds.count(kind) for kind in ((True, False), (True, True), (False, True)))]
    return " | ".join(map(str, numbers))


def main() -> None:
    """Parse arguments, run, and rewrite the report between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stride", type=int, default=1, help="fail only each n-th call")
    parser.add_argument("--work", type=Path, default=Path("runs/disk"))
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    work = options.work.absolute() / sources_digest("tests/prove/disk.py")
    rewrite(options.page, NAME, report(prove(work, options.stride), options.stride))


if __name__ == "__main__":
    main()
