"""A polite stop: the first signal asks, the loop answers between two steps."""

import signal
import types
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """Notes that one of SIGTERM, SIGINT or SIGUSR2 arrived; a second SIGINT interrupts at once.

    `with StopRequest() as stop:` gives the signals back at the end. SIGUSR1 is left alone: NCCL uses it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> "StopRequest":
        """Take over the stop signals of this process (main thread only)."""
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __enter__(self) -> "StopRequest":
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def __bool__(self) -> bool:
        return self.signal is not None
