"""The native server: what answers plain requests for rankings without Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from widedeep._native import Places, RankRoute
from widedeep.kernels.backend import backend

if TYPE_CHECKING:
    from widedeep._native import Front

__all__ = ["Front", "Places", "RankRoute", "has_front", "new_front"]


def has_front() -> bool:
    """Tell whether this machine can serve natively: Linux, with the C++ kernels."""
    return sys.platform == "linux" and backend.__name__ == "widedeep._native"


def new_front(listening: int, told: int, places: Places, options: dict[str, object]) -> Front:
    """Return a server of its own threads on a socket that listens.

    Args:
        listening: The socket's file descriptor.
        told: An eventfd, written to when a connection is handed over.
        places: The bounded queue.
        options: See ``native/bind_front.cpp``.
    """
    from widedeep._native import Front

    return Front(listening, told, places, options)
