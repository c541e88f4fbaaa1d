"""When a run with a known end stops, on a clock that the test moves."""

from dataclasses import dataclass

import pytest

from runtime.deadline import STARTED, Deadline, StopOrDeadline, duration
from runtime.errors import UserError
from runtime.signals import StopRequest


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def steps_taken(deadline: Deadline, clock: Clock, step: float, save: float, every: int) -> int:
    """Steps until the deadline is near, when a step and a save take so long, and a save is made every so many."""
    steps = 0
    while not deadline.near():
        clock.now += step
        steps += 1
        if steps % every == 0:
            clock.now += save
            deadline.note_save(save)
    return steps


@pytest.mark.parametrize("left", [100.0, 333.0, 1000.0])
@pytest.mark.parametrize(("step", "save"), [(1.0, 0.0), (1.0, 7.0), (5.0, 20.0)])
@pytest.mark.parametrize("reserve", [0.0, 15.0])
@pytest.mark.parametrize("every", [1, 4])
def test_there_is_time_for_the_last_save_and_no_step_is_given_away(
    left: float, step: float, save: float, reserve: float, every: int
) -> None:
    clock = Clock()
    deadline = Deadline(left, reserve, clock)
    steps = steps_taken(deadline, clock, step, save, every)
    spare = 1000.0 + left - (clock.now + (save if steps % every else 0) + reserve)
    assert 0 <= spare <= step + save  # another step and its save would have been too much


def test_a_first_slow_step_is_forgotten() -> None:
    clock = Clock()
    deadline = Deadline(1000.0, 0.0, clock)
    assert not deadline.near()
    clock.now += 300
    while clock.now < 1990:
        assert not deadline.near()
        clock.now += 1


def test_without_a_limit_there_is_no_end() -> None:
    clock = Clock()
    deadline = Deadline(None, 60.0, clock)
    clock.now += 1e12
    assert not deadline.near()


def test_a_limit_that_is_past_is_near_at_once() -> None:
    assert Deadline(-5.0, 0.0, Clock()).near()


@pytest.mark.parametrize(
    ("limit", "variables", "near"),
    [
        (None, {}, False),
        (1e6, {}, False),
        (0.0, {}, True),
        (1e12, {STARTED: "0"}, False),
        (1e6, {STARTED: "1000000000.5"}, True),
        (None, {"SLURM_JOB_END_TIME": "1000000000"}, True),
        (None, {"SLURM_JOB_END_TIME": "99999999999"}, False),
        (0.0, {"SLURM_JOB_END_TIME": "99999999999"}, True),
        (1e6, {"SLURM_JOB_END_TIME": "1000000000"}, True),
        (None, {STARTED: "0", "SLURM_JOB_END_TIME": ""}, False),
    ],
)
def test_the_earlier_of_two_ends_counts(limit: float | None, variables: dict[str, str], near: bool) -> None:
    assert Deadline.of_attempt(limit, 60.0, variables).near() is near


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan", "1 2"])
@pytest.mark.parametrize("name", [STARTED, "SLURM_JOB_END_TIME"])
def test_variables_that_are_no_time(name: str, text: str) -> None:
    with pytest.raises(UserError, match=f"environment variable {name}='{text}' is not a time"):
        Deadline.of_attempt(1.0, 60.0, {name: text})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5s", 1.5), ("3h55m", 14100), ("1d2h3m4s", 93784), (" 2m ", 120), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("value", [90, 1.5, None, True, [1]])
def test_values_that_are_no_texts_are_left_alone(value: object) -> None:
    assert duration(value) is value


@pytest.mark.parametrize("text", ["", " ", "3x", "h", "55m3h", "3h 55m", "-3h", "1e3", "٣h", "1.5h"])
def test_texts_that_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time: give seconds or for instance 3h55m"):
        duration(text)


def test_a_signal_and_the_clock_are_both_asked() -> None:
    clock, request = Clock(), StopRequest()
    asked = StopOrDeadline(request, Deadline(10.0, 0.0, clock))
    assert not asked
    clock.now += 4
    assert not asked
    clock.now += 4
    assert asked  # a step takes 4 s
    assert StopOrDeadline(request, Deadline(None, 0.0, clock)).__bool__() is False
