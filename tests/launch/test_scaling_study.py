"""`lacuna scaling fit` and `report`: from a table of points to laws, pictures, a page and a recipe."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from launch.recipe import dump_config, load_recipe
from pretrain.flops import forward_flops_per_token
from pretrain.scaling.compare import Comparison
from pretrain.scaling.parametric import ParametricLaw
from pretrain.scaling.points import Measured, read_points, write_points
from pretrain.scaling.power_law import Interval
from pretrain.scaling.repeats import RepeatLaw
from pretrain.scaling.report import page
from pretrain.scaling.study import Study, flops_per_token_of
from pretrain.scaling.sweep import trained_share
from pretrain.schedule import WarmupStableDecay
from tests.launch.conftest import Here
from tests.support.command_line import refusal, succeeded
from tests.support.planted import BUDGETS, CHINCHILLA, behind_by, planted_points

BEHIND = behind_by(CHINCHILLA, 16.0)


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Both families 16 times the compute apart, and repeats of the masked one."""
    repeated = RepeatLaw(BEHIND, 100.0, 50.0)
    some = planted_points(CHINCHILLA, "autoregressive", noise=0.002, seed=1)
    some += planted_points(BEHIND, "masked", [4 * budget for budget in BUDGETS], noise=0.002, seed=2)
    for epochs in (2.0, 8.0, 32.0, 128.0):
        tokens = 1e9 * epochs
        loss = float(repeated.loss(np.array(1e8), np.array(1e9), np.array(epochs)))
        some.append(Measured("masked", 1e8, tokens, 6e8 * tokens, loss, unique_tokens=1e9))
    write_points(tmp_path / "points.csv", some)
    return tmp_path / "points.csv"


def test_fit_tells_the_planted_gap_and_predicts(points: Path, tmp_path: Path, here: Here) -> None:
    recipe = tmp_path / "best.yaml"
    arguments = ["--convention", "6nd", "--budget", "1e22", "--write-recipe", recipe, "--draws", "40", "--json"]
    found = json.loads(succeeded(here("scaling", "fit", points, *arguments)))
    assert found["convention"] == "6nd"
    ratio = found["comparison"]["parametric"]["compute_ratio"]
    assert ratio["low"] < 16 < ratio["high"]
    assert ratio["value"] == pytest.approx(16, rel=0.2)
    ratio = found["comparison"]["isoflop"]["compute_ratio"]
    assert ratio["low"] < ratio["value"] < ratio["high"]
    assert found["families"]["masked"]["repeats"]["data_worth"]["value"] == pytest.approx(100, rel=0.35)
    predicted = {(row["family"], row["law"]): row for row in found["predictions"]}
    assert len(predicted) == 4
    row = predicted["masked", "parametric"]
    assert row["parameters"]["value"] == pytest.approx(BEHIND.best_size(1e22), rel=0.2)
    assert row["factor"] == pytest.approx(25)
    config = load_recipe(str(recipe), [])
    size = config.model.parameters().non_embedding_matrices
    assert size == pytest.approx(row["parameters"]["value"], rel=0.011)
    assert config.objective.kind == "masked"
    assert trained_share(config) == pytest.approx(1 - 0.01 + 0.01 * 4097 / 8192)
    assert 6 * size * config.train.total_tokens * trained_share(config) == pytest.approx(1e22, rel=0.001)
    assert config.train.sequence_length == 4096
    assert "1e+22 FLOPs by 6nd" in recipe.read_text().splitlines()[0]
    assert found["comparison"]["isoflop"]["extrapolated"] == []


