"""Python imports this first, where its folder is on PYTHONPATH: ranks then record their writes, or die at one.

`LACUNA_FAULTS` holds what is wanted, as JSON: `rank` and `world` (which process; null: all ranks), `root` and `prefix`
(which calls), and either `record` (files `…-RANK` that list them) or `call` (the number of one), `moment` (before,
torn, after), `delay` (seconds after it) and `victims` (rank N, ranks, launcher).
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "LACUNA_FAULTS"


def _here(plan: dict[str, Any]) -> bool:
    """Whether this process is the rank that is meant; a single rank is its own launcher."""
    if plan["world"] == 1:
        return "launch.cli" in sys.orig_argv and "train" in sys.orig_argv
    return "launch.worker" in sys.orig_argv and plan["rank"] in (None, int(os.environ["RANK"]))


def _kill(victims: str) -> None:
    """Kill with SIGKILL; this process, if it is meant, last. Returns only if neither it nor its launcher is meant."""
    import signal

    import psutil

    here, launcher = psutil.Process(), psutil.Process().parent()
    if "launch.cli" in sys.orig_argv or victims == f"rank {os.environ.get('RANK')}":
        chosen = [here]
    elif victims == "launcher":
        chosen = [launcher]
    else:
        ranks = [p for p in launcher.children() if "launch.worker" in p.cmdline()]
        chosen = [p for p in ranks if victims in ("ranks", f"rank {p.environ()['RANK']}")]
    for process in sorted(chosen, key=lambda process: process == here):
        os.kill(process.pid, signal.SIGKILL)
    while victims == "launcher":  # whose end is to end this process too
        time.sleep(1)


def _install(plan: dict[str, Any]) -> None:
    from write_faults import Call, Numbered, install

    class Record(Numbered):
        def numbered(self, number: int, call: Call, action: Callable[[], Any], torn: Any) -> Any:
            with open(f"{plan['record']}-{os.environ.get('RANK', '0')}", "a") as out:
                out.write(json.dumps([number, call.operation, call.path]) + "\n")
            return action()

    class Kill(Numbered):
        def numbered(self, number: int, call: Call, action: Callable[[], Any], torn: Any) -> Any:
            if number != plan["call"]:
                return action()
            if plan["delay"] is not None:
                threading.Timer(plan["delay"], _kill, [plan["victims"]]).start()
                return action()
            if plan["moment"] == "torn":
                torn()
            result = action() if plan["moment"] == "after" else None
            _kill(plan["victims"])
            return action() if plan["moment"] == "before" else result

    install((Record if "record" in plan else Kill)(Path(plan["root"]), plan["prefix"]))


if VARIABLE in os.environ:
    _plan = json.loads(os.environ[VARIABLE])
    if _here(_plan):
        _install(_plan)
