"""CSV files of points: ours read back, other people's are taken, broken ones are named in one line."""

from pathlib import Path

import pytest

from pretrain.scaling.points import Measured, by_budget, families, read_points, single_epoch, write_points
from runtime.errors import UserError
from tests.support.planted import CHINCHILLA, planted_points

HEADER = "family,parameters,tokens,flops,loss"


def table(folder: Path, text: str) -> Path:
    path = folder / "points.csv"
    path.write_bytes(text.encode())
    return path


def test_written_points_read_back_equal(tmp_path: Path) -> None:
    points = [
        *planted_points(CHINCHILLA),
        Measured("ar", 1 / 3, 0.1 + 0.2, 1e300, 2.5, 0.0, 1e18, 5e-5, 1.1, 0.2, 'a "quoted", name', "c1", "d1"),
    ]
    write_points(tmp_path / "points.csv", points)
    assert read_points(tmp_path / "points.csv") == points


def test_other_peoples_tables_are_taken(tmp_path: Path) -> None:
    text = (
        "\ufeffloss , family,wandb_id,config,data, tokens,parameters,flops\r\n2.5,ours,x17,c,d, 2e9,1E8,1.2e18\r\n\r\n"
    )
    assert read_points(table(tmp_path, text)) == [Measured("ours", 1e8, 2e9, 1.2e18, 2.5)]


def test_a_sweeps_table_has_no_points_at_first(tmp_path: Path) -> None:
    write_points(tmp_path / "points.csv", [])
    assert read_points(tmp_path / "points.csv") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'family'"),
        ("family,params,tokens,flops,loss\na,1,1,1,1\n", "has no column 'parameters'"),
        (HEADER + ",loss_es\na,1,1,1,1,1\n", r"unknown column 'loss_es' \(did you mean 'loss_se'\?\): rename it"),
        (HEADER + ",loss\na,1,1,1,1,1\n", "column 'loss' stands twice"),
        (HEADER + "\na,1,1,1,1\na,1,x,1,1\n", r"line 3, tokens: 'x' is no positive finite number"),
        (HEADER + "\na,1,1,1,nan\n", r"line 2, loss: 'nan' is no positive"),
        (HEADER + "\na,-1,1,1,1\n", r"line 2, parameters: '-1' is no positive"),
        (HEADER + "\na,1,0,1,1\n", r"line 2, tokens: '0' is no positive"),
        (HEADER + "\na,1,1,1\n", r"line 2: loss is empty"),
        (HEADER + "\n,1,1,1,1\n", r"line 2: family '' is no name"),
        (HEADER + "\n$x_1$|<b>,1,1,1,1\n", r"line 2: family .* is no name"),
        (HEADER + '\n"a,1,1,1,1\n', r"line \d: unexpected end of data"),
        (HEADER + "\na,1e999,1,1,1\n", r"line 2, parameters: '1e999' is no positive"),
    ],
)
def test_broken_tables_are_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        read_points(table(tmp_path, text))
    assert str(tmp_path / "points.csv") in str(told.value)
    assert "\n" not in str(told.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_points(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_points(tmp_path)
    (tmp_path / "points.csv").write_bytes(b"\xff\xfe\x00family")
    with pytest.raises(UserError, match="not UTF-8"):
        read_points(tmp_path / "points.csv")


def test_points_without_budgets_are_grouped_by_near_flops() -> None:
    exact = planted_points(CHINCHILLA)
    bare = [Measured(p.family, p.parameters, p.tokens, p.flops * (1 + 0.01 * i), p.loss) for i, p in enumerate(exact)]
    assert [len(group) for group in by_budget(bare)] == [5] * 5
    for group in by_budget(bare):
        assert [p.parameters for p in group] == sorted(p.parameters for p in group)


def test_epochs_and_families() -> None:
    points = [Measured("a", 1, 100, 1, 1), Measured("b", 1, 100, 1, 1, unique_tokens=25), Measured("a", 1, 9, 1, 1)]
    assert [point.epochs for point in points] == [1, 4, 1]
    assert families(points) == ["a", "b"]
    assert single_epoch(points) == [points[0], points[2]]
