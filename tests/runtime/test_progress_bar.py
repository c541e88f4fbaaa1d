"""Off a terminal progress is plain lines, seldom; on one it is a bar; unwanted it is silent."""

import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest

from runtime.progress import ProgressBar

_PROGRAM = (
    "from runtime.progress import ProgressBar\n"
    "with ProgressBar('train', 20) as bar:\n"
    "    for _ in range(20): bar.advance(1, 'loss 1.5')\n"
)


def test_off_a_terminal_one_plain_line_at_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("train", 1000) as bar:
        for _ in range(1000):
            bar.advance(1, "loss 1.5")
        assert capfd.readouterr() == ("", "")
    assert capfd.readouterr() == ("", "train: 1000/1000 loss 1.5\n")


def test_not_visible_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("train", 3, visible=False) as bar:
        bar.advance(3)
    assert capfd.readouterr() == ("", "")


def test_an_error_speaks_for_itself(capfd: pytest.CaptureFixture[str]) -> None:
    with suppress(ValueError), ProgressBar("train", 3) as bar:
        bar.advance(1)
        raise ValueError
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_a_bar_on_standard_error() -> None:
    leader, follower = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            stdout=subprocess.PIPE,
            stderr=follower,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
            check=True,
            timeout=60,
        )
        shown = os.read(leader, 1 << 16).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert result.stdout == b""
    assert "20/20" in shown
    assert "\x1b[" in shown
