"""Runs of two ranks under torchrun, one of which hangs at a chosen point."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.health.config import WatchdogConfig
from tests.support.command_line import ENVIRONMENT, lacuna, succeeded
from tests.support.launched import ENDLESS

ROOT = Path(__file__).resolve().parents[2]


def limits(seconds: float) -> list[str]:
    """Overrides that give every phase the same limit, once the first step has ended."""
    return [f"watchdog.{phase}={seconds}" for phase in ("data", "collective", "step", "save")]


def deadline(seconds: float) -> float:
    """Seconds from the last line of metrics within which a hang must be found under such limits; one of them is for
    what a step does before it hangs.
    """
    config = WatchdogConfig(data=seconds, collective=seconds, step=seconds, save=seconds)
    return config.deadline("step", started=True) + 1.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: seconds from the last line of metrics to the verdict, and what was found."""

    seconds: float
    ranks: list[int]
    message: str
    folder: Path
    output: str

    def stack(self, rank: int) -> str:
        """Of all threads of a rank."""
        return (self.folder / f"stack-{rank:05d}.txt").read_text()


def hang(recipe: Path, run: Path, plan: dict[str, Any], *overrides: str, every: int = 1000) -> Outcome:
    """Run until the watchdog ends it."""
    ended = _launch(recipe, run, plan, *ENDLESS[:1], f"checkpoint.every={every}", *overrides)
    assert ended.returncode != 0, ended.stderr
    (path,) = (run / "logs/0").glob("watch-*/hang.json")
    verdict = json.loads(path.read_text())
    last = (run / "metrics.jsonl").stat().st_mtime
    return Outcome(path.stat().st_mtime - last, verdict["ranks"], verdict["message"], path.parent, ended.stderr)


def slowed(recipe: Path, run: Path, rank: int, factor: float, *overrides: str) -> None:
    """Run to the end with the work of one rank taking `factor` times as long."""
    ended = _launch(recipe, run, {"rank": rank, "slow": factor}, *overrides)
    assert ended.returncode == 0, ended.stderr


def _launch(recipe: Path, run: Path, plan: dict[str, Any], *overrides: str) -> subprocess.CompletedProcess[str]:
    succeeded(lacuna("train", recipe, "--run", run, "--processes", "2", "--prepare", *overrides))
    agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command = [*agent, "--rdzv-endpoint=localhost:0", "-m", "tests.support.hanging_worker", str(run)]
    variables = ENVIRONMENT | {"LACUNA_HANG": json.dumps(plan), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)
