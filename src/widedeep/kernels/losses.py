"""Losses of a batch and their derivatives by the logits, in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from widedeep.kernels.backend import backend
from widedeep.kernels.checks import check_vector

__all__ = ["logistic_loss"]


def logistic_loss(
    logits_B: NDArray[np.float32],
    labels_B: NDArray[np.float32],
    losses_B: NDArray[np.float32],
    grads_B: NDArray[np.float32],
) -> None:
    """Cross-entropy of a logit z and a label y, and its derivative sigmoid(z) - y.

    Args:
        logits_B: float32 logits.
        labels_B: float32 labels in [0, 1].
        losses_B: float32, filled with max(z, 0) - z y + log(1 + exp(-abs(z))).
        grads_B: float32, filled.

    Raises:
        ValueError: If an array has another type or length.

    Example:
        >>> import numpy as np
        >>> losses, grads = np.empty(2, np.float32), np.empty(2, np.float32)
        >>> logistic_loss(np.float32([0, 100]), np.float32([1, 0]), losses, grads)
        >>> losses.round(3).tolist(), grads.tolist()
        ([0.6930000185966492, 100.0], [-0.5, 1.0])
    """
    check_vector("logits_B", logits_B, np.float32)
    for name, array in (("labels_B", labels_B), ("losses_B", losses_B), ("grads_B", grads_B)):
        check_vector(name, array, np.float32, len(logits_B))
    backend.logistic_loss(logits_B, labels_B, losses_B, grads_B)
