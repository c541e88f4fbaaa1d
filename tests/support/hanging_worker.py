"""`python -m tests.support.hanging_worker RUN`: a rank as torchrun starts it, on which one thing never ends.

`LACUNA_HANG` names it, as JSON: `rank`, `where` (data, collective, step, save, interpreter) and `step`, counted from 1.
`slow`: until then each forward pass takes that many times as long.
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


def _slow_down(owner: Any, name: str, factor: float) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = original(*args, **kwargs)
        time.sleep((factor - 1) * (time.perf_counter() - start))
        return result

    setattr(owner, name, wrapped)


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
            from parallel.engines import megatron

            _slow_down(megatron, "_forward", plan["slow"])
        _install(plan["where"], plan["step"])
    code = _as_process(sys.argv[1:])
    os._exit(code)
