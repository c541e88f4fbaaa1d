"""A job for pools in tests: does what `order` in its directory says."""

import sys
import time
from pathlib import Path

from launch.pool import run_as_job
from runtime.errors import UserError
from runtime.signals import StopRequest


def act(root: Path) -> None:
    order = (root / "order").read_text()
    (root / "began").touch()
    if order == "fail":
        raise UserError("it was told\nto fail")
    with StopRequest() as stop:
        while order == "wait" and not stop:
            time.sleep(0.02)
        (root / "ended").write_text("stopped" if stop else "done")


if __name__ == "__main__":
    sys.exit(run_as_job(act))
