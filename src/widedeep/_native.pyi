"""The kernels in C++ (native/): contiguous arrays in and out, the GIL released."""

from typing import Literal

def isa() -> Literal["baseline", "avx2", "avx512"]:
    """Name the instruction set of the dispatched kernels.

    It is the processor's best, or the one that the environment variable ``WIDEDEEP_ISA`` names.
    """
