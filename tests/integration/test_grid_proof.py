"""The proof of the grid judges what it publishes, keeps its results, and writes the same page for the same results."""

from pathlib import Path

import pytest

from runtime.files import read_json, write_json
from tests.prove.grid import prove, publish
from tests.support.grid import Case

BEFORE = "# Page\n<!-- grid: begin -->\nold\n<!-- grid: end -->\nrest\n"


def test_a_fault_fails_the_proof_and_a_sound_one_is_published(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cases, work, page = [Case(1, {"zero": 0}, steps=2)], tmp_path / "work", tmp_path / "page.md"
    page.write_text(BEFORE)
    outcomes = list(prove(cases, work))
    assert publish(outcomes, page, "prove") == 0
    first = page.read_text()
    launch = next(work.glob("*/launch.json"))
    assert first.startswith(
        f"# Page\n<!-- grid: begin -->\n1 cases in 1 worlds by `prove`, {read_json(launch)['date']}, "
    )
    assert "| megatron single zero0 2 steps masked mb2 fp32 |" in first
    assert first.endswith("<!-- grid: end -->\nrest\n")

    results = launch.with_name("results.json")
    written = results.stat().st_mtime_ns
    assert publish(list(prove(cases, work)), page, "prove") == 0
    assert (page.read_text(), results.stat().st_mtime_ns) == (first, written)

    (found,) = read_json(results)
    write_json(results, [found | {"losses": [found["losses"][0] * 1.0001, *found["losses"][1:]]}])
    capsys.readouterr()
    assert publish(list(prove(cases, work)), page, "prove") == 1
    assert page.read_text() == first
    assert "megatron single zero0 2 steps masked mb2 fp32: loss 1.0e-04 > 1.0e-05" in capsys.readouterr().err
