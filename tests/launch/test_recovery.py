"""Going back with another learning rate: the one command after a divergence, and `--set` as its spelling."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from launch.recipe import load_recipe
from pretrain.loop import learning_rate
from pretrain.tracking.spool import read_metrics
from tests.support.command_line import lacuna, refusal, succeeded

Here = Callable[..., "CompletedProcess[str]"]


def test_resume_from_an_earlier_step_with_a_lower_rate(recipe: Path, run: Path) -> None:
    before = {line["step"]: line for line in read_metrics(run / "metrics.jsonl")}
    succeeded(lacuna("train", recipe, "--run", run, "--resume-from", "step-2", "--set", "optimizer.lr=1e-4"))
    after = {line["step"]: line for line in read_metrics(run / "metrics.jsonl")}
    assert list(after) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [after[step] for step in (1, 2)] == [before[step] for step in (1, 2)]
    lowered, high = load_recipe(str(recipe), ["optimizer.lr=1e-4"]), load_recipe(str(recipe), [])
    assert [after[step]["optim/lr"] for step in (1, 2)] == [learning_rate(high, step) for step in (0, 1)]
    assert [after[step]["optim/lr"] for step in range(3, 9)] == [learning_rate(lowered, step) for step in range(2, 8)]
    assert after[3]["optim/lr"] == pytest.approx(1e-4, rel=1e-12)  # before the schedule's decay: the peak itself
    # the same batches from the same weights; then the smaller step shows
    assert [after[step]["data/batch_digest"] for step in (3, 4)] == [
        before[step]["data/batch_digest"] for step in (3, 4)
    ]
    assert after[3]["train/loss"] == before[3]["train/loss"]
    assert after[4]["train/loss"] != before[4]["train/loss"]


def test_set_is_a_key_value_given_as_an_option(here: Here) -> None:
    plan = ["plan", "demo", "--json"]
    plain = json.loads(succeeded(here(*plan, "train.steps=7", "model.layers=3")))
    assert plain["steps"] == 7
    assert json.loads(succeeded(here(*plan, "--set", "train.steps=7", "--set", "model.layers=3"))) == plain
    assert json.loads(succeeded(here(*plan, "model.layers=3", "--set", "train.steps=7"))) == plain
    assert json.loads(succeeded(here(*plan, "--set", "train.steps=9", "--set", "train.steps=7")))["steps"] == 7
    assert json.loads(succeeded(here(*plan, "train.steps=9", "--set", "train.steps=7")))["steps"] == 7


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("optimizer.lr", "override 'optimizer.lr' is not key=value"),
        ("optimiser.lr=1", "unknown key 'optimiser' (did you mean 'optimizer'?)"),
        ("optimizer.lr=-1", "optimizer.lr: Input should be greater than 0"),
        ("", "override '' is not key=value"),
    ],
)
def test_a_bad_set_names_the_key(here: Here, command: str, given: str, line: str) -> None:
    assert line in refusal(here(command, "demo", "--set", given))


def test_the_plan_shows_an_uneven_split(here: Here) -> None:
    keys = ["model.layers=7", "parallel.pipeline=3", "train.global_batch=12", "train.micro_batch=1"]
    plan = json.loads(succeeded(here("plan", "demo", "--gpus", "6", "--json", *keys)))
    assert plan["stages"] == ["0-1", "2-4", "5-6"]
    rows = {row["layout"]: row["stages"] for row in plan["layouts"]}
    assert rows["megatron pp3 dp2 zero1"] == plan["stages"]
    shown = [" ".join(line.split()) for line in succeeded(here("plan", "demo", "--gpus", "6", *keys)).splitlines()]
    assert "layers by chunk 0-1 2-4 5-6" in shown
