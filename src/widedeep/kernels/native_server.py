"""The native server: what answers plain requests for rankings without Python (Linux)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from widedeep._native import ApiKey as ApiKey
from widedeep._native import ApiKeys as ApiKeys
from widedeep._native import QueueSlots as QueueSlots
from widedeep._native import RankRoute as RankRoute
from widedeep._native import TokenBucket as TokenBucket

if TYPE_CHECKING or sys.platform == "linux":
    from widedeep._native import NativeServer as NativeServer
else:
    NativeServer = None


def has_native_server() -> bool:
    """Tell whether this machine can serve natively."""
    return sys.platform == "linux"
