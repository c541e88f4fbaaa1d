"""Logs stay one JSON object a line, whatever is logged, and the console hears rank 0 only."""

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.environment import RankInfo
from runtime.logs import capture_warnings, configure_logs, log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    logging.captureWarnings(False)
    for logger in (log, logging.getLogger("py.warnings")):
        for handler in logger.handlers:
            handler.close()
        logger.handlers = []
        logger.propagate = True


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_every_message_is_one_json_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(RankInfo(3, 4), tmp_path / "logs")
    hostile = 'two\nlines\r\n"quoted" \u2028 \x00 {"level": "fake"}'
    log.info("%s", hostile)
    try:
        raise RuntimeError("inner\nreason")
    except RuntimeError:
        log.error("failed", exc_info=True)
    entries = _lines(tmp_path / "logs/rank-00003.jsonl")
    assert [entry["level"] for entry in entries] == ["debug", "info", "error"]
    assert entries[1]["message"] == hostile
    assert "RuntimeError: inner\nreason" in str(entries[2]["traceback"])
    assert all(entry["rank"] == 3 and isinstance(entry["time"], float) for entry in entries)
    assert capsys.readouterr() == ("", "")


def test_the_console_hears_rank_0_from_info_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(RankInfo(), tmp_path)
    configure_logs(RankInfo(), tmp_path)  # a second time adds nothing
    log.debug("quiet")
    log.info("loud")
    assert capsys.readouterr().err == "loud\n"
    assert [entry["message"] for entry in _lines(tmp_path / "rank-00000.jsonl")].count("quiet") == 1


def test_warnings_go_to_the_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(RankInfo(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        capture_warnings()
        warnings.warn("an engine grumbles", stacklevel=1)
    assert "an engine grumbles" in str(_lines(tmp_path / "rank-00000.jsonl")[-1]["message"])
    assert capsys.readouterr().err == ""


def test_a_log_without_room_says_nothing(tmp_path: Path) -> None:
    program = (
        "import pathlib, resource, signal, sys\n"
        "from runtime.environment import RankInfo\n"
        "from runtime.logs import configure_logs, log\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "configure_logs(RankInfo(1, 2), pathlib.Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "for _ in range(50): log.info('x' * 100)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