def test_a_recipe_follows_the_rule_of_its_sweep(points: Path, tmp_path: Path, here: Here) -> None:
    """Rule with factors, schedule and initialisation; D without what short samples leave empty."""
    rule = {"kind": "deepseek", "lr_factor": 0.3, "batch_factor": 0.5}
    swept = {
        "name": "small",
        "data": "none",
        "convention": "6nd",
        "rule": rule,
        "schedule": {"warmup": 0.05, "decay": 0.3},
    }
    for name, keys in (("one", {}), ("other", {"schedule": {"warmup": 0.1}})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "points.csv").write_text(points.read_text())
        budgets = {"kind": "isoflop", "budgets": [1e18], "sizes": [[1e8, 2e8, 3e8]]}
        (tmp_path / name / "sweep.json").write_text(json.dumps({**swept, **budgets, **keys}))
    base = tmp_path / "base.yaml"
    base.write_text(dump_config(load_recipe("llada-8b", ["objective.random_length=0.5", "train.micro_batch=1"])))
    written = tmp_path / "best.yaml"
    order = ["--budget", "1e22", "--write-recipe", written, "--recipe", base, "--draws", "20", "--json"]
    found = json.loads(succeeded(here("scaling", "fit", tmp_path / "one", *order)))
    row = next(r for r in found["predictions"] if (r["family"], r["law"]) == ("masked", "parametric"))
    config = load_recipe(str(written), [])
    shape, train = config.model, config.train
    positions = row["tokens"]["value"] / (0.5 + 0.5 * 4097 / 8192)
    assert train.total_tokens == pytest.approx(positions, rel=0.001)
    layers = 3 * forward_flops_per_token(shape, 4096, False, 0.0).total * positions
    assert config.optimizer.lr == pytest.approx(0.3 * 0.3118 * layers**-0.125, rel=5e-3)  # three digits are written
    unit = config.parallel.model_size
    assert train.global_batch == unit * round(0.5 * 0.292 * layers**0.3271 / 4096 / unit)
    assert shape.init_std == round(shape.width**-0.5, 5)
    schedule = config.optimizer.schedule
    assert isinstance(schedule, WarmupStableDecay)
    assert (schedule.warmup, schedule.decay, schedule.floor) == (round(0.05 * train.total_tokens), 0.3, 0.1)
    assert "lr_factor 0.3" in written.read_text().splitlines()[1]
    line = refusal(here("scaling", "fit", tmp_path / "one", tmp_path / "other", *order))
    assert "differ in rule, schedule or families: give those of one rule" in line


def test_fit_for_people(points: Path, here: Here) -> None:
    shown = succeeded(here("scaling", "fit", points, "--draws", "20", "--convention", "6nd"))
    for words in ("SMDM (2410.18514)", "Quokka", "Chinchilla", "**ours**, IsoFLOP", "R_D*", "by the convention `6nd`"):
        assert words in shown


def test_a_comparison_beyond_the_points_is_said() -> None:
    one = Interval(1.0, 0.5, 2.0)
    for beyond, said in (((), False), (("loss",), True)):
        comparison = Comparison("masked", "autoregressive", 3.0, 1e19, one, one, one, beyond)
        shown = "\n".join(page(Study("6nd", [], comparison, None)))
        assert ("No loss was reached by both: what stands at it goes beyond the points." in shown) == said


def test_report_has_the_numbers_behind_every_picture(points: Path, tmp_path: Path, here: Here) -> None:
    out = tmp_path / "report"
    told = json.loads(succeeded(here("scaling", "report", points, "--out", out, "--draws", "20", "--json")))
    names = {"report.md", "points.csv", "optima.csv", "laws.csv", "curves.csv"}
    names |= {"isoflop.png", "frontier.png", "loss.png", "repeats.png"}
    assert {path.name for path in out.iterdir()} == {Path(path).name for path in told["files"]} == names
    for picture in out.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"]({picture.name})" in (out / "report.md").read_text()
    assert (out / "points.csv").read_text() == points.read_text()
    with open(out / "optima.csv") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 10
    assert {row["inside"] for row in rows} == {"True"}
    _check_curves(out)


def _check_curves(out: Path) -> None:
    """Every line of the pictures, each sample by the law whose constants stand beside it."""
    with open(out / "laws.csv") as source:
        laws = {(row["family"], row["law"], row["constant"]): float(row["value"]) for row in csv.DictReader(source)}
    with open(out / "laws.csv") as source:
        assert all(float(row["low"]) <= float(row["high"]) for row in csv.DictReader(source))
    with open(out / "curves.csv") as source:
        rows = list(csv.DictReader(source))
    drawn = {(row["picture"], row["family"], row["series"]) for row in rows}
    both = ("masked", "autoregressive")
    expected = {("frontier", family, series) for family in both for series in ("size", "data", "loss")}
    expected |= {("loss", family, "loss") for family in both}
    assert drawn == expected | {("repeats", "masked", "N 1e+08, 1e+09 unique tokens")}
    for row in rows:
        family, x, y = row["family"], float(row["x"]), float(row["y"])
        if row["picture"] == "frontier":
            coefficient, exponent = (
                laws[family, "isoflop", f"{row['series']}_{one}"] for one in ("coefficient", "exponent")
            )
            assert y == pytest.approx(coefficient * x**exponent, rel=1e-9)
        if row["picture"] == "loss":
            E, A, B, alpha, beta = (laws[family, "parametric", name] for name in ("E", "A", "B", "alpha", "beta"))
            assert y == pytest.approx(ParametricLaw(E, A, B, alpha, beta).best_loss(x), rel=1e-6)
        if row["picture"] == "repeats":
            assert row["low"] == row["high"] == ""
        else:
            assert float(row["low"]) < float(row["high"])


