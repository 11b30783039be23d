"""Kernels that a schema is learned by, against NumPy and Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep import kernels

KEYS = st.binary(max_size=10) | st.binary(min_size=7, max_size=9).map(b"12345678".__add__)


@given(st.lists(st.floats(allow_infinity=False), max_size=60))
def test_numbers_are_sorted(values: Sequence[float]) -> None:
    sorted_B = kernels.sorted_numbers(np.array(values, np.float64))
    known = [value + 0.0 for value in values if not math.isnan(value)]
    assert sorted_B.tobytes() == np.sort(known).astype(np.float64).tobytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_many_numbers_are_sorted(dtype: type) -> None:
    values = np.random.default_rng(0).normal(size=50_000).astype(dtype).astype(np.float64)
    assert (kernels.sorted_numbers(values) == np.sort(values)).all()


@given(st.dictionaries(KEYS, st.integers(0, 1 << 62) | st.integers(0, 3), max_size=40))
def test_keys_are_ordered_by_count_then_bytes(counts: dict[bytes, int]) -> None:
    keys = list(counts)
    offsets = np.cumsum([0, *map(len, keys)]).astype(np.int64)
    data = np.frombuffer(b"".join(keys), np.uint8)
    order = kernels.order_by_count(data, offsets, np.array(list(counts.values()), np.int64))
    expected = sorted(keys, key=lambda key: (-counts[key], key))
    assert [keys[place] for place in order] == expected


@given(
    st.lists(st.none() | st.floats(width=16), max_size=50),
    st.sampled_from([pa.float16(), pa.float32(), pa.float64()]),
    st.integers(0, 3),
)
def test_real_numbers_are_read(values: list[float | None], kind: pa.DataType, start: int) -> None:
    array = pa.array([None if v is None else np.float16(v) for v in values], pa.float16())
    array = array.cast(kind)[start:]
    numbers = kernels.read_numbers(array.__arrow_c_array__())
    expected = [math.nan if v is None else v for v in values][start:]
    np.testing.assert_array_equal(numbers, np.array(expected, np.float64))


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_whole_numbers_are_read(values: list[int | None]) -> None:
    numbers = kernels.read_numbers(pa.array(values, pa.int64()).__arrow_c_array__())
    expected = np.array([math.nan if value is None else float(value) for value in values])
    np.testing.assert_array_equal(numbers, expected)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="expected plain numbers"):
        kernels.read_numbers(pa.array(["1"]).__arrow_c_array__())
    with pytest.raises(ValueError, match="infinite"):
        kernels.sum_numbers(np.array([1.0, math.inf]))
    with pytest.raises(ValueError, match="not ascending"):
        kernels.order_by_count(np.zeros(1, np.uint8), np.array([0, 2]), np.array([1]))
