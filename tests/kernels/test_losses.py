"""Losses: C++ against float64 and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from widedeep.kernels import logistic_loss

LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), max_size=40)


@given(LOGITS, st.integers(0, 9))
def test_logistic_loss_equals_float64(logits: list[float], seed: int) -> None:
    z = np.array(logits, np.float32)
    y = np.random.default_rng(seed).choice([0.0, 0.3, 1.0], len(z)).astype(np.float32)
    exact = np.logaddexp(0.0, z.astype(np.float64)) - z.astype(np.float64) * y
    slope = 1 / (1 + np.exp(-np.clip(z.astype(np.float64), -700, 700))) - y
    for run in (logistic_loss, reference.logistic_loss):
        losses, grads = np.full_like(z, np.nan), np.full_like(z, np.nan)
        run(z, y, losses, grads)
        np.testing.assert_allclose(
            losses, exact, rtol=2e-6, atol=2e-6 * max(1, abs(z).max(initial=0))
        )
        np.testing.assert_allclose(grads, slope, rtol=0, atol=3e-7)


def test_lengths_must_agree() -> None:
    z = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="labels_B: got length 2, expected 3"):
        logistic_loss(z, z[:2], z.copy(), z.copy())
