"""bfloat16, the upper half of float32, as NumPy has no type for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["from_bfloat16", "to_bfloat16"]


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the nearest bfloat16 of each number, as its bits; ties go to the even one.

    Args:
        values: float32 of any shape.

    Example:
        >>> import numpy as np
        >>> bits = to_bfloat16(np.array([1.0, 3.14159], np.float32))
        >>> from_bfloat16(bits).tolist()
        [1.0, 3.140625]
    """
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding up the bits of a NaN could make an infinity of it.
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers that these bits stand for.

    Args:
        bits: From :func:`to_bfloat16`.

    Example:
        >>> import numpy as np
        >>> from_bfloat16(np.array([0x3F80], np.uint16)).tolist()
        [1.0]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)
