"""A run that nobody attends while faults come at random: what starts it again, and what strikes it."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.command_line import ENVIRONMENT, LACUNA
from tests.support.hooked import hooked
from tests.support.kill_points import RUN_MARK
from tests.support.unreliable_server import Mode, UnreliableServer

FULL_SECONDS = 6.0
_PAUSE = 0.2
_TRACKER_SECONDS = 15.0
_TRACKER_FAULTS: tuple[Mode, ...] = ("refused", "black hole", "500", "cut")
_NO_ROOM = ("free some room", "No space left on device", "could not write why")


@dataclass(frozen=True)
class Fault:
    """`moment`: seconds after the soak's beginning. `choice` decides what the kind leaves open (which rank, say)."""

    moment: float
    kind: str
    choice: float


def plan_faults(kinds: Mapping[str, float], seconds: float, mean: float, seed: int) -> list[Fault]:
    """Faults at random times, `mean` seconds apart on average; `kinds` with weights. Each kind comes at least once
    if there are enough: they are dealt from decks, so that a short soak is not without one of them.
    """
    source, faults, moment = random.Random(seed), list[Fault](), 0.0
    deck: list[str] = []
    while (moment := moment + source.expovariate(1 / mean)) < seconds:
        if not deck:
            deck = [kind for kind, weight in kinds.items() for _ in range(round(weight))]
            source.shuffle(deck)
        faults.append(Fault(moment, deck.pop(), source.random()))
    return faults


@dataclass
class Attempt:
    """One launch: how it ended, and the last line that it said."""

    began: float
    ended: float = 0.0
    code: int = 0
    said: str = ""

    @property
    def had_no_room(self) -> bool:
        """Whether a full disk ended it."""
        return any(words in self.said for words in _NO_ROOM)


