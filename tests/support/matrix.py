"""The reshard matrix: its layouts, and how their runs are launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig
from tests.support.tiny import tiny_config

SAVED, LAST = 3, 6
"""Steps taken before the checkpoint, and in all."""

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "tp2": (2, {"tensor": 2}),
    "dp2 zero0": (2, {"zero": 0}),
    "pp2": (2, {"pipeline": 2}),
    "pp2 v2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "cp2": (2, {"context": 2}),
    "deepspeed dp2 zero1": (2, {"engine": "deepspeed"}),
    "deepspeed dp2 zero3": (2, {"engine": "deepspeed", "zero": 3}),
    "dp3 zero1": (3, {}),
    "dp3 zero0": (3, {"zero": 0}),
    "deepspeed dp3 zero2": (3, {"engine": "deepspeed", "zero": 2}),
    "deepspeed dp3 zero3": (3, {"engine": "deepspeed", "zero": 3}),
    "tp4 sp": (4, {"tensor": 4, "sequence": True}),
    "tp2 pp2 sp": (4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    "tp2 cp2": (4, {"tensor": 2, "context": 2}),
    "pp2 v2 dp2": (4, {"pipeline": 2, "virtual_pipeline": 2}),
    "deepspeed tp2 dp2 zero3": (4, {"engine": "deepspeed", "tensor": 2, "zero": 3}),
}
"""Name → world and keys of the section `parallel`."""


@dataclass(frozen=True)
class Curve:
    """What a run showed in some steps, and the checkpoint after the last of them."""

    losses: list[float]
    grad_norms: list[float]
    last: Path


def config_of(name: str) -> RunConfig:
    """The run of layout `name`; all are the same run."""
    return tiny_config(
        model__layers=4,
        model__width=32,
        model__ffn=48,
        model__init_std=0.15,
        optimizer__lr=0.003,
        train__global_batch=12,
        train__micro_batch=1,
        parallel=LAYOUTS[name][1],
    )


def launch(names: list[str], sources: dict[str, str], directory: Path, timeout: float) -> dict[str, Any]:
    """Run layouts `names` (of one world) in one torchrun launch; checkpoints below `directory`.

    Without `sources` each trains LAST steps: layout → `saved` (checkpoint after SAVED steps) and the curve of the
    steps after it. With `sources` (name → checkpoint) each loads all of them in turn: layout → source → `saved`
    (the same state, saved again) and that curve.
    """
    (world,) = {LAYOUTS[name][0] for name in names}
    directory.mkdir(parents=True)
    plan, results, log = directory / "plan.json", directory / "results.json", directory / "log.txt"
    plan.write_text(json.dumps({"names": names, "sources": sources}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with open(log, "wb") as out:
        worker = [*command, "-m", "tests.support.matrix_worker", str(plan)]
        code = subprocess.run(worker, env=environment, stdout=out, stderr=out, timeout=timeout, check=False).returncode
    assert code == 0, f"the launch failed:\n{log.read_text()[-4000:]}"
    return json.loads(results.read_text())


def curve(result: dict[str, Any]) -> Curve:
    """The curve in a result of `launch`."""
    return Curve(result["losses"], result["grad_norms"], Path(result["last"]))
