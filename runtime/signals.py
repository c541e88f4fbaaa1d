"""A polite stop: the first signal asks, the loop answers between two steps."""

import signal
import types

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopRequest:
    """Notes that one of SIGTERM, SIGINT or SIGUSR2 arrived; a second SIGINT interrupts at once.

    SIGUSR1 is left alone: NCCL uses it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def install(self) -> "StopRequest":
        """Take over the stop signals of this process (main thread only)."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def __bool__(self) -> bool:
        return self.signal is not None
