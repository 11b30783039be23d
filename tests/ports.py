"""Free TCP ports for programs that are told theirs."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Return a port of loopback that nobody listens on.

    It is below those that the kernel gives to callers and to listeners on port 0, so that nobody
    gets it before it is used.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
