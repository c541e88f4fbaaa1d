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


@dataclass(frozen=True)
class Layout:
    """Ranks, keys of the section `parallel`, and the precision of weights and activations."""

    world: int
    parallel: dict[str, Any]
    precision: str = "fp32"


LAYOUTS = {
    "single": Layout(1, {}),
    "tp2": Layout(2, {"tensor": 2}),
    "dp2 zero0": Layout(2, {"zero": 0}),
    "pp2": Layout(2, {"pipeline": 2}),
    "pp2 v2": Layout(2, {"pipeline": 2, "virtual_pipeline": 2}),
    "cp2": Layout(2, {"context": 2}),
    "deepspeed dp2 zero1": Layout(2, {"engine": "deepspeed"}),
    "deepspeed dp2 zero3": Layout(2, {"engine": "deepspeed", "zero": 3}),
    "deepspeed dp2 zero2 offload": Layout(2, {"engine": "deepspeed", "zero": 2, "offload": "optimizer"}),
    "deepspeed dp2 zero3 offload": Layout(2, {"engine": "deepspeed", "zero": 3, "offload": "parameters"}),
    "bf16 dp2 zero0": Layout(2, {"zero": 0}, "bf16"),
    "bf16 dp2 zero1": Layout(2, {}, "bf16"),
    "bf16 tp2 sp": Layout(2, {"tensor": 2, "sequence": True}, "bf16"),
    "bf16 deepspeed dp2 zero2": Layout(2, {"engine": "deepspeed", "zero": 2}, "bf16"),
    "bf16 deepspeed dp2 zero3": Layout(2, {"engine": "deepspeed", "zero": 3}, "bf16"),
    "bf16 deepspeed dp2 zero3 offload": Layout(2, {"engine": "deepspeed", "zero": 3, "offload": "parameters"}, "bf16"),
    "dp3 zero1": Layout(3, {}),
    "dp3 zero0": Layout(3, {"zero": 0}),
    "deepspeed dp3 zero2": Layout(3, {"engine": "deepspeed", "zero": 2}),
    "deepspeed dp3 zero3": Layout(3, {"engine": "deepspeed", "zero": 3}),
    "tp4 sp": Layout(4, {"tensor": 4, "sequence": True}),
    "tp2 pp2 sp": Layout(4, {"tensor": 2, "pipeline": 2, "sequence": True}),
    "tp2 cp2": Layout(4, {"tensor": 2, "context": 2}),
    "pp2 v2 dp2": Layout(4, {"pipeline": 2, "virtual_pipeline": 2}),
    "deepspeed tp2 dp2 zero3": Layout(4, {"engine": "deepspeed", "tensor": 2, "zero": 3}),
}


@dataclass(frozen=True)
class Curve:
    """What a run showed in some steps, and the checkpoint after the last of them."""

    losses: list[float]
    grad_norms: list[float]
    last: Path


def config_of(name: str) -> RunConfig:
    """The run of layout `name`; all are the same run, but for the precision."""
    return tiny_config(
        model__layers=4,
        model__width=32,
        model__ffn=48,
        model__init_std=0.15,
        optimizer__lr=0.003,
        train__global_batch=12,
        train__micro_batch=1,
        train__precision=LAYOUTS[name].precision,
        parallel=LAYOUTS[name].parallel,
    )


def launch(
    names: list[str], sources: dict[str, str], directory: Path, timeout: float, each_other: bool = False
) -> dict[str, Any]:
    """Run layouts `names` (of one world) in one torchrun launch; checkpoints below `directory`.

    Without `sources` each trains LAST steps: layout → `saved` (checkpoint after SAVED steps) and the curve of the
    steps after it. With `sources` (name → checkpoint) each loads all of them in turn: layout → source → `saved`
    (the same state, saved again) and that curve. With `each_other` both, one after the other, in one launch, where
    all load what all have saved: `original` and `loaded`.
    """
    (world,) = {LAYOUTS[name].world for name in names}
    directory.mkdir(parents=True)
    plan, results, log = directory / "plan.json", directory / "results.json", directory / "log.txt"
    plan.write_text(json.dumps({"names": names, "sources": sources, "each_other": each_other}))
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
