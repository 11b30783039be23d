"""From logits to probabilities: the same bits in a bundle and in the native server."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from widedeep.kernels.backend import backend

__all__ = ["sigmoid"]


def sigmoid(logits_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)), without overflow.

    Args:
        logits_B: One-dimensional, float64.

    Example:
        >>> import numpy as np
        >>> sigmoid(np.array([0.0, -800.0, 800.0])).tolist()
        [0.5, 0.0, 1.0]
    """
    found: NDArray[np.float64] = backend.sigmoid(np.ascontiguousarray(logits_B, np.float64))
    return found
