"""Kernels that a schema is learned by, against NumPy and Python."""

from __future__ import annotations

import itertools
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


LIMITS = st.integers(0, 30)


@given(
    st.dictionaries(KEYS, st.integers(1, 1 << 62) | st.integers(1, 3), max_size=40),
    st.integers(0, 4),
    st.none() | LIMITS,
    LIMITS,
    st.none() | st.integers(0, 200),
)
def test_keys_are_ranked_by_count_then_bytes(
    counts: dict[bytes, int],
    min_count: int,
    max_size: int | None,
    tail_size: int,
    tail_bytes: int | None,
) -> None:
    offsets = np.cumsum([0, *map(len, counts)]).astype(np.int64)
    table = kernels.CountTable(1 << 20)
    content = np.frombuffer(b"".join(counts), np.uint8)
    table.add(content, offsets, np.array(list(counts.values()), np.int64))
    keys = sorted(counts, key=lambda key: (-counts[key], key))
    n_leaders = len([key for key in keys if counts[key] >= min_count][:max_size])
    tail = keys[n_leaders : n_leaders + tail_size]
    sizes = np.cumsum([len(key) for key in tail])
    n_tail = len(tail) if tail_bytes is None else int((sizes <= tail_bytes).sum())
    data, starts, ranked = table.ranked(min_count, max_size, tail_size, tail_bytes)
    found = [data[a:b].tobytes() for a, b in itertools.pairwise(starts.tolist())]
    assert found == keys[:n_leaders] + tail[:n_tail]
    assert ranked.tolist() == [counts[key] for key in found]


INDICES = st.none() | st.integers(0, 4)


@given(
    st.lists(INDICES, max_size=60),
    st.sampled_from([pa.int8(), pa.int32(), pa.uint64()]),
    st.integers(0, 3),
    st.sampled_from([0, 2000]),
)
def test_entries_of_dictionaries_are_counted(
    indices: list[int | None], kind: pa.DataType, start: int, unused: int
) -> None:
    words = pa.array([f"word {i}" for i in range(5 + unused)])
    array = pa.DictionaryArray.from_arrays(pa.array(indices, kind), words)[start:]
    weights = np.arange(len(array)) + 1
    expected = np.zeros((2, len(words)), np.int64)
    for weight, index in zip(weights.tolist(), indices[start:], strict=True):
        if index is not None:
            expected[:, index] += 1, weight
    capsules = array.__arrow_c_array__()
    np.testing.assert_array_equal(kernels.entry_counts(capsules), expected[0])
    np.testing.assert_array_equal(kernels.entry_counts(capsules, weights), expected[1])


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
        kernels.CountTable(1 << 20).add(np.zeros(1, np.uint8), np.array([0, 2]), np.array([1]))
    with pytest.raises(ValueError, match="tail_size: got -1"):
        kernels.CountTable(1 << 20).ranked(1, None, -1)
    with pytest.raises(ValueError, match="expected a dictionary"):
        kernels.entry_counts(pa.array(["1"]).__arrow_c_array__())
    outside = pa.DictionaryArray.from_arrays(pa.array([1]), pa.array(["a"]), safe=False)
    with pytest.raises(ValueError, match="outside its dictionary"):
        kernels.entry_counts(outside.__arrow_c_array__())
