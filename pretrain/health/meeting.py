"""Watches over a rank until it has met its peers: nothing else would tell soon which of them has not come."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pretrain.health.config import WatchdogConfig
from pretrain.health.phases import Phases
from pretrain.health.signs import SignBoard
from pretrain.health.watchdog import Watchdog
from pretrain.run_directory import RunDirectory
from runtime.environment import RankInfo
from runtime.errors import Hang
from runtime.files import digest_bytes
from runtime.logs import log

_OF_A_START = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
)


@contextmanager
def watched_until_met(
    config: WatchdogConfig, directory: RunDirectory, attempt: int, rank: RankInfo, end: Callable[[Hang], None]
) -> Iterator[threading.Event]:
    """Yields what is set once this rank only waits for others. `watchdog.start` is the limit; `end`: see `Watchdog`.

    There is no lease yet that names the attempt's processes, so signs lie in a folder that is named after what all
    ranks of one start have in common.
    """
    waits = threading.Event()
    board = SignBoard(directory.logs(attempt) / f"watch-start-{_start(os.environ)}", rank.world)
    if rank.world == 1 or board.alarmed:
        if board.alarmed:
            log.debug("%s is of an earlier start: nobody watches until the ranks have met", board.folder)
        yield waits
        return
    with Watchdog(config, board, rank.rank, Phases(), waits.is_set, end):
        yield waits


def _start(variables: Mapping[str, str]) -> str:
    return digest_bytes("\0".join(variables.get(name, "") for name in _OF_A_START).encode())[:8]
