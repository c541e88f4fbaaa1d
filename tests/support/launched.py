"""`lacuna train` as a process that a test stops, kills and waits for."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.command_line import ENVIRONMENT, LACUNA

ENDLESS = ["train.steps=1000000", "checkpoint.every=1000000"]
"""Overrides of a run that ends only when it is told to."""


class Launched:
    """`lacuna train` under way, past its second step unless it is wanted `at_birth` of its first worker.

    `variables` go into its environment.
    """

    def __init__(self, recipe: Path, run: Path, *options: str, at_birth: bool = False, **variables: str) -> None:
        command = [*LACUNA, "train", str(recipe), "--run", str(run), *options, *ENDLESS]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | variables,
            start_new_session=True,
        )
        metrics, give_up = run / "metrics.jsonl", time.monotonic() + 200
        while not (self.workers() if at_birth else metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < give_up
            time.sleep(0.01)

    def workers(self) -> dict[int, psutil.Process]:
        """The processes of the ranks, by rank."""
        found = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):  # it may be another's, just ended
                if "launch.worker" in process.cmdline():
                    found[int(process.environ()["RANK"])] = process
        return found

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end, after which no process may be left."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        out, err = self.process.communicate(timeout=120)
        psutil.wait_procs(below, timeout=10)
        assert not [p for p in below if p.is_running()]
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, err)
