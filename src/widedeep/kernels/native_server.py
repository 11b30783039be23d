"""The native server: what answers plain requests for rankings without Python (Linux)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.platform == "linux":
    from widedeep._native import NativeServer as NativeServer
else:
    NativeServer = None


def has_native_server() -> bool:
    """Tell whether this machine can serve natively."""
    return sys.platform == "linux"
