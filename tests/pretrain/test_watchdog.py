"""The watchdog of one rank: which phase may last how long, and what it leaves behind."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.health.config import WatchdogConfig
from pretrain.health.phases import Phases
from pretrain.health.signs import Sign, SignBoard, Verdict
from pretrain.health.watchdog import Watchdog
from runtime.errors import Hang, UserError

LONG = 1000.0


def config(**limits: float) -> WatchdogConfig:
    """Only the given limits can be reached."""
    return WatchdogConfig(**{"start": 0.2, "data": LONG, "collective": LONG, "step": LONG, "save": LONG} | limits)


class Watched:
    """A watchdog whose end is noted and not done."""

    def __init__(self, limits: WatchdogConfig, folder: Path, world: int = 1, waiting: bool = False) -> None:
        self.phases, self.board, self.found = Phases(), SignBoard(folder, world), threading.Event()
        self.hang: Hang | None = None
        self.dog = Watchdog(limits, self.board, 0, self.phases, lambda: waiting, self._end)

    def _end(self, hang: Hang) -> None:
        self.hang = hang
        self.found.set()
        self.dog._done.set()

    @contextmanager
    def past_the_first_step(self) -> Iterator[None]:
        with self.dog:
            self.phases.enter("step", 1)
            self.phases.enter("metrics", 1)
            yield


@pytest.mark.parametrize("phase", ["data", "collective", "step", "save"])
def test_each_phase_has_its_limit(tmp_path: Path, phase: str) -> None:
    limits = config(**{"data": 0.2, phase: 0.2})  # a collective must wait for data
    watched = Watched(limits, tmp_path)
    with watched.past_the_first_step():
        watched.phases.enter(phase, 2)
        assert watched.found.wait(30)
    assert watched.hang is not None
    assert watched.hang.exit_code == 76
    assert f"(in {phase} of step 2 for 0 s) hangs; stacks in {tmp_path}" in str(watched.hang)
    assert "test_watchdog.py" in (tmp_path / "stack-00000.txt").read_text()
    verdict = watched.board.verdict()
    assert verdict is not None
    assert verdict.ranks == (0,)


def test_phases_that_move_on_are_no_hang_however_long_it_goes(tmp_path: Path) -> None:
    watched = Watched(config(step=0.4, start=0.4), tmp_path)
    with watched.past_the_first_step():
        for step in range(40):
            watched.phases.enter("step", step)
            time.sleep(0.02)
        assert not watched.found.is_set()
    assert not watched.board.alarmed
    assert not (tmp_path / "stack-00000.txt").exists()


def test_the_first_step_may_take_as_long_as_the_start(tmp_path: Path) -> None:
    watched = Watched(config(start=LONG, step=0.1), tmp_path)
    with watched.dog:
        watched.phases.enter("step", 1)
        assert not watched.found.wait(0.5)


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    watched = Watched(config(step=0.1).model_copy(update={"enabled": False}), tmp_path)
    with watched.past_the_first_step():
        watched.phases.enter("step", 2)
        assert not watched.found.wait(0.5)


def test_a_rank_in_good_health_ends_with_the_one_that_raised_the_alarm(tmp_path: Path) -> None:
    watched = Watched(config(), tmp_path, world=2, waiting=True)
    other = Sign.of_this_process(1)
    with watched.past_the_first_step():
        assert watched.board.raise_alarm(1)
        assert not watched.board.raise_alarm(1)
        watched.board.show(replace(other, answered=True))
        while not (mine := watched.board.sign(0)) or not mine.answered:
            time.sleep(0.01)
        assert (mine.phase, mine.step, mine.waiting) == ("metrics", 1, True)
        watched.board.pronounce(Verdict((1,), "rank 1 hangs"))
        assert watched.found.wait(30)
    assert str(watched.hang).startswith("rank 1 hangs; stacks in ")


def test_limits_are_checked() -> None:
    with pytest.raises(UserError, match=r"watchdog: collective=5 is less than data=60.*: set collective=60 or more"):
        WatchdogConfig.parse({"data": "1m", "collective": 5}, "watchdog")
    with pytest.raises(UserError, match=r"watchdog: step: 'soon' is not a time: give seconds or for instance 3h55m"):
        WatchdogConfig.parse({"step": "soon"}, "watchdog")
    assert WatchdogConfig.parse({"step": "5m"}, "").step == 300
    assert WatchdogConfig().collective_timeout > WatchdogConfig().start


def test_a_torn_sign_is_none(tmp_path: Path) -> None:
    board = SignBoard(tmp_path, 2)
    board.show(Sign.of_this_process(0))
    (tmp_path / "rank-00001.json").write_text('{"rank": 1')
    assert list(board.signs(range(2))) == [0]
