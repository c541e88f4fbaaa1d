"""A time limit that is known in advance: when to stop so that there is still time for a save."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from runtime.errors import UserError
from runtime.signals import StopRequest

STARTED = "LACUNA_STARTED"
"""When the launcher started, seconds since 1970: a limit counts from there, also in its workers."""
_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)
_SECONDS = (86400, 3600, 60, 1)
_STEPS = 8


def duration(value: Any) -> Any:
    """Seconds from a text such as `3h55m`, `1d2h`, `90s` or `90`; other values are left as they are.

    Raises ValueError if it is another text.
    """
    if not isinstance(value, str):
        return value
    found = _PARTS.fullmatch(value.strip())
    if found is None or not any(found.groups()):
        raise ValueError(f"{value!r:.40} is not a time: give seconds or for instance 3h55m")
    return sum(float(part) * unit for part, unit in zip(found.groups(), _SECONDS, strict=True) if part)


class Deadline:
    """Whether the end is so near that the run must stop now. Without a limit it never is.

    Time is kept for one more step, one save and `reserve` seconds; both are taken as long as this attempt has seen
    them: the longest of the last steps, the longest save.
    """

    def __init__(self, left: float | None, reserve: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if left is None else clock() + left
        self._reserve = reserve
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._save = 0.0
        self._asked: float | None = None

    @classmethod
    def of_attempt(cls, limit: float | None, reserve: float, variables: Mapping[str, str] | None = None) -> Deadline:
        """The earlier of `limit` seconds after the attempt's start and Slurm's SLURM_JOB_END_TIME, if it is set.

        Raises UserError if a variable is not a time.
        """
        variables = os.environ if variables is None else variables
        now = time.time()
        ends = [seconds for seconds in [_seconds(variables, "SLURM_JOB_END_TIME")] if seconds is not None]
        if limit is not None:
            started = _seconds(variables, STARTED)
            ends.append((now if started is None else started) + limit)
        return cls(min(ends) - now if ends else None, reserve)

    def near(self) -> bool:
        """Whether to stop instead of taking another step; asked once before each step."""
        if self._end is None:
            return False
        now = self._clock()
        if self._asked is not None:
            self._steps.append(now - self._asked)
        self._asked = now
        return now + max(self._steps, default=0.0) + self._save + self._reserve >= self._end

    def note_save(self, seconds: float) -> None:
        """A save, now ended, took so long; what is left of the time since `near` was asked was a step's.

        A save in the background may have taken longer than that; then nothing is known of the step.
        """
        self._save = max(self._save, seconds)
        if self._asked is not None and (left := self._clock() - self._asked - seconds) > 0:
            self._steps.append(left)
        self._asked = None


class StopOrDeadline:
    """True once a stop was requested or the deadline is near; asked once before each step."""

    def __init__(self, request: StopRequest, deadline: Deadline) -> None:
        self._request, self._deadline = request, deadline

    def __bool__(self) -> bool:
        near = self._deadline.near()
        return near or bool(self._request)


def _seconds(variables: Mapping[str, str], name: str) -> float | None:
    text = variables.get(name, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"environment variable {name}={text!r:.40} is not a time in seconds since 1970: unset it")
    return seconds
