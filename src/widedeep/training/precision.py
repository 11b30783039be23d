"""Which precision the towers' matrix products have in training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch

from widedeep.config import Precision

_CPU_INFO = Path("/proc/cpuinfo")


def resolve_precision(wanted: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Turn ``"auto"`` into what suits the processor: the same on every run on it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and has_fast_bf16(_read_cpu_info()) else "fp32"


def has_fast_bf16(cpu_info: str) -> bool:
    r"""Tell whether a processor multiplies in bfloat16 faster than in float32."""
    vendor, flags = _vendor_and_flags(cpu_info)
    return "amx_bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD")


def has_bf16_tiles() -> bool:
    """Tell whether this processor has AMX, which torch's products use and our kernels do not."""
    return "amx_bf16" in _vendor_and_flags(_read_cpu_info())[1]


def _vendor_and_flags(cpu_info: str) -> tuple[str, list[str]]:
    lines = dict(re.findall(r"^(vendor_id|flags)\s*:\s*(.*)$", cpu_info, re.MULTILINE))
    return lines.get("vendor_id", ""), lines.get("flags", "").split()


def _read_cpu_info() -> str:
    try:
        return _CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return ""
