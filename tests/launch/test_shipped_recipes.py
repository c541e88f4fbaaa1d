"""The shipped recipes are the published models, and `lacuna plan` says what they mean."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from launch.recipe import dump_config, load_recipe, shipped_recipes
from tests.support.command_line import succeeded

Here = Callable[..., "CompletedProcess[str]"]
NAMES = ["ar-1b", "ar-7b", "demo", "llada-1b", "llada-8b"]


def test_all_are_there_and_valid(here: Here) -> None:
    assert list(shipped_recipes()) == NAMES
    assert succeeded(here("config", "recipes")).split() == NAMES
    for name in NAMES:
        assert succeeded(here("config", "validate", name)).startswith(f"{name} is valid: ")


@pytest.mark.parametrize(
    ("name", "matrices", "with_embeddings", "tokens_per_step", "objective"),
    [
        ("llada-1b", 969_154_560, 1_487_151_104, 5_242_880, "masked"),
        ("ar-1b", 969_154_560, 1_487_151_104, 5_242_880, "autoregressive"),
        ("ar-7b", 5_798_625_280, 6_834_618_368, 17_301_504, "autoregressive"),
        ("llada-8b", 6_979_321_856, 8_015_314_944, 5_242_880, "masked"),
    ],
)
def test_published_sizes(name: str, matrices: int, with_embeddings: int, tokens_per_step: int, objective: str) -> None:
    config = load_recipe(name, [])
    count = config.model.parameters()
    assert count.non_embedding_matrices == matrices
    assert count.non_embedding_matrices + count.embedding == with_embeddings
    assert config.train.tokens_per_step == tokens_per_step
    assert config.objective.kind == objective


def _rate(name: str, tokens: float) -> float:
    config = load_recipe(name, [])
    return config.optimizer.lr * config.optimizer.schedule.factor(tokens, config.train.total_tokens)


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [
        (0, 0.0),
        (1000 * 5_242_880, 2e-4),
        (2000 * 5_242_880, 4e-4),
        (1.2e12 - 1, 4e-4),
        (1.2e12, 1e-4),
        (2.0e12, 1e-4),
        (2.15e12, 5.5e-5),
        (2.3e12, 1e-5),
        (2.4e12, 1e-5),
    ],
)
def test_learning_rate_of_llada_8b(tokens: float, rate: float) -> None:
    assert _rate("llada-8b", tokens) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "warmup", "peak"),
    [("llada-1b", 2000 * 5_242_880, 4e-4), ("ar-1b", 2000 * 5_242_880, 4e-4), ("ar-7b", 2000 * 17_301_504, 4.2e-4)],
)
def test_other_rates_warm_up_and_stay(name: str, warmup: int, peak: float) -> None:
    total = load_recipe(name, []).train.total_tokens
    assert _rate(name, warmup / 2) == pytest.approx(peak / 2, rel=1e-12)
    assert _rate(name, warmup) == _rate(name, total) == pytest.approx(peak, rel=1e-12)


def test_the_plan_of_llada_8b_keeps_the_contract(here: Here) -> None:
    result = here("plan", "llada-8b", "--json")
    plan = json.loads(succeeded(result))
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    assert plan["parameters"]["total"] == 8_015_581_184
    assert plan["parameters"]["non_embedding"] == 6_979_588_096
    assert plan["steps"] == 438_690
    assert plan["tokens"] == 438_690 * 5_242_880
    flops = plan["flops"]
    # 6 per weight of a product (head included, input embedding not), and 12·L·S·W for full attention
    exact = 6 * (6_979_321_856 + 126_464 * 4096) + 12 * 32 * 4096 * 4096
    assert flops["per_token_exact"] == exact
    assert flops["per_token_6nd"] == 6 * 6_979_321_856
    assert flops["total_exact"] == pytest.approx(1.18e23, rel=5e-3)
    assert flops["total_6nd"] == pytest.approx(9.63e22, rel=5e-4)
    per_rank = plan["memory"]["per_rank"]
    assert per_rank["total"] == sum(value for key, value in per_rank.items() if key != "total")
    by_mode = plan["memory"]["activations_by_recompute"]
    assert by_mode["none"] == by_mode["selective"] > by_mode["full"]  # no scores are kept, no keys gathered
    assert per_rank["activations"] == by_mode[load_recipe("llada-8b", []).parallel.recompute]
    assert plan["layouts"]
    assert all(row["layout"] and row["memory_bytes"] > 0 for row in plan["layouts"])


def test_the_plan_for_people_and_for_other_worlds(here: Here) -> None:
    assert "8,015,581,184" in succeeded(here("plan", "llada-8b"))
    assert json.loads(succeeded(here("plan", "llada-8b", "--gpus", "64", "--json")))["world"] == 64


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_file_reads_back_to_an_equal_configuration(name: str, tmp_path: Path) -> None:
    config = load_recipe(name, ["data.path=/some where/é", "train.seed=7"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = load_recipe(str(tmp_path / "config.yaml"), [])
    assert again == config
    assert dump_config(again) == dump_config(config)