@dataclass
class Soak:
    """Keeps `command` running until it ends with 0, as a scheduler would. `run`: its run directory, on `disk`."""

    recipe: Path
    run: Path
    disk: Path
    options: Sequence[str]
    server: UnreliableServer
    pace: float
    attempts: list[Attempt] = field(default_factory=list)
    struck: list[tuple[Fault, str]] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    def last(self, faults: Sequence[Fault], limit: float) -> None:
        """Run to the end under `faults`. Raises AssertionError if an attempt ends as none should, or after `limit`."""
        began = time.monotonic()
        self._run_under(lambda: self._strike_all(faults, began), limit)

    def stop_after(self, steps: Sequence[int], limit: float) -> None:
        """Run to the end, but be told to stop after each of `steps`. Raises AssertionError as `last` does."""
        self._run_under(lambda: self._stop_all(steps), limit)

    def _run_under(self, strikes: Callable[[], None], limit: float) -> None:
        began = time.monotonic()
        striker = threading.Thread(target=strikes)
        striker.start()
        try:
            while not self.attempts or self.attempts[-1].code != 0:
                assert time.monotonic() - began < limit, f"not at its end after {limit:.0f} s"
                self._attempt()
                time.sleep(_PAUSE)
        finally:
            self._over.set()
            _send(self.launcher(), signal.SIGKILL)
            striker.join()
            self.server.become("works")

    def _attempt(self) -> None:
        attempt = Attempt(time.time())
        variables = hooked(LACUNA_PACE=str(self.pace)) | {"LACUNA_STARTED": f"{attempt.began:.3f}"}
        variables[RUN_MARK] = str(self.run)
        self._process = subprocess.Popen(
            [*LACUNA, "train", str(self.recipe), "--run", str(self.run), *self.options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | variables,
            start_new_session=True,
        )
        said = self._process.communicate()[1]
        lines = [line for line in said.splitlines() if line.strip()]
        attempt.ended, attempt.code = time.time(), self._process.returncode
        attempt.said = lines[-1] if lines else ""
        self.attempts.append(attempt)
        assert "Traceback" not in said, said
        expected = attempt.code in (0, 75, 76, 1, -signal.SIGKILL) or attempt.had_no_room
        assert expected, f"an attempt ended with code {attempt.code}: {said}"
        _tell(f"attempt {len(self.attempts) - 1} ends with {attempt.code} after {attempt.ended - attempt.began:.1f} s")

    def _strike_all(self, faults: Sequence[Fault], began: float) -> None:
        for fault in faults:
            if self._over.wait(max(0.0, began + fault.moment - time.monotonic())):
                return
            _tell(f"{fault.kind}, {fault.moment:.1f} s after the beginning")
            done = _STRIKES[fault.kind](self, fault.choice)
            self.struck.append((fault, done))

    def _stop_all(self, steps: Sequence[int]) -> None:
        metrics = self.run / "metrics.jsonl"
        for step in steps:
            while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
                if self._over.wait(0.05):
                    return
            _send(self.launcher(), signal.SIGTERM)

    def launcher(self) -> psutil.Process | None:
        """The launcher that lives now."""
        with suppress(psutil.NoSuchProcess):
            process = self._process
            if process is not None and process.poll() is None:
                return psutil.Process(process.pid)
        return None

    def ranks(self) -> list[psutil.Process]:
        """The ranks that live now."""
        found: list[psutil.Process] = []
        launcher = self.launcher()
        for child in launcher.children() if launcher else ():
            with suppress(psutil.Error):
                if "launch.worker" in child.cmdline():
                    found.append(child)
        return found

    def wait(self, seconds: float) -> None:
        """Let a fault last so long, but not beyond the run."""
        self._over.wait(seconds)


def _tell(line: str) -> None:
    """To those who watch; the report is made of what is kept."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _send(process: psutil.Process | None, number: signal.Signals) -> str:
    if process is None:
        return "nobody was there"
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
    return f"{number.name} to {'a rank' if 'launch.worker' in _words(process) else 'the launcher'}"


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _some_rank(soak: Soak, choice: float) -> psutil.Process | None:
    ranks = soak.ranks()
    return ranks[int(choice * len(ranks))] if ranks else soak.launcher()


def _kill(soak: Soak, choice: float) -> str:
    return _send(_some_rank(soak, choice), signal.SIGKILL)


def _hang(soak: Soak, choice: float) -> str:
    ranks = soak.ranks()
    return _send(ranks[int(choice * len(ranks))], signal.SIGSTOP) if ranks else "nobody was there"


def _signal(soak: Soak, choice: float) -> str:
    if not soak.ranks():
        return "nobody was there"  # before it is ready for signals, a launcher dies of them as any program
    return _send(soak.launcher(), signal.SIGTERM if choice < 0.5 else signal.SIGUSR2)


def _node(soak: Soak, choice: float) -> str:
    """All processes of the run at once, as when the power fails; frozen first, so that none hears of another."""
    launcher = soak.launcher()
    if launcher is None:
        return "nobody was there"
    processes = [launcher, *launcher.children(recursive=True)]
    for act in (psutil.Process.suspend, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                act(process)
    return f"{len(processes)} processes at once"


def _full_disk(soak: Soak, choice: float) -> str:
    filler = soak.disk / "filler"
    try:
        with open(filler, "wb", buffering=0) as out:
            while True:
                out.write(bytes(1 << 16))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    soak.wait(FULL_SECONDS)
    filler.unlink()
    return f"no room for {FULL_SECONDS:g} s"


def _tracker(soak: Soak, choice: float) -> str:
    mode = _TRACKER_FAULTS[int(choice * len(_TRACKER_FAULTS))]
    soak.server.become(mode)
    soak.wait(_TRACKER_SECONDS)
    soak.server.become("works")
    return f"{mode} for {_TRACKER_SECONDS:g} s"


_STRIKES: dict[str, Callable[[Soak, float], str]] = {
    "kill": _kill,
    "hang": _hang,
    "full disk": _full_disk,
    "tracker": _tracker,
    "signal": _signal,
    "node": _node,
}
