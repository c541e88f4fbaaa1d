"""`python -m tests.support.hanging_worker RUN`: a rank as torchrun starts it, on which one thing never ends.

`LACUNA_HANG` names it, as JSON: `rank`, `where` (data, collective, step, save, interpreter) and `step`, counted from 1.
`slow`: until then the rank's own work in each step takes that many times as long; without `where`, to the end.
"""

import ctypes
import json
import os
import sys
import time
from typing import Any

from launch.worker import _as_process

_FOR_EVER = 100_000


def _at_call(owner: Any, name: str, number: int, hang: Any) -> None:
    """Let call `number` of a function not return."""
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            hang()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _sleep() -> None:
    time.sleep(_FOR_EVER)


def _hold_the_interpreter() -> None:
    """Sleep in C without letting other threads of this process run."""
    ctypes.PyDLL(None).sleep(_FOR_EVER)


def _slow_down(factor: float) -> None:
    """By the clock, waits for the other ranks left out."""
    from parallel.engines.megatron import MegatronEngine
    from parallel.waiting import PeerWaits

    original: Any = MegatronEngine.train_step
    waits = PeerWaits().__enter__()  # to the end of the process

    def slowed(*args: Any, **kwargs: Any) -> Any:
        start, waited = time.perf_counter(), waits.seconds
        result = original(*args, **kwargs)
        time.sleep((factor - 1) * (time.perf_counter() - start - (waits.seconds - waited)))
        return result

    MegatronEngine.train_step = slowed  # type: ignore[method-assign]


def _install(where: str, step: int) -> None:
    from parallel.checkpoint import store
    from parallel.engines import megatron
    from pretrain import quarantine
    from pretrain.feed import Feed

    if where == "data":
        _at_call(Feed, "step", step, _sleep)
    elif where == "collective":
        _at_call(quarantine, "agree", step, _sleep)
    elif where == "save":
        _at_call(store, "write_shard", 1, _sleep)
    else:
        _at_call(megatron, "_forward", step, _sleep if where == "step" else _hold_the_interpreter)


if __name__ == "__main__":
    plan = json.loads(os.environ["LACUNA_HANG"])
    if plan["rank"] == int(os.environ["RANK"]):
        if "slow" in plan:
            _slow_down(plan["slow"])
        if "where" in plan:
            _install(plan["where"], plan["step"])
    code = _as_process(sys.argv[1:])
    os._exit(code)
