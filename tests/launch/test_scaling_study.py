"""`lacuna scaling fit` and `report`: from a table of points to laws, pictures, a page and a recipe."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from launch.recipe import load_recipe
from pretrain.scaling.compare import Comparison
from pretrain.scaling.points import Measured, write_points
from pretrain.scaling.power_law import Interval
from pretrain.scaling.repeats import RepeatLaw
from pretrain.scaling.report import page
from pretrain.scaling.study import Study, flops_per_token_of
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
    assert 6 * size * config.train.total_tokens == pytest.approx(1e22, rel=0.02)
    assert config.train.sequence_length == 4096
    assert "1e+22 FLOPs by 6nd" in recipe.read_text().splitlines()[0]
    assert found["comparison"]["isoflop"]["extrapolated"] == []


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
    names = {"report.md", "points.csv", "optima.csv", "isoflop.png", "frontier.png", "loss.png", "repeats.png"}
    assert {path.name for path in out.iterdir()} == {Path(path).name for path in told["files"]} == names
    for picture in out.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"]({picture.name})" in (out / "report.md").read_text()
    assert (out / "points.csv").read_text() == points.read_text()
    with open(out / "optima.csv") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 10
    assert {row["inside"] for row in rows} == {"True"}


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
