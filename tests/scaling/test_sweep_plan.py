"""What a sweep's file means: sizes, steps from FLOPs, batch and rate, corrections, warnings, refusals."""

from typing import Any

import pytest

from launch.recipe import load_recipe
from pretrain.flop_conventions import CONVENTIONS
from pretrain.planning.cost import training_of
from pretrain.scaling.rules import DeepSeekRule, FixedRule, StepLaw
from pretrain.scaling.sweep import IsoFlopSweep, Point, parse_sweep, sweep_points, trained_share
from runtime.errors import UserError

BASE: dict[str, Any] = {"name": "try", "data": "data", "budgets": [1e13, 4e13], "sizes": [[1e5, 3e5, 1e6]] * 2}
REPEATS: dict[str, Any] = {
    "kind": "repeats", "name": "again", "data": "data", "sizes": [2e5], "unique_tokens": [100_000, 400_000],
    "epochs": [1, 4, 16],
}  # fmt: skip


def points_of(values: dict[str, Any], tokens: int = 10**9, overrides: tuple[str, ...] = ()) -> list[Point]:
    return sweep_points(parse_sweep(values, "sweep.yaml"), load_recipe("demo", list(overrides)), tokens)


@pytest.mark.parametrize("convention", ["computed", "exact", "6nd", "6nd_total", "eth", "palm"])
def test_every_point_spends_its_budget_by_the_convention(convention: str) -> None:
    points = points_of(BASE | {"convention": convention})
    assert len(points) == 12
    for point in points:
        train = point.config.train
        assert point.budget is not None
        assert point.flops == pytest.approx(point.budget, rel=0.5 / (train.steps - 0.5))
        padding = trained_share(point.config) if convention in ("6nd", "6nd_total") else 1.0
        per_token = CONVENTIONS[convention].per_token(training_of(point.config)) * padding
        assert point.flops == pytest.approx(per_token * train.total_tokens, rel=1e-12)
        assert point.parameters == point.config.model.parameters().non_embedding_matrices
        assert train.global_batch % train.micro_batch == 0
        assert 16 >= train.micro_batch >= min(8, train.global_batch)  # a prime batch must not go one by one


def test_random_length_is_corrected_for_in_the_masked_family() -> None:
    masked, causal = (load_recipe("demo", [f"objective.kind={kind}"]) for kind in ("masked", "autoregressive"))
    assert trained_share(masked) == pytest.approx((128 * 0.99 + 64.5 * 0.01) / 128)
    assert trained_share(causal) == 1
    assert trained_share(load_recipe("demo", ["objective.random_length=1.0"])) == pytest.approx(64.5 / 128)
    for point in points_of(BASE):
        assert point.tokens == pytest.approx(point.config.train.total_tokens * trained_share(point.config))


def test_families_have_equal_shapes_and_their_own_steps() -> None:
    points = points_of(BASE)
    shapes = {kind: {p.config.model for p in points if p.config.objective.kind == kind} for kind in BOTH}
    assert shapes["masked"] == shapes["autoregressive"]
    assert {p.config.model.vocabulary for p in points} == {2048}
    assert all(p.config.model.init_std == pytest.approx(p.config.model.width**-0.5, abs=1e-5) for p in points)


BOTH = ("masked", "autoregressive")


def test_published_rules() -> None:
    """Against the papers' own figures: DeepSeek at 1e20 FLOPs (eq. 1), Step Law for 1 B on 100 B tokens."""
    deepseek = DeepSeekRule().at(0, 0, 1e20)
    assert deepseek.lr == pytest.approx(0.3118 * 10**-2.5)
    assert deepseek.batch_tokens == pytest.approx(0.2920 * 10**6.542)
    step = StepLaw(lr_factor=0.5, batch_factor=2.0).at(1e9, 1e11, 0)
    assert step.lr == pytest.approx(0.5 * 1.79 * 1e9**-0.713 * 1e11**0.307)
    assert step.batch_tokens == pytest.approx(2 * 0.58 * 1e11**0.571)
    assert FixedRule(batch_tokens=524_288, lr=2e-4).at(1, 2, 3) == (524_288, 2e-4)


