"""A polite stop is noted once, and the signals are given back."""

import os
import signal

import pytest

from runtime.signals import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_stop_signal_is_noted_and_given_back(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in STOP_SIGNALS}
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number
        os.kill(os.getpid(), signal.SIGTERM)  # a second one does no harm
        assert stop.signal == signal.SIGTERM
    assert {n: signal.getsignal(n) for n in STOP_SIGNALS} == before


def test_a_second_interrupt_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in a shell's background
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_sigusr1_is_left_to_nccl() -> None:
    with StopRequest():
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
