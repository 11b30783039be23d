"""The losses in plain NumPy; see `widedeep.kernels.losses`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["logistic_loss"]

Floats = NDArray[np.float32]


def logistic_loss(logits: Floats, labels: Floats, losses: Floats, grads: Floats) -> None:
    """Fill the losses and their derivatives."""
    small = np.exp(-np.abs(logits))
    losses[:] = np.maximum(logits, 0.0) - logits * labels + np.log1p(small)
    grads[:] = np.where(logits >= 0.0, 1.0, small) / (1.0 + small) - labels
