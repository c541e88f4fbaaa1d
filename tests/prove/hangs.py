"""A rank of two hangs in each place where one can; writes what was seen into docs/reliability.md.

`python -m tests.prove.hangs` (about two minutes on two cores, an estimate).
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.prove.page import rewrite
from tests.support.hang_points import deadline, hang, limits
from tests.support.launched import Launched
from tests.support.small_recipe import write_small_recipe

_LIMIT = 6.0
_PLACES = {
    "data": "assembling a batch never ends",
    "collective": "it does not come to the agreement before a step",
    "step": "its forward pass sleeps",
    "save": "writing its shard never ends",
    "interpreter": "C code in its forward pass holds the interpreter",
}


def _at(where: str, recipe: Path, run: Path) -> str:
    """One row of the table."""
    step = 12
    found = hang(recipe, run, {"rank": 1, "where": where, "step": step}, *limits(_LIMIT), every=5)
    assert found.ranks == [1], found
    assert found.seconds <= deadline(_LIMIT), found
    own = found.stack(1)
    assert "hanging_worker.py" in own, own
    assert found.stack(0), "no stack of the rank that waits"
    return f"{found.seconds:.1f} s | rank 1 | {_without_host(found.message)} | 0 and 1"


def _without_host(line: str) -> str:
    return line.partition(" on ")[2].partition(" ")[2]


def _stopped(recipe: Path, run: Path) -> str:
    """SIGSTOP, under `lacuna train`."""
    launched = Launched(recipe, run, "--processes", "2", *limits(_LIMIT))
    launched.workers()[1].send_signal(signal.SIGSTOP)
    began = time.time()
    ended = launched.end()
    (verdict,) = (run / "logs/0").glob("watch-*/hang.json")
    seconds = verdict.stat().st_mtime - began
    line = ended.stderr.splitlines()[-1]
    (stack,) = (run / "logs/0").glob("watch-*/stack-00001.txt")
    assert "train" in stack.read_text()
    assert ended.returncode == 76, ended
    assert line.startswith("lacuna: rank 1 on "), line
    told = _without_host(line.partition("; stacks")[0])
    assert seconds <= deadline(_LIMIT), seconds
    return f"{seconds:.1f} s | rank 1 | {told} | 0 and 1"


def main() -> None:
    """Run all and rewrite the table between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started goes too
    rows = []
    with tempfile.TemporaryDirectory(prefix="lacuna-hangs-") as folder:
        recipe = write_small_recipe(Path(folder))
        for where, what in _PLACES.items():
            rows.append(f"| {what} | {_at(where, recipe, Path(folder) / where)} |")
            print(rows[-1], file=sys.stderr, flush=True)
        rows.append(f"| it is stopped (SIGSTOP) | {_stopped(recipe, Path(folder) / 'stopped')} |")
        print(rows[-1], file=sys.stderr, flush=True)
    head = [
        "| rank 1 | found, after the last line of metrics or the signal | named | told | stacks of |",
        "|---|---|---|---|---|",
    ]
    rewrite(options.page, "hangs", "\n".join([*head, *rows]))


if __name__ == "__main__":
    main()
