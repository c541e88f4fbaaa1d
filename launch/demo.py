"""The main job: real text to a trained, resumed, evaluated and sampled model of each family.

Every stage is what a user would run by hand; `stages` prints the equivalent commands. Finished stages are kept,
so a second call is quick and a killed one continues.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from launch.recipe import load_recipe
from launch.train import run_local
from parallel.checkpoint.catalogue import newest_checkpoint
from pretrain.config import RunConfig
from pretrain.flops import training_flops_per_token
from pretrain.run_directory import RunDirectory
from runtime.files import read_json, write_json
from runtime.settings import read_yaml

_WINDOWS, _DRAWS = 192, 8
_PROMPT, _LENGTH = "def __init__(self", 32


def run_demo(out: Path) -> None:
    """Run all stages below `out` and print what was found and where it lies."""
    report_file = out / "report.json"
    if not report_file.exists():
        write_json(report_file, _run_stages(out))
    _print_report(out, read_json(report_file))


def _run_stages(out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    data, processes = out / "data", _processes()
    common = [f"data.path={data}", "tracking.enabled=false"]
    with _stage(
        1, "real text → tokenizer → sharded Arrow tokens", f"lacuna data build --config demo.yaml --out {data}"
    ):
        _build_data(data)
    masked = out / "masked"
    tensor = f"parallel.tensor={processes}"
    half = load_recipe("demo", common).train.steps // 2
    with _stage(
        2,
        f"masked diffusion, megatron-core, {processes} processes, stopped at step {half}",
        _command(masked, processes, [tensor], half),
    ):
        _train(load_recipe("demo", [*common, tensor]), masked, processes, half)
    other = ["parallel.engine=deepspeed"]
    with _stage(3, "the same run continued by DeepSpeed under another layout", _command(masked, processes, other)):
        config = load_recipe("demo", [*common, *other])
        _train(config, masked, processes)
    baseline, steps = out / "autoregressive", _steps_for_equal_flops(config)
    changes = ["objective.kind=autoregressive", f"train.steps={steps}", "name=demo-autoregressive"]
    with _stage(
        4, f"autoregressive baseline for the same FLOPs: {steps} steps", _command(baseline, processes, changes)
    ):
        _train(load_recipe("demo", [*common, *changes]), baseline, processes)
    results: dict[str, Any] = {"processes": processes}
    with _stage(
        5,
        "held-out bits per byte of both, and a sample",
        f"lacuna evaluate {masked} --windows {_WINDOWS} --draws {_DRAWS}",
    ):
        results |= _evaluate(masked, baseline)
    with _stage(6, "plot and MLflow", f"lacuna track sync {masked}"):
        results |= _show(out, masked, baseline)
    results["seconds"] = round(time.monotonic() - began, 1)
    return results


def _processes() -> int:
    """Two workers, or one where a single GPU is all there is."""
    import torch

    return 1 if torch.cuda.device_count() == 1 else 2


@contextmanager
def _stage(number: int, title: str, command: str) -> Iterator[None]:
    print(f"\n[{number}/6] {title}\n      {command}", flush=True)
    start = time.monotonic()
    yield
    print(f"      {time.monotonic() - start:.0f} s", flush=True)


def _command(run: Path, processes: int, changes: list[str], until: int | None = None) -> str:
    stop = [] if until is None else ["--until", str(until)]
    return shlex.join(["lacuna", "train", "demo", "--run", str(run), "--processes", str(processes), *stop, *changes])


def _build_data(out: Path) -> None:
    from data_pipeline.build import build_dataset
    from data_pipeline.config import BuildConfig

    if out.exists():
        return
    path = Path(str(resources.files("launch"))) / "datasets" / "demo.yaml"
    build_dataset(BuildConfig.parse(read_yaml(path), str(path)), out)


def _train(config: RunConfig, run: Path, processes: int, until: int | None = None) -> None:
    newest = newest_checkpoint(RunDirectory(run).checkpoints)
    goal = until or config.train.steps
    if newest is None or int(newest.name.removeprefix("step-")) < goal:
        run_local(config, run, processes, until)


def _steps_for_equal_flops(masked: RunConfig) -> int:
    """Steps of the baseline whose computed training FLOPs equal the masked run's."""
    train, shape = masked.train, masked.model
    spent = training_flops_per_token(shape, train.sequence_length, False, masked.objective.head_rows).total
    causal = training_flops_per_token(shape, train.sequence_length, True).total
    return round(train.steps * spent / causal)


def _evaluate(masked: Path, baseline: Path) -> dict[str, Any]:
    from inference.evaluation import evaluate
    from inference.generation import generate
    from inference.sampler import SamplerConfig
    from inference.trained_model import load_trained

    diffusion, causal = load_trained(masked), load_trained(baseline)
    generated = generate(diffusion, _PROMPT, SamplerConfig(length=_LENGTH, block_length=8, temperature=1.0), seed=0)
    return {
        "masked": asdict(evaluate(diffusion, _WINDOWS, _DRAWS)),
        "autoregressive": asdict(evaluate(causal, _WINDOWS, _DRAWS)),
        "sample": generated.frames,
    }


def _show(out: Path, masked: Path, baseline: Path) -> dict[str, Any]:
    from launch.tracking import sync_run, tracking_uri
    from pretrain.tracking.plots import plot_losses

    runs = [RunDirectory(masked), RunDirectory(baseline)]
    curves = [("masked diffusion", runs[0].metrics), ("autoregressive", runs[1].metrics)]
    for run, curve in zip(runs, curves, strict=True):
        plot_losses([curve], run.plots / "loss.png")
        sync_run(run)
    plot_losses(curves, out / "loss.png")
    config = RunConfig.parse(read_yaml(runs[0].config), str(runs[0].config))
    return {"mlflow": tracking_uri(config, runs[0])}


def _print_report(out: Path, report: dict[str, Any]) -> None:
    print("\nHeld-out bits per byte at equal FLOPs")
    for family in ("masked", "autoregressive"):
        score = report[family]
        print(
            f"  {family:<15} {score['bits_per_byte']:.3f} ± {score['standard_error']:.3f} "
            f"({score['kind']}, {score['windows']} windows, {score['draws']} draws)"
        )
    print(f"\nA sample of the masked model: passes done, text so far (prompt {_PROMPT!r})")
    for line in report["sample"]:
        print(f"  {line}")
    print(
        f"\nWhere everything lies ({report['seconds']} s in all)\n"
        f"  shards, tokenizer   {out / 'data'}\n"
        f"  runs                {out / 'masked'}  {out / 'autoregressive'}\n"
        f"  loss plot           {out / 'loss.png'}\n"
        f"  MLflow              .venv/bin/mlflow ui --backend-store-uri {report['mlflow']}\n"
        f"                      then open http://127.0.0.1:5000"
    )
