"""Python imports this first, where its folder is on PYTHONPATH: what logging a step costs a training process is then
written to `LACUNA_AUDIT` when it ends: seconds inside `Session.log_metrics`, and connections it opened meanwhile.
"""

import atexit
import importlib.util
import json
import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_SESSION = "pretrain.session"


class _Audit(MetaPathFinder):
    """Wraps the session's logging, once it is imported, and listens for connections between the first and last call."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connections = 0
        self._calls: list[tuple[float, int]] = []
        sys.addaudithook(self._hear)
        atexit.register(self._write)

    def _hear(self, event: str, _arguments: Any) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            self._connections += 1

    def _write(self) -> None:
        if not self._calls:
            return
        seconds = [seconds for seconds, _ in self._calls]
        opened = self._calls[-1][1] - self._calls[0][1]
        with open(self._path, "w") as out:
            json.dump({"seconds": seconds, "connections": opened}, out)

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _SESSION:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            session = vars(module)["Session"]
            log_metrics = session.log_metrics

            def timed(*arguments: Any) -> None:
                begin = time.perf_counter()
                log_metrics(*arguments)
                self._calls.append((time.perf_counter() - begin, self._connections))

            session.log_metrics = timed

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "LACUNA_AUDIT" in os.environ and "launch.cli" in sys.orig_argv and "train" in sys.orig_argv:
    sys.meta_path.insert(0, _Audit(os.environ["LACUNA_AUDIT"]))
