"""`lacuna status --watch` as people see it: in a terminal."""

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

from pretrain.tracking.spool import read_metrics
from tests.support.command_line import ENVIRONMENT, LACUNA


def _shows(terminal: int, words: str, seconds: float = 120.0) -> bool:
    """Whether `words` come to the terminal."""
    seen, give_up = "", time.monotonic() + seconds
    while words not in seen and time.monotonic() < give_up:
        seen += os.read(terminal, 4096).decode(errors="replace")
    return words in seen


def test_the_table_follows_the_run_until_ctrl_c(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    last = read_metrics(metrics)[-1]
    terminal, theirs = pty.openpty()
    command = ["env", "--default-signal=INT", *LACUNA, "status", str(run), "--watch"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT) as watching:
        try:
            assert _shows(terminal, f"{last['step']}/8")
            with open(metrics, "a") as out:
                out.write(json.dumps(last | {"step": 7}) + "\n")
            assert _shows(terminal, "7/8")
            watching.send_signal(signal.SIGINT)
            assert watching.wait(30) == 130
        finally:
            watching.kill()
    os.close(theirs)
    os.close(terminal)