def test_fixed_rule_reaches_the_points() -> None:
    points = points_of(BASE | {"rule": {"kind": "fixed", "batch_tokens": 2048, "lr": 0.004}, "micro_batch": 8})
    for point in points:
        assert (point.config.optimizer.lr, point.config.train.global_batch) == (0.004, 16)
        assert point.config.train.micro_batch == 8


def test_repeats_are_warned_of_in_an_isoflop_sweep_only() -> None:
    few = points_of(BASE, tokens=200_000)
    assert any("repeats its data" in line for point in few for line in point.warnings)
    worst = [p for p in few if p.epochs > 4 and p.config.objective.kind == "autoregressive"]
    assert worst
    assert all("more than the 4 that are as good as fresh" in " ".join(p.warnings) for p in worst)
    assert not any("repeats" in line for point in points_of(REPEATS) for line in point.warnings)
    assert all(point.epochs == 1 for point in points_of(BASE))


def test_a_repeat_sweep_is_a_grid_of_epochs() -> None:
    points = points_of(REPEATS)
    assert len(points) == 12
    for point in points:
        unique = point.config.data.unique_tokens
        assert unique in (100_000, 400_000)
        assert min(abs(point.epochs / wanted - 1) for wanted in (1, 4, 16)) < 0.02
        row = point.measured(2.0, 0.1, 1.0, 0.05, "d1")
        assert row.epochs == pytest.approx(point.epochs)
        assert row.unique == pytest.approx(unique, rel=0.03)
        assert row.budget is None


def test_few_steps_are_warned_of() -> None:
    (point, *_) = points_of(BASE | {"budgets": [1e11], "sizes": [[1e6]]})
    assert any("only" in line and "rule.batch_factor" in line for line in point.warnings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": [1e13]}, "sizes: 2 rows for 1 budgets"),
        ({"budgets": [1e13, 1e13]}, "budgets: give positive numbers of FLOPs, none twice"),
        ({"budgets": [1e13, -1]}, "budgets: give positive numbers"),
        ({"budgets": [1e13, float("nan")]}, "budgets"),
        ({"sizes": [[1e5], []]}, "sizes: a budget has no size"),
        ({"families": {"masked": "lada"}}, "families.masked: 'lada' is none of llada, ar"),
        ({"families": {"diffusion": "llada"}}, "families"),
        ({"families": {}}, "families"),
        ({"kind": "grid"}, "kind: 'grid' is neither isoflop nor repeats"),
        ({"kind": ["isoflop"]}, "kind: "),
        ({"bugets": [1]}, r"unknown key 'bugets' \(did you mean 'budgets'\?\)"),
        ({"convention": "mine"}, "convention"),
        ({"rule": {"kind": "guess"}}, "rule.kind: 'guess' is not one of"),
        ({"name": "../up"}, "name"),
        ({"evaluation": {"windows": 1}}, "evaluation.windows"),
    ],
)
def test_refused_files(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        parse_sweep(BASE | changes, "sweep.yaml")
    assert str(told.value).startswith("sweep.yaml: ")
    assert "\n" not in str(told.value)


def test_what_only_the_points_tell() -> None:
    with pytest.raises(UserError, match="comes twice: two sizes mean the same shape"):
        points_of(BASE | {"budgets": [1e13], "sizes": [[1e5, 1.00001e5]]})
    with pytest.raises(UserError, match=r"not one step of .* tokens for size"):
        points_of(BASE | {"budgets": [1e6], "sizes": [[1e6]]})
    with pytest.raises(UserError, match="size '2B' is neither"):
        points_of(BASE | {"sizes": [["2B"]] * 2})
    with pytest.raises(UserError, match=r"neither isoflop nor repeats|sweep\.yaml"):
        parse_sweep("no mapping", "sweep.yaml")


def test_published_names_are_sizes() -> None:
    sweep = parse_sweep(BASE | {"budgets": [1e20], "sizes": [["1B"]]}, "sweep.yaml")
    assert isinstance(sweep, IsoFlopSweep)
    for point in sweep_points(sweep, load_recipe("llada-1b", []), 10**13):
        assert point.parameters == 969_154_560
