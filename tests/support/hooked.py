"""Environment variables under which Python starts with `tests/support/hooks/sitecustomize.py`."""

import os
from pathlib import Path

from tests.support.command_line import ENVIRONMENT

_HOOKS = Path(__file__).parent / "hooks"


def hooked(**wanted: str) -> dict[str, str]:
    """`wanted` names hooks of that file."""
    return {"PYTHONPATH": os.pathsep.join([str(_HOOKS), *filter(None, [ENVIRONMENT.get("PYTHONPATH")])]), **wanted}
