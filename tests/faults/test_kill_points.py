"""Four of the points of `make prove-kill`: runs that are killed, resumed, and end as if nothing had been."""

import subprocess
from pathlib import Path

import pytest

from tests.support.kill_points import (
    RUN_MARK,
    Point,
    Reference,
    Setting,
    choose_points,
    prepare,
    processes_of,
    reference,
    run_point,
)

SETTINGS = [Setting(1, True), Setting(2, False)]
Known = tuple[Path, dict[Setting, Reference]]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """The uninterrupted runs."""
    work = tmp_path_factory.mktemp("kill")
    prepare(work)
    return work, {setting: reference(work, setting) for setting in SETTINGS}


def _chosen(known: dict[Setting, Reference]) -> list[Point]:
    """One point of each kind: a step and a save on one rank, a step and a save on two."""
    points = choose_points(40, 1, known)
    wanted = [("step", SETTINGS[0]), ("retention", SETTINGS[0]), ("step", SETTINGS[1]), ("rename", SETTINGS[1])]
    return [next(p for p in points if (p.place, p.setting) == kind) for kind in wanted]


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 3])
def test_a_killed_run_ends_as_if_nothing_had_been(known: Known, number: int) -> None:
    work, references = known
    point = _chosen(references)[number]
    result = run_point(work, point, references[point.setting])
    assert result["killed_at"] > 0


def test_a_process_that_a_run_leaves_is_seen_whatever_its_arguments_are(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], env={RUN_MARK: str(tmp_path)}) as left:
        try:
            assert processes_of(tmp_path) == [(left.pid, "sleep")]
        finally:
            left.kill()
    assert processes_of(tmp_path) == []


def test_both_settings_end_in_the_same_state(known: Known) -> None:
    """Of the metrics at least: shards are cut by ranks."""
    one, two = (known[1][setting] for setting in SETTINGS)
    assert [line["data/batch_digest"] for line in one.lines.values()] == [
        line["data/batch_digest"] for line in two.lines.values()
    ]
