"""Accounts of wall time: attempts by a clock that the test moves, sums that are exact, and losses by enumeration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain import goodput
from pretrain.goodput import Accounts, Ledger, attempt_began, newest_accounts, note_accounts, open_accounts
from pretrain.run_directory import RunDirectory
from pretrain.tracking.spool import Spool, read_metrics
from runtime.files import write_json


@dataclass
class Clock:
    """Stands still until it is moved; takes the place of module `time` in what it is given to."""

    now: float = 1000.0

    def time(self) -> float:
        return self.now

    perf_counter = time


@dataclass
class Run:
    """A run whose attempts train, save and break off as the test says."""

    directory: RunDirectory
    clock: Clock
    log_every: int = 1
    began: float = 1000.0
    attempts: list[Accounts] = field(default_factory=list)

    def attempt(self, start: int, steps: int, startup: float, closes: bool = False) -> None:
        """From checkpoint `start` on: `steps` steps of 2 s, of which 0.5 s wait, a save of 1 s after each second."""
        began = self.clock.now
        self.clock.now += startup
        accounts = open_accounts(self.directory, start, began, self.clock.now)
        note_accounts(self.directory, start, accounts)
        ledger, stalled = Ledger(accounts), 0.0
        with Spool(self.directory.metrics, start) as spool:
            for step in range(start + 1, start + steps + 1):
                self.clock.now += 2.0
                ledger.wait(0.5)
                if ledger.must_tell:
                    note_accounts(self.directory, step, ledger.accounts(stalled))
                    ledger.told()
                if step % self.log_every == 0:
                    spool.write(step, ledger.accounts(stalled).metrics())
                    ledger.told()
                if step % 2 == 0:
                    self.clock.now, stalled = self.clock.now + 1.0, stalled + 1.0
        if closes:
            note_accounts(self.directory, start + steps, ledger.accounts(stalled))

    def accounts(self) -> Accounts:
        lines = read_metrics(self.directory.metrics)
        found = newest_accounts(self.directory, lines[-1] if lines else {})
        assert found is not None
        return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    clock = Clock()
    monkeypatch.setattr(goodput, "time", clock)
    monkeypatch.setattr("pretrain.tracking.spool.time", clock)
    return Run(RunDirectory(tmp_path), clock)


def test_one_attempt_to_its_end(run: Run) -> None:
    run.attempt(0, 4, startup=7.0, closes=True)
    assert run.accounts() == Accounts(productive=6.0, data_wait=2.0, checkpoint=2.0, restart=7.0)
    assert run.accounts().wall == run.clock.now - run.began
    assert run.accounts().goodput == 6.0 / 17.0


def test_steps_done_again_are_lost_with_their_waits_and_saves(run: Run) -> None:
    run.attempt(0, 5, startup=7.0)  # killed after step 5; its saves came after steps 2 and 4
    run.clock.now += 3.0
    run.attempt(2, 4, startup=5.0, closes=True)
    # line 2 came before the save of step 2: steps 3 to 5 and two saves lie between it and line 5
    assert run.accounts() == Accounts(
        productive=3.0 + 6.0, data_wait=1.0 + 2.0, checkpoint=2.0, restart=7.0 + 3.0 + 5.0, lost=8.0, lost_steps=3,
        restarts=1,
    )  # fmt: skip
    assert run.accounts().wall == run.clock.now - run.began


def test_steps_between_rare_lines_are_accounted_for_every_half_minute(run: Run) -> None:
    run.log_every = 1000
    run.attempt(0, 20, startup=0.0)  # the note comes after step 13, which ends after 26 s of steps and six saves
    run.attempt(10, 0, startup=0.0)
    assert run.accounts() == Accounts(restart=50.0 - 32.0, lost=32.0, lost_steps=3, restarts=1)


def test_an_attempt_that_dies_before_its_first_line_hides_no_loss(run: Run) -> None:
    run.attempt(0, 5, startup=1.0)
    run.attempt(2, 0, startup=4.0)
    assert len(read_metrics(run.directory.metrics)) == 2  # the lines that told of the loss are gone
    assert (run.accounts().lost, run.accounts().lost_steps) == (8.0, 3)
    run.attempt(2, 2, startup=4.0, closes=True)
    assert (run.accounts().lost, run.accounts().lost_steps, run.accounts().restarts) == (8.0, 3, 2)
    assert run.accounts().wall == run.clock.now - run.began


def test_back_to_the_beginning_all_is_lost(run: Run) -> None:
    run.attempt(0, 4, startup=1.0, closes=True)
    run.attempt(0, 2, startup=1.0, closes=True)
    assert run.accounts() == Accounts(3.0, 1.0, 1.0, restart=2.0, lost=10.0, lost_steps=4, restarts=1)


@settings(max_examples=25, deadline=None)
@given(
    attempts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0, 50), st.booleans()), max_size=6),
    log_every=st.integers(1, 3),
)
def test_the_kinds_add_up_to_the_wall_time(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int, float, bool]], log_every: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(goodput, "time", clock)
        patch.setattr("pretrain.tracking.spool.time", clock)
        run = Run(RunDirectory(tmp_path_factory.mktemp("run")), clock, log_every)
        reached = 0
        for back, steps, startup, closes in [*attempts, (0, 1, 0.0, True)]:
            start = max(0, reached - back)
            run.attempt(start, steps, startup, closes)
            reached = start + steps
        found = run.accounts()
        assert found.wall == pytest.approx(clock.now - run.began, abs=0.02)  # lines are rounded to milliseconds
        assert min(found.productive, found.data_wait, found.checkpoint, found.restart, found.lost) >= -1e-9
        assert found.restarts == len(attempts)
        if log_every == 1:
            assert found.productive == pytest.approx(1.5 * reached, abs=0.02)


def test_a_line_gives_its_accounts_back() -> None:
    accounts = Accounts(1.5, 0.25, 2.0, 3.125, 4.0, 5, 6)
    assert Accounts.of_line(accounts.metrics()) == accounts
    assert Accounts.of_line({"step": 1}) is None
    assert Accounts().goodput == 0.0


def test_a_torn_line_amid_the_metrics_stops_no_run(run: Run) -> None:
    run.attempt(0, 3, startup=1.0)
    lines = run.directory.metrics.read_bytes().splitlines(keepends=True)
    run.directory.metrics.write_bytes(lines[0] + b'{"step": 2, "ti\n' + lines[2])
    run.attempt(1, 1, startup=1.0)
    assert run.accounts().lost_steps == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1, "time": "x"}', '{"step": 1, "time": 2, "odd": 3}'])
def test_a_broken_file_stops_no_run(run: Run, text: str) -> None:
    run.directory.goodput.write_text(text)
    assert newest_accounts(run.directory, {}) is None
    assert open_accounts(run.directory, 3, began=10.0, now=12.5) == Accounts(restart=2.5)


def test_when_an_attempt_began(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = [{"started": "1970-01-01T01:00:05+0100", "job": "7"}, {"started": "1970-01-01T00:00:05+0000"}]
    write_json(run.directory.metadata, {"name": "x", "attempts": attempts})
    assert attempt_began(run.directory, 0) == 5.0
    assert attempt_began(run.directory, 1) > 1e9  # this process is not that old
    monkeypatch.setenv("LACUNA_STARTED", "12.5")
    assert attempt_began(run.directory, 0) == 12.5
