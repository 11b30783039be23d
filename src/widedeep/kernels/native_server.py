"""The native server: what answers plain requests for rankings without Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from widedeep._native import QueueSlots, RankRoute
from widedeep.kernels.backend import backend

if TYPE_CHECKING:
    from widedeep._native import NativeServer

__all__ = ["NativeServer", "QueueSlots", "RankRoute", "has_native_server", "new_native_server"]


def has_native_server() -> bool:
    """Tell whether this machine can serve natively: Linux, with the C++ kernels."""
    return sys.platform == "linux" and backend.__name__ == "widedeep._native"


def new_native_server(
    listening: int, handoff_event: int, slots: QueueSlots, options: dict[str, object]
) -> NativeServer:
    """Return a server with threads of its own on a listening socket; see `native/bind_front.cpp`.

    Args:
        listening: The socket's file descriptor.
        handoff_event: Eventfd, written to when a connection is handed over to Python.
        slots: The bounded queue.
        options: Limits, times, edges of histograms and ready-made answers.
    """
    from widedeep._native import NativeServer

    return NativeServer(listening, handoff_event, slots, options)
