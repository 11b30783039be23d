"""Which code runs on the CPU: the C++ module, or its plain reference in NumPy."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

__all__ = ["backend"]

_MODULE_OF = {"native": "widedeep._native", "reference": "widedeep.kernels.reference"}


def _choose() -> ModuleType:
    wanted = os.environ.get("WIDEDEEP_KERNELS", "") or "native"
    if wanted not in _MODULE_OF:
        raise ImportError(
            f"WIDEDEEP_KERNELS: got {wanted!r}, expected 'native' or 'reference'; "
            "unset it to run the C++ kernels"
        )
    return importlib.import_module(_MODULE_OF[wanted])


backend = _choose()
