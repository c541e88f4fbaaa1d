"""The metrics file: exact, whole, and never a step twice, whatever is done to it."""

import json
import math
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.tracking.spool import Spool, iterate_metrics, read_metrics
from runtime.errors import UserError


def _fill(path: Path, steps: range, resume_step: int = -1, **values: float) -> None:
    with Spool(path, resume_step) as spool:
        for step in steps:
            spool.write(step, {"train/loss": 1.0 / (step + 1), **values})


def _steps(path: Path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


@given(st.floats())
@settings(max_examples=200, deadline=None)
def test_floats_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.getbasetemp() / "floats.jsonl"
    with Spool(path) as spool:
        spool.write(0, {"x": value})
    back = read_metrics(path)[0]["x"]
    assert isinstance(back, float)
    same = np.float64(back).tobytes() == np.float64(value).tobytes()
    assert same or (math.isnan(back) and math.isnan(value))


def test_a_line_is_strict_json_with_step_and_time_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.1), "e": np.int64(3)}
    with Spool(path) as spool:
        spool.write(7, values | {"f": "x\n\u2028"})

        def refuse(word: str) -> None:
            raise AssertionError(word)

        text = path.read_text()  # before close: every line is flushed
    line = json.loads(text, parse_constant=refuse)
    assert text.count("\n") == 1
    assert list(line)[:2] == ["step", "time"]
    assert [line[key] for key in "abcdef"] == ["nan", "inf", "-inf", float(np.float32(0.1)), 3, "x\n\u2028"]
    assert read_metrics(path)[0]["c"] == -math.inf


@pytest.mark.parametrize(("resume_step", "kept"), [(-1, 0), (0, 1), (4, 5), (9, 10), (50, 10)])
def test_opening_drops_what_comes_after_the_resume_step(tmp_path: Path, resume_step: int, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    _fill(path, range(10))
    before = path.read_bytes().splitlines()
    Spool(path, resume_step).close()
    assert path.read_bytes().splitlines() == before[:kept]


def test_every_cut_of_the_file_is_read_and_continued(tmp_path: Path) -> None:
    path, cut = tmp_path / "metrics.jsonl", tmp_path / "cut.jsonl"
    _fill(path, range(3))
    data = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        whole = sum(end - 1 <= length for end in ends)  # a last line that lacks but its newline is whole
        assert _steps(cut) == list(range(whole))
        with Spool(cut, 9) as spool:
            spool.write(10, {"x": 1})
        assert _steps(cut) == [*range(whole), 10]


def test_a_step_is_never_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _fill(path, range(5))
    with Spool(path, 3) as spool:
        for step in (3, 0, -1):
            with pytest.raises(ValueError, match="not above step 3"):
                spool.write(step, {})
        spool.write(4, {})
    assert _steps(path) == [0, 1, 2, 3, 4]


def test_a_file_with_repeated_steps_is_read_once_each(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 2, 1, 3)))
    assert _steps(path) == [1, 2, 3]
    Spool(path, 9).close()
    assert path.read_text().count("step") == 3


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", None, [1.0], {"a": 1}, 1j, b"x"])
def test_values_that_would_not_come_back_are_refused(tmp_path: Path, value: object) -> None:
    with Spool(tmp_path / "metrics.jsonl") as spool:
        with pytest.raises(ValueError, match="metric 'x'"):
            spool.write(1, {"x": value})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="by the spool itself"):
            spool.write(1, {"time": 1.0})
        spool.write(1, {"x": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


_BROKEN = [b"{", b"[1]", b'{"step": "1"}', b'{"step": true}', b'{"step": -4}', b"\xff\x00", b"[" * 99999]


@pytest.mark.parametrize("line", _BROKEN)
def test_a_broken_line_is_named_in_reading_and_mended_in_opening(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is broken at byte 12"):
        read_metrics(path)
    Spool(path, 5).close()
    assert _steps(path) == [1, 2]


def test_a_long_file_is_mended_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open(path, "wb") as out:
        for step in range(20_000):
            out.write(json.dumps({"step": step, "text": "x" * 500}).encode() + b"\n")
    tracemalloc.start()
    Spool(path, 19_000).close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 20
    assert _steps(path) == list(range(19_001))


def test_reading_from_an_offset_gives_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _fill(path, range(6))
    lines = list(iterate_metrics(path))
    assert list(iterate_metrics(path, lines[4][0])) == lines[4:]


def test_an_orphan_of_the_old_attempt_cannot_write_into_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    orphan = Spool(path)
    orphan.write(1, {"x": 1})
    with Spool(path, 1) as spool:
        orphan.write(2, {"x": -1})
        spool.write(2, {"x": 2})
    orphan.close()
    assert [line["x"] for line in read_metrics(path)] == [1, 2]


def test_a_killed_writer_loses_nothing_it_has_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import os, signal, sys; from pathlib import Path; from pretrain.tracking.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "for step in range(50): spool.write(step, {'x': step / 3})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [line["x"] for line in read_metrics(path)] == [step / 3 for step in range(50)]


def test_missing_and_unwritable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read"):
        read_metrics(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        Spool(tmp_path)
    assert os.listdir(tmp_path) == []
