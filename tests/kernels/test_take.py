"""Rows picked out of a batch: C++ against NumPy and plain indexing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from tests.kernels.random_batches import RandomBatch, batches, make_batch
from widedeep.kernels import CsrBatch, take_rows


@given(batch=batches(), data=st.data())
def test_taken_rows_hold_the_ids_and_values_of_their_examples(
    batch: RandomBatch, data: Any
) -> None:
    n = batch.n_examples
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=30)) if n else []
    picked = np.array(rows, np.int64)
    native = take_rows(batch.csr, picked, 1)
    plain = reference.take_rows(batch.csr, picked)
    for other in (plain, take_rows(batch.csr, picked, 3)):
        for one, two in zip(native, other, strict=True):
            assert one is two is None or np.array_equal(one, two)
    ids, offsets, values = native
    width = batch.n_features
    for i, row in enumerate(rows):
        for f in range(width):
            source = slice(*batch.offsets[row * width + f : row * width + f + 2])
            target = slice(*offsets[i * width + f : i * width + f + 2])
            assert np.array_equal(ids[target], batch.ids[source])
            if batch.values is not None and values is not None:
                assert np.array_equal(values[target], batch.values[source])


def test_positions_outside_are_refused() -> None:
    batch = make_batch(0, n_examples=4, n_features=2, longest=2, with_values=False)
    with pytest.raises(ValueError, match=r"rows_B: got positions -1 to 2, expected .* \[0, 4\)"):
        take_rows(batch.csr, np.array([-1, 2]))
    with pytest.raises(ValueError, match="rows_B: got positions 0 to 4"):
        take_rows(batch.csr, np.array([0, 4]))


def test_offsets_that_go_back_are_refused() -> None:
    with pytest.raises(ValueError, match="offsets_BF: not ascending"):
        take_rows(CsrBatch(np.arange(3), np.array([0, 3, 1, 3]), None, 1), np.array([1]))
