"""Ports for servers that a test starts."""

import os
import socket
from contextlib import suppress


def free_ports(count: int = 1) -> int:
    """The first of `count` ports in a row that nobody listens on.

    Below those that the system gives to clients: who asks there again and again whether a server is up might else be
    given the server's own port, be connected with itself, and keep the server from it. Processes that stand beside each
    other, as those of one test run do, begin a hundred apart, so that none takes a port that another has just found.
    """
    for first in range(21000 + os.getpid() % 100 * 100, 32000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports")
