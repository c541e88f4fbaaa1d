"""Finds a rank that hangs, and ends the attempt: a thread in every rank that looks up once a tick.

Whoever sees its own phase last too long raises the alarm. All ranks then say where they are and write the stacks of
their threads; the first finds out who is to blame; all end with the code of a hang. A rank whose interpreter is held
by C code cannot answer, and is known by that; its stacks come from faulthandler, which needs no interpreter. Time in
which this thread itself did not run (the whole job was suspended) does not count.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from pretrain.health.config import WatchdogConfig
from pretrain.health.culprit import pronounce
from pretrain.health.phases import Phases
from pretrain.health.signs import Sign, SignBoard, Verdict, state_of
from runtime.errors import Hang
from runtime.logs import log

_PAUSE = 0.05
_WRITE_STACKS = signal.SIGRTMIN + 7  # not used by NCCL, Slurm or Python; answered in C, without the interpreter
_SECONDS_TO_WRITE = 1.0


class Watchdog:
    """Watches `phases` of one rank while it is entered.

    `waiting`: whether this rank waits in a collective. `end` is called on the watchdog's thread with what was found,
    and must end the process. `each_tick` is called on that thread too; it must be quick.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        board: SignBoard,
        rank: int,
        phases: Phases,
        waiting: Callable[[], bool],
        end: Callable[[Hang], None],
        each_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._board, self._rank, self._phases = config, board, rank, phases
        self._waiting, self._end, self._each_tick = waiting, end, each_tick
        self._patience = config.patience
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lacuna-watchdog", daemon=True)
        self._mine = Sign.of_this_process(rank)
        self._seconds, self._shown = 0.0, -1

    def __enter__(self) -> Self:
        self._stacks = open(self._board.stack(self._rank), "w")
        faulthandler.register(_WRITE_STACKS, self._stacks, all_threads=True)
        self._board.show(self._mine)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(_WRITE_STACKS)
        self._stacks.close()
        with suppress(OSError):
            if not os.path.getsize(self._stacks.name):
                os.unlink(self._stacks.name)

    def _work(self) -> None:
        last, count = time.monotonic(), -1
        while not self._done.wait(self._config.tick):
            now, place = time.monotonic(), self._phases.place
            # after a suspension only as much as two ticks
            self._seconds = 0.0 if place.count != count else self._seconds + min(now - last, 2 * self._config.tick)
            last, count = now, place.count
            self._await_interpreter(place.phase)
            self._each_tick()
            if self._shown != count:
                self._board.show(self._sign())
                self._shown = count
            if self._board.alarmed:
                self._stop(self._follow_alarm())
            elif self._config.enabled and self._seconds >= self._config.limit(place.phase, self._phases.started):
                self._stop(self._lead_alarm() if self._board.raise_alarm(self._rank) else self._follow_alarm())

    def _await_interpreter(self, phase: str) -> None:
        """Have the stacks written if this thread does not get the interpreter for as long as `phase` may last."""
        longest = self._config.limit(phase, self._phases.started) + 2 * self._config.tick
        alone = self._board.world == 1  # nobody else would end it
        faulthandler.dump_traceback_later(longest, file=self._stacks, exit=alone and self._config.enabled)

    def _sign(self) -> Sign:
        place = self._phases.place
        return replace(
            self._mine,
            phase=place.phase,
            step=place.step,
            count=place.count,
            seconds=round(self._seconds, 3),
            waiting=self._waiting(),
        )

    def _answer(self) -> None:
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        self._board.show(replace(self._sign(), answered=True))

    def _lead_alarm(self) -> Verdict:
        """Wait until all have answered, as long as patience lasts, and judge."""
        self._answer()
        give_up = time.monotonic() + self._patience
        signs: dict[int, Sign] = {}
        while True:
            missing = [rank for rank in range(self._board.world) if rank not in signs or not signs[rank].answered]
            signs |= self._board.signs(missing)
            if all(rank in signs and signs[rank].answered for rank in missing) or time.monotonic() > give_up:
                break
            time.sleep(_PAUSE)
        verdict = pronounce(signs, self._board.world, self._rank, state_of)
        with suppress(OSError):
            self._board.pronounce(verdict)
        return verdict

    def _follow_alarm(self) -> Verdict:
        """Answer, and wait for what the first rank has found."""
        self._answer()
        give_up = time.monotonic() + 2 * self._patience
        while (verdict := self._board.verdict()) is None:
            if time.monotonic() > give_up:
                return Verdict((), "another rank has found a hang, and did not live to say whose")
            time.sleep(_PAUSE)
        return verdict

    def _stop(self, verdict: Verdict) -> None:
        with suppress(OSError):
            log.debug("stacks of rank %d:\n%s", self._rank, self._board.stack(self._rank).read_text())
        hang = Hang(f"{verdict.message}; stacks in {self._board.folder}, start again with the same --run to continue")
        log.debug("%s", hang)
        for sign in self._board.signs(verdict.ranks).values():
            if sign.rank != self._rank and not sign.answered and sign.near:
                _put_down(sign.pid)
        self._end(hang)


def _put_down(pid: int) -> None:
    """End a rank that gives no sign of life, and so does not end by itself; it may still write its stacks."""
    with suppress(ProcessLookupError):
        for number in (_WRITE_STACKS, signal.SIGCONT):
            os.kill(pid, number)
        time.sleep(_SECONDS_TO_WRITE)
        os.kill(pid, signal.SIGKILL)
