"""Python imports this first, where its folder is on PYTHONPATH: it changes a module of ours once that is imported.

`LACUNA_PACE=SECONDS`: each step of a rank takes longer by that, in which it computes nothing, as if its work were done
by a device. `LACUNA_AUDIT=FILE`: what logging a step costs a training process is written there when it ends: seconds
inside `Session.log_metrics`, connections that it opened meanwhile, and CPU seconds of children that have ended.
"""

import atexit
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterImport(MetaPathFinder):
    """Has `change` done to module `name` when it has been imported."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name, self._change = name, change
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            self._change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _pace(seconds: float) -> None:
    """Slow `agree` down where the training loop has it called."""

    def change(module: ModuleType) -> None:
        agree = vars(module)["agree"]

        def paced(*arguments: Any) -> Any:
            time.sleep(seconds)
            return agree(*arguments)

        vars(module)["agree"] = paced

    _AfterImport("pretrain.quarantine", change)


class _Audit:
    """Times the session's logging, and listens for connections between its first and last call."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connections = 0
        self._calls: list[tuple[float, int]] = []
        sys.addaudithook(self._hear)
        atexit.register(self._write)
        _AfterImport("pretrain.session", self._wrap)

    def _hear(self, event: str, _arguments: Any) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            self._connections += 1

    def _write(self) -> None:
        if not self._calls:
            return
        seconds = [seconds for seconds, _ in self._calls]
        opened = self._calls[-1][1] - self._calls[0][1]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = children.ru_utime + children.ru_stime
        with open(self._path, "w") as out:
            json.dump({"seconds": seconds, "connections": opened, "children_cpu_seconds": spent}, out)

    def _wrap(self, module: ModuleType) -> None:
        session = vars(module)["Session"]
        log_metrics = session.log_metrics

        def timed(*arguments: Any) -> None:
            begin = time.perf_counter()
            log_metrics(*arguments)
            self._calls.append((time.perf_counter() - begin, self._connections))

        session.log_metrics = timed


if "LACUNA_PACE" in os.environ and "launch.worker" in sys.orig_argv:
    _pace(float(os.environ["LACUNA_PACE"]))
if "LACUNA_AUDIT" in os.environ and "launch.cli" in sys.orig_argv and "train" in sys.orig_argv:
    _Audit(os.environ["LACUNA_AUDIT"])
