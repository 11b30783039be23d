"""What is said about a column."""

from __future__ import annotations

import decimal
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from widedeep.data.profile import ColumnProfile, profile_columns


def profile(values: Any, name: str = "x") -> ColumnProfile:
    return profile_columns(pa.table({name: values}))[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 5, None, 3], "1 to 5, 25% missing"),
        ([0.25, 1e9], "0.25 to 1,000,000,000"),
        ([decimal.Decimal("1.50"), decimal.Decimal("2.25")], "1.5 to 2.25"),
        (["b", "a", "b"], "2 values: b, a"),
        (["b", "a"], "2 values: a, b"),
        (["", "a", "a"], "2 values: a, ''"),
        (["x" * 40], "1 value: xxxxxxxxxxxxxxxxxxxxx..."),
        ([True, False, True], "2 values: True, False"),
        ([["a", "b"], ["a"], []], "2 values: a, b"),
        ([None, None], "0 values, 100% missing"),
        ([b"\xff", b"a", None], "2 of type binary, 33% missing"),
        ([b"b", b"a", b"a"], "2 values: a, b"),
        ([{"a": 1}], "1 of type struct<a: int64>"),
    ],
)
def test_one_line_about_the_values(values: Any, said: str) -> None:
    assert profile(values).describe() == said


def test_counts() -> None:
    found = profile(["a", "b", "a", None])
    assert (found.rows, found.values, found.distinct, found.missing) == (4, 3, 2, 0.25)
    assert found.top == (("a", 2), ("b", 1))


def test_only_the_most_frequent_values_are_kept() -> None:
    found = profile([f"v{i:02}" for i in range(50)] + ["v30"])
    assert (found.distinct, len(found.top), found.top[0]) == (50, 20, ("v30", 2))


LOGS = np.random.default_rng(0).normal(size=2_000)


@pytest.mark.parametrize(
    ("values", "long_tailed"),
    [
        (LOGS, False),
        (1e6 + LOGS, False),
        (np.exp(LOGS), True),
        (np.exp(2 * LOGS) * 1e290, True),  # squares overflow
        (-np.exp(3 * LOGS), True),
        ((1 + np.exp(3 * LOGS)).astype(int), True),
        (np.exp(2 * LOGS[:999]), False),
        (np.where(LOGS > 2, np.abs(LOGS), 0), False),  # mostly 0 is no tail
        (np.append(np.exp(2 * LOGS), [np.inf, np.nan]), True),
        ([7.5, 7.5, None], False),
        ([0, 0], False),
        ([math.inf, None], False),
        (["a"], False),
        ([[1.0, 1e9]], False),
    ],
)
def test_a_long_tail_is_one_that_logarithms_shorten(values: Any, long_tailed: bool) -> None:
    assert profile(values).long_tailed is long_tailed


@pytest.mark.parametrize(
    ("values", "constant"),
    [([1, 1], True), ([1, None], False), ([1, 2], False), ([None], True), ([["a"], []], False)],
)
def test_constant(values: Any, constant: bool) -> None:
    assert profile(values).constant is constant


@pytest.mark.parametrize(
    ("names", "are_ids"),
    [
        (["user_id", "id", "itemId", "CustomerID", "uuid", "item ids"], True),
        (["valid", "paid", "idea", "video", "IDEA", "width"], False),
    ],
)
def test_names_of_ids(names: list[str], are_ids: bool) -> None:
    for name in names:
        assert profile([1], name).named_like_id is are_ids, name


def test_a_key_names_rows() -> None:
    assert profile(list(range(100))).names_rows
    assert not profile([i // 2 for i in range(100)]).names_rows
    assert not profile([i * 0.5 for i in range(100)]).names_rows
    assert not profile(list(range(5))).names_rows


def test_the_length_of_lists() -> None:
    assert profile([[1.0, 2.0], [3.0, 4.0]]).list_size == 2
    assert profile([[1.0], [3.0, 4.0]]).list_size is None
    assert profile(pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2))).list_size == 2


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["2024-01-31", None, "2024-02-01"], "time"),
        (["2024-01-31T12:00:00.5Z", "2024-01-31 12:00+02:00"], "time"),
        (["2024-01-31", "soon"], "text"),
        (["2024", "2025"], "text"),
        ([None, ""], "text"),
    ],
)
def test_texts_of_times_are_times(values: list[str | None], kind: str) -> None:
    column = pa.chunked_array([pa.array(values, pa.string())])
    assert profile_columns(pa.table({"t": column}))[0].kind == kind
