"""Python imports this first, where its folder is on PYTHONPATH: each step of a rank then takes longer by
`LACUNA_PACE` seconds, in which it computes nothing, as if its work were done by a device.
"""

import importlib.util
import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CALLER = "pretrain.quarantine"


class _Pace(MetaPathFinder):
    """Slows `agree` down where the training loop has it called, once that is imported."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _CALLER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            agree = vars(module)["agree"]

            def paced(*arguments: Any) -> Any:
                time.sleep(self._seconds)
                return agree(*arguments)

            vars(module)["agree"] = paced

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "LACUNA_PACE" in os.environ and "launch.worker" in sys.orig_argv:
    sys.meta_path.insert(0, _Pace(float(os.environ["LACUNA_PACE"])))
