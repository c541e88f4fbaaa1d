"""Logs: one JSON object a line and rank, and plain words on the console of rank 0."""

import json
import logging
import sys
import time
from pathlib import Path

from runtime.environment import RankInfo

log = logging.getLogger("lacuna")


class _JsonLines(logging.Formatter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "rank": self._rank,
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _RankFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A log that cannot be written (a full disk) must not drown the console in tracebacks."""


def configure_logs(rank: RankInfo, directory: Path | None = None) -> None:
    """Send `log` to `directory/rank-NNNNN.jsonl` (every rank) and to standard error (rank 0, INFO and up)."""
    while log.handlers:
        log.handlers.pop().close()
    log.propagate = False
    log.setLevel(logging.DEBUG)
    if rank.is_first:
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.INFO)
        console.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(console)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        file = _RankFile(directory / f"rank-{rank.rank:05d}.jsonl", encoding="utf-8")
        file.setFormatter(_JsonLines(rank.rank))
        log.addHandler(file)
    log.debug("rank %d of %d starts at %s", rank.rank, rank.world, time.strftime("%Y-%m-%dT%H:%M:%S%z"))


def capture_warnings() -> None:
    """Send Python warnings (the engines give many) to the rank's log file instead of the console."""
    logging.captureWarnings(True)
    warnings = logging.getLogger("py.warnings")
    warnings.handlers = [handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]
    warnings.propagate = False
