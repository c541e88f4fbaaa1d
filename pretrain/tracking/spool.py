"""The metrics file `RUN/metrics.jsonl`: the truth about a run's curve, whatever a tracking server has seen.

One JSON object a line, keys `step` and `time` (seconds since 1970) first, floats in full precision. JSON has
no words for values that are not finite: they stand as the strings "nan", "inf" and "-inf", and readers here
turn them back into floats. Steps grow strictly from line to line, so no step is there twice.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from runtime.errors import UserError
from runtime.files import write_pieces
from runtime.logs import log

_ENCODER = json.JSONEncoder(allow_nan=False)  # one for all lines, for `json.dumps` would make one for each
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Spool:
    """The only writer of a metrics file, for a run that continues after `resume_step` (-1: from nothing).

    Opening drops every later line, since these steps will be run again, and torn or broken lines; both are
    said in the log. The file is always replaced by a new one, so that an orphan of an older attempt that
    still holds the old one can no longer write into this run's curve. Raises UserError if the file cannot be
    written.
    """

    def __init__(self, path: Path, resume_step: int = -1) -> None:
        self.path = path
        try:
            kept = _Kept(path, resume_step)
            write_pieces(path, kept)
            self.last_step = kept.last_step
            self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as error:
            reason = error.strerror
            raise UserError(f"{path} cannot be written ({reason}): check rights and free space") from None

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Append the values of `step` as one line and flush it to the operating system.

        Raises ValueError if `step` is not above the last one or a value cannot stand in the file unchanged,
        OSError if the disk is full (the line is then completed by the next call that succeeds).
        """
        if step <= self.last_step:
            raise ValueError(f"step {step} is not above step {self.last_step}, the last one in {self.path}")
        entry: dict[str, float | int | str] = {"step": int(step), "time": round(time.time(), 3)}
        for key, value in values.items():
            if key in ("step", "time"):
                raise ValueError(f"metric {key!r} is written by the spool itself")
            entry[key] = _plain(key, value)
        self.last_step = int(step)
        self._file.write(_ENCODER.encode(entry).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file in the order of their steps; a torn last line is left out.

    Raises UserError if the file is missing, or broken before its last line.
    """
    return [entry for _, entry in iterate_metrics(path)]


def iterate_metrics(path: Path, offset: int = 0, skip_broken: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (byte at which the line starts, line) from byte `offset` on, in constant memory.

    A line whose step is not above the one before is left out. Stops at a torn last line, which may be one
    that is being written. Raises as `read_metrics` does; with `skip_broken` not for broken lines.
    """
    last_step = -1
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while line := file.readline():
                entry = _parsed(line)
                if entry is not None and entry["step"] > last_step:
                    last_step = entry["step"]
                    yield offset, entry
                elif entry is None and not skip_broken and line.strip() and file.readline():
                    raise UserError(f"{path} is broken at byte {offset}: remove that line")
                offset += len(line)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from None


class _Kept:
    """The lines to keep, each with its newline, read one by one; afterwards `last_step` is the last among them."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path, self._resume_step = path, resume_step
        self.last_step = -1

    def __iter__(self) -> Iterator[bytes]:
        later = broken = 0
        for line in _lines(self._path):
            entry = _parsed(line)
            if entry is None:
                broken += bool(line.strip())
            elif entry["step"] > self._resume_step:
                later += 1
            elif entry["step"] > self.last_step:
                self.last_step = entry["step"]
                yield line.rstrip(b"\r\n") + b"\n"
        name = self._path.name
        if later:
            log.info("%s: %d lines after step %d dropped, to be written anew", name, later, self._resume_step)
        if broken:
            log.warning("%s: %d torn or broken lines dropped", name, broken)


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with open(path, "rb") as file:
            yield from file


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or entry["step"] < 0:
        return None
    return {key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in entry.items()}


def _plain(key: str, value: object) -> float | int | str:
    """`value` as Python's own number or string. NumPy scalars are numbers, tensors are not."""
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return value  # nearly all are such, and asking abstract classes is slow
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if not isinstance(value, str):
        raise ValueError(f"metric {key!r} is a {type(value).__name__}, not a number or a string")
    if value in _NOT_FINITE:
        raise ValueError(f"metric {key!r} is the string {value!r}, which readers would take for a number")
    return value
