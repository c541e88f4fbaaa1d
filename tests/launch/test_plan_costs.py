"""What `lacuna plan` says a run costs, against the figures of the LLaDA paper and closed forms."""

import json

import pytest

from launch.recipe import load_recipe
from pretrain.planning.cost import duration, flops
from pretrain.planning.estimate import DEVICES
from pretrain.planning.plan import plan
from runtime.errors import UserError
from tests.launch.conftest import Here
from tests.support.command_line import refusal, succeeded

# tokens in 10^9 -> FLOPs, as plotted in the paper's scaling study (arXiv 2502.09992, figure 3)
PUBLISHED = {
    "llada-1b": "37.75 2.20e20 88.08 5.13e20 138.41 8.06e20 239.08 1.39e21 352.32 2.05e21 461.37 2.69e21",
    "llada-8b": "62.91 2.63e21 125.83 5.27e21 251.66 1.05e22 503.32 2.11e22 1107.30 4.64e22 1233.13 5.16e22 "
    "1358.95 5.69e22 1547.70 6.48e22 1975.52 8.27e22",
    "ar-1b": "37.75 2.20e20 88.08 5.13e20 138.41 8.06e20",
    "ar-7b": "17.30 6.02e20 173.02 6.02e21 519.09 1.81e22 1038.09 3.61e22 2076.18 7.23e22 2214.59 7.71e22",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_point_to_three_digits(name: str) -> None:
    per_step = load_recipe(name, []).train.tokens_per_step
    numbers = PUBLISHED[name].split()
    for billions, printed in zip(numbers[::2], numbers[1::2], strict=True):
        steps = round(float(billions) * 1e9 / per_step)
        found = flops(load_recipe(name, [f"train.steps={steps}"]))["total_6nd_printed"]
        assert f"{found:.2e}".replace("+", "") == printed


def test_the_8b_run_in_every_convention() -> None:
    config = load_recipe("llada-8b", [])
    counted = flops(config)
    assert f"{counted['total_6nd']:.2e}" == "9.63e+22"
    assert f"{counted['total_exact']:.2e}" == "1.18e+23"
    for name in counted["conventions"]:
        assert counted[f"total_{name}"] == counted[f"per_token_{name}"] * config.train.total_tokens
    assert sum(counted["components"].values()) == counted["per_token_exact"]


def test_gpu_hours_of_the_8b_run_at_the_utilisation_it_had() -> None:
    """0.13 million hours of H800 are 253 TFLOP/s by the exact count."""
    config = load_recipe("llada-8b", [])
    counted = flops(config)
    computed_rate = 253e12 * counted["per_token_computed"] / counted["per_token_exact"]
    time = duration(config, 256, DEVICES["h100"], computed_rate / 989e12)
    assert time["gpu_hours"] == pytest.approx(130_000, rel=0.01)
    assert time["days"] == pytest.approx(time["gpu_hours"] / 256 / 24, rel=1e-12)
    assert time["step_seconds"] * config.train.steps == pytest.approx(time["days"] * 86400, rel=1e-12)
    assert time["tokens_per_second"] == pytest.approx(config.train.total_tokens / (time["days"] * 86400), rel=1e-12)


def test_devices_scale_with_their_peaks() -> None:
    config = load_recipe("llada-1b", [])
    days = {name: duration(config, 8, device, 0.4)["days"] for name, device in DEVICES.items()}
    assert days["h200"] == days["h100"]
    assert days["a100"] / days["h100"] == pytest.approx(989 / 312, rel=1e-12)
    assert days["b200"] / days["h100"] == pytest.approx(989 / 2250, rel=1e-12)


def test_checkpoints_of_the_8b_run() -> None:
    planned = plan(load_recipe("llada-8b", []))
    saved = planned["checkpoints"]
    assert saved["bytes"] == 12 * 8_015_581_184  # what a checkpoint holds is all float32
    assert saved["kept_bytes"] == 5 * saved["bytes"]
    assert saved["written"] == 439  # 438 × 1000 steps, and the end
    assert saved["every_hours"] == pytest.approx(planned["time"]["step_seconds"] / 3.6, rel=1e-12)
    assert saved["every_tokens"] == 5_242_880_000


@pytest.mark.parametrize("mfu", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_utilisation_is_refused(mfu: float) -> None:
    with pytest.raises(UserError, match=r"--mfu .* use a number above 0"):
        plan(load_recipe("demo", []), mfu=mfu)


def test_the_command(here: Here) -> None:
    shown = succeeded(here("plan", "llada-8b", "--gpus", "64", "--mfu", "0.5"))
    for word in ("9.63e+22", "1.18e+23", "GPU-hours at an assumed MFU of 50%", "96.2 GB every 1,000 steps"):
        assert word in shown
    planned = json.loads(succeeded(here("plan", "demo", "--device", "b200", "--json")))
    assert planned["device"] == "b200"
    assert "total_6nd_printed" not in planned["flops"]  # hundredths of a billion say nothing of a small model
    assert "--device 'b100' is none of" in refusal(here("plan", "demo", "--device", "b100"))


def test_what_failures_cost_is_planned(here: Here) -> None:
    planned = json.loads(succeeded(here("plan", "llada-8b", "--gpus", "64", "--save-seconds", "20", "--json")))
    found, step = planned["interruptions"], planned["time"]["step_seconds"]
    assert found["mean_hours"] == 50_000 / 64
    assert found["best_every_seconds"] == pytest.approx((2 * 20 * 50_000 / 64 * 3600) ** 0.5, abs=step)
    assert found["expected"] == pytest.approx(planned["time"]["gpu_hours"] / found["goodput"] / 50_000)
    assert ": goodput " in " ".join(succeeded(here("plan", "demo")).split())
    assert refusal(here("plan", "demo", "--restart-seconds", "0")).startswith("--restart-seconds 0.0 is no such figure")
