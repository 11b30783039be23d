"""Counts are exact and in one order, however little memory there is and however values come."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.data.counting import ValueCounter
from widedeep.errors import ConfigError, DataError


def ranked(counts: Counter[Any], min_count: int, max_size: int | None) -> list[tuple[Any, int]]:
    rows = [(value, count) for value, count in counts.items() if count >= min_count]
    return sorted(rows, key=lambda row: (-row[1], row[0]))[:max_size]


def rows_of(result: tuple[Any, Any]) -> list[tuple[Any, int]]:
    values, counts = result
    plain = values.to_pylist() if isinstance(values, pa.Array) else values.tolist()
    plain = [tuple(value) if isinstance(value, list) else value for value in plain]
    return list(zip(plain, counts.tolist(), strict=True))


LIMITS = st.sampled_from([1, 700, 2000, 1 << 20])


@given(
    chunks=st.lists(st.lists(st.none() | st.text(max_size=6)), max_size=8),
    limit=LIMITS,
    min_count=st.integers(1, 3),
    max_size=st.none() | st.integers(0, 10),
)
def test_text_is_counted_as_by_a_counter(
    chunks: list[list[str | None]], limit: int, min_count: int, max_size: int | None
) -> None:
    expected: Counter[bytes] = Counter()
    with ValueCounter("bytes", memory_limit_bytes=limit) as counter:
        for chunk in chunks:
            counter.add(pa.array(chunk, pa.string()))
            expected.update(value.encode() for value in chunk if value is not None)
        assert counter.total == expected.total()
        assert rows_of(counter.result(min_count, max_size)) == ranked(expected, min_count, max_size)
        assert counter.distinct == len(expected)


@given(
    chunks=st.lists(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)), max_size=8),
    limit=LIMITS,
    max_size=st.none() | st.integers(1, 10),
)
def test_integers_are_counted_and_sorted_as_numbers(
    chunks: list[list[int]], limit: int, max_size: int | None
) -> None:
    expected: Counter[int] = Counter()
    with ValueCounter("int64", memory_limit_bytes=limit) as counter:
        for number, chunk in enumerate(chunks):
            array = np.array(chunk, np.int64)
            counter.add(array if number % 2 else pa.array(array))
            expected.update(chunk)
        assert rows_of(counter.result(1, max_size)) == ranked(expected, 1, max_size)


@given(
    rows=st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3), st.integers(0, 1))),
    limit=LIMITS,
)
def test_tuples_are_counted_row_by_row(rows: list[tuple[int, int, int]], limit: int) -> None:
    with ValueCounter("tuple", memory_limit_bytes=limit) as counter:
        for start in range(0, len(rows), 7):
            counter.add(np.array(rows[start : start + 7], np.int64))
        assert rows_of(counter.result()) == ranked(Counter(rows), 1, None)


@given(
    pairs=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5))),
    limit=LIMITS,
    encoded=st.booleans(),
)
def test_given_counts_are_added(pairs: list[tuple[str, int]], limit: int, encoded: bool) -> None:
    expected: Counter[bytes] = Counter()
    for value, count in pairs:
        expected[value.encode()] += count
    values = pa.array([value for value, _ in pairs], pa.string())
    with ValueCounter("bytes", memory_limit_bytes=limit) as counter:
        counter.add(
            values.dictionary_encode() if encoded else values,
            np.array([count for _, count in pairs], np.int64),
        )
        assert rows_of(counter.result()) == ranked(+expected, 1, None)
        assert counter.total == expected.total()


TEXTS = ["x", None, "yy", "", "x", "zzz" * 9, None, "yy", "x"]
INDICES = pa.array([0, 1, None, 2, 1, 0], pa.int8())


@pytest.mark.parametrize(
    "values",
    [
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array(["q", *TEXTS, "r"]).slice(1, 9),
        pa.array(TEXTS).cast(pa.binary()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(["q", *TEXTS, "r"]).dictionary_encode().slice(1, 9),
        pa.array(TEXTS).dictionary_encode().cast(pa.dictionary(pa.uint8(), pa.large_string())),
        pa.chunked_array([TEXTS[:2], [], TEXTS[2:]], pa.string()),
        pa.chunked_array([pa.array(TEXTS[:4]), pa.array(TEXTS[4:])]).dictionary_encode(),
    ],
)
def test_every_arrow_text_counts_alike(values: pa.Array | pa.ChunkedArray) -> None:
    with ValueCounter("bytes") as counter:
        counter.add(values)
        expected = Counter(text.encode() for text in TEXTS if text is not None)
        assert rows_of(counter.result()) == ranked(expected, 1, None)


def test_a_null_in_the_dictionary_is_a_null() -> None:
    values = pa.DictionaryArray.from_arrays(INDICES, pa.array(["a", None, "b", "unused"]))
    with ValueCounter("bytes") as counter:
        counter.add(values)
        assert rows_of(counter.result()) == [(b"a", 2), (b"b", 1)]
        assert (counter.total, counter.distinct) == (3, 2)


def test_integers_of_a_dictionary_and_of_every_width() -> None:
    with ValueCounter("int64") as counter:
        counter.add(pa.DictionaryArray.from_arrays(INDICES, pa.array([7, 8, -1])))
        counter.add(pa.array([7, None], pa.int8()))
        counter.add(np.array([8], np.uint32))
        assert rows_of(counter.result()) == [(7, 3), (8, 3), (-1, 1)]


def test_a_result_may_be_asked_again_and_counting_goes_on() -> None:
    for limit in (700, 1 << 20):
        with ValueCounter("int64", memory_limit_bytes=limit) as counter:
            counter.add(np.arange(100))
            assert len(counter.result()[1]) == len(counter.result()[1]) == counter.distinct == 100
            counter.add(np.arange(50, 150))
            values, counts = counter.result()
            assert values.tolist() == [*range(50, 100), *range(50), *range(100, 150)]
            assert counts.tolist() == [2] * 50 + [1] * 100
            assert counter.distinct == 150


def test_partitions_that_do_not_fit_are_cut_again() -> None:
    # 2,000 keys where five fit: 256 partitions of 8 keys are parted a second time.
    values = np.random.default_rng(0).integers(0, 2000, 4000)
    with ValueCounter("int64", memory_limit_bytes=700) as counter:
        for start in range(0, 4000, 1000):
            counter.add(values[start : start + 1000])
        assert rows_of(counter.result(2, 100)) == ranked(Counter(values.tolist()), 2, 100)


def test_the_order_of_reading_changes_nothing() -> None:
    values = np.random.default_rng(1).zipf(1.3, 20_000) % 3000
    results = []
    for limit in (20_000, 1 << 24):
        for chunk in (997, 20_000):
            for order in (values, values[::-1], np.sort(values)):
                with ValueCounter("int64", memory_limit_bytes=limit) as counter:
                    for start in range(0, len(order), chunk):
                        counter.add(order[start : start + chunk])
                    results.append(rows_of(counter.result(1, 500)))
    assert all(result == results[0] for result in results)
    assert results[0] == ranked(Counter(values.tolist()), 1, 500)


def test_only_leaders_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widedeep.data.counting.TAKEN_KEYS", 64)
    values = np.random.default_rng(2).integers(0, 4000, 9000)
    with ValueCounter("int64") as counter:
        counter.add(values)
        for max_size in (0, 1, 10, 1000, 4000):
            assert rows_of(counter.result(1, max_size)) == ranked(
                Counter(values.tolist()), 1, max_size
            )


def test_counters_fill_side_by_side() -> None:
    values = pa.array([f"value {i % 1000}" for i in range(20_000)])
    counters = [ValueCounter("bytes", memory_limit_bytes=10_000) for _ in range(3)]
    threads = [threading.Thread(target=counter.add, args=(values,)) for counter in counters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for counter in counters:
        assert counter.result()[1].tolist() == [20] * 1000
        counter.close()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("bytes", pa.array([1]), "got int64, expected bytes"),
        ("bytes", np.array([1]), "got integers, expected text"),
        ("int64", pa.array(["a"]), "got string, expected int64"),
        ("int64", pa.array([2**63], pa.uint64()), r"expected integers below 2\*\*63"),
        ("int64", np.array([0.5]), r"got float64 of shape \(1,\), expected int64"),
        ("tuple", np.array([1]), r"got int64 of shape \(1,\), expected tuple"),
        ("bytes", pa.array(["x" * (2**19 + 1)]), "one has 524289 bytes, expected at most 524288"),
    ],
)
def test_values_of_another_kind_are_refused(kind: Any, values: Any, message: str) -> None:
    with ValueCounter(kind) as counter, pytest.raises(DataError, match=message):
        counter.add(values)


def test_tuples_keep_their_width_and_numbers_their_range() -> None:
    with ValueCounter("tuple") as counter:
        counter.add(np.array([[1, 2]]))
        with pytest.raises(DataError, match="got tuples of 3, expected 2 as before"):
            counter.add(np.array([[1, 2, 3]]))
    with pytest.raises(ConfigError, match="memory_limit_bytes: got 0"):
        ValueCounter("bytes", memory_limit_bytes=0)
    with pytest.raises(ConfigError, match="kind: got 'str'"):
        ValueCounter("str")  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    counter = ValueCounter("int64", memory_limit_bytes=700, spill_dir=tmp_path / "none")
    with counter, pytest.raises(DataError, match=r"none: counts cannot be written"):
        counter.add(np.arange(100))