def test_directories_of_sweeps_say_how_they_count(points: Path, tmp_path: Path, here: Here) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "points.csv").write_text(points.read_text())
    (sweep / "sweep.json").write_text('{"convention": "computed"}')
    found = json.loads(succeeded(here("scaling", "fit", sweep, "--draws", "20", "--json")))
    assert found["convention"] == "computed"
    line = refusal(here("scaling", "fit", sweep, points, "--convention", "6nd", "--draws", "20"))
    assert "points are counted by 6nd and by computed: fit them apart" in line


def test_refusals(points: Path, tmp_path: Path, here: Here) -> None:
    recipe = tmp_path / "best.yaml"
    assert "--write-recipe needs --budget" in refusal(here("scaling", "fit", points, "--write-recipe", recipe))
    assert "--budget -1.0 is no number" in refusal(here("scaling", "fit", points, "--budget", "-1", "--draws", "20"))
    wrong = ["--budget", "1e22", "--write-recipe", recipe, "--family", "uniform", "--draws", "20"]
    assert "--family 'uniform': a recipe can be written for autoregressive, masked" in refusal(
        here("scaling", "fit", points, *wrong)
    )
    assert not recipe.exists()
    few = tmp_path / "few.csv"
    write_points(few, planted_points(CHINCHILLA, budgets=[1e19], factors=[1.0]))
    line = refusal(here("scaling", "fit", few))
    assert "nothing can be fitted: masked: a law needs optima at two budgets" in line


def test_flops_per_token_come_from_the_points() -> None:
    assert flops_per_token_of(planted_points(CHINCHILLA))(1e15) == 6e15
    with_head = [Measured("masked", n, 1e9, 1e9 * (6 * n + 500 * n**0.6), 3.0) for n in (1e6, 1e7, 1e8)]
    found = flops_per_token_of(with_head)
    for size in (3e6, 1e10):
        assert found(size) == pytest.approx(6 * size + 500 * size**0.6, rel=1e-6)


def test_half_tables_are_reported_as_far_as_they_go(points: Path, tmp_path: Path, here: Here) -> None:
    """The tables of sweeps that were stopped: one goes on, one has not begun, one has only repeats."""
    every = read_points(points)
    parts = {
        "masked": [p for p in every if p.family == "masked" and p.epochs == 1],
        "autoregressive": [p for p in every if p.family == "autoregressive"],
        "repeats": [p for p in every if p.epochs > 1],
    }
    order = []
    for name, some in parts.items():
        done = 0 if name == "autoregressive" else len(some) // 2
        write_points(tmp_path / f"{name}.csv", some[:done])
        order.append(tmp_path / f"{name}.csv")
    told = succeeded(here("scaling", "report", *order, "--out", tmp_path / "report", "--draws", "20"))
    assert "report.md" in told
    assert "autoregressive" not in (tmp_path / "report" / "optima.csv").read_text()
    assert read_points(tmp_path / "report" / "points.csv") == [p for path in order for p in read_points(path)]


def test_tables_without_a_point_are_refused(tmp_path: Path, here: Here) -> None:
    for name in ("a.csv", "b.csv"):
        write_points(tmp_path / name, [])
    line = refusal(here("scaling", "fit", tmp_path / "a.csv", tmp_path / "b.csv"))
    assert line == f"{tmp_path / 'a.csv'} and {tmp_path / 'b.csv'}: no points yet: give a line for each trained model"
    line = refusal(here("scaling", "report", tmp_path / "b.csv", "--out", tmp_path / "report"))
    assert "no points yet" in line
