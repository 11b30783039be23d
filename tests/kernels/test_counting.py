"""The count table: C++ against the plain reference and against a dict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import reference
from widedeep import kernels
from widedeep.kernels import CountTable

KEYS = st.lists(st.binary(max_size=40) | st.sampled_from([b"", b"a", b"aa", b"\0", b"\0\0"]))


def packed(keys: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    offsets = np.cumsum([0, *map(len, keys)])
    return np.frombuffer(b"".join(keys), np.uint8), offsets


def held(table: CountTable, bits: int = 0, shift: int = 0) -> Iterator[dict[bytes, int]]:
    """The content of each partition."""
    order, starts = table.partitions(shift, bits)
    for first, last in pairwise(starts):
        data, offsets, counts = table.take(order[first:last])
        raw = data.tobytes()
        yield {
            raw[offsets[i] : offsets[i + 1]]: int(count) for i, count in enumerate(counts.tolist())
        }


@pytest.fixture(params=[kernels, reference], ids=["native", "reference"])
def new_table(request: pytest.FixtureRequest) -> Any:
    return request.param.CountTable


@given(keys=KEYS, data=st.data())
def test_both_count_as_a_dict_does_up_to_the_same_limit(
    keys: list[bytes], data: st.DataObject
) -> None:
    counts = data.draw(
        st.none() | st.lists(st.integers(0, 9), min_size=len(keys), max_size=len(keys))
    )
    limit = data.draw(st.integers(1, 3000))
    first = data.draw(st.integers(0, len(keys)))
    given_counts = None if counts is None else np.array(counts, np.int64)
    ends, contents, sizes = [], [], []
    for module in (kernels, reference):
        table: Any = module.CountTable(limit)
        ends.append(table.add(*packed(keys), given_counts, first))
        contents.append(next(held(table)))
        sizes.append((len(table), table.nbytes))
    expected: Counter[bytes] = Counter()
    for i in range(first, ends[0]):
        expected[keys[i]] += 1 if counts is None else counts[i]
    assert ends[0] == ends[1]
    assert contents[0] == contents[1] == dict(+expected)
    assert sizes[0] == sizes[1]
    assert sizes[0][1] <= max(limit, 64 * 8 + 24 + 40) or len(expected) == 1


def test_partitions_split_by_hash_and_hold_everything_once(new_table: Any) -> None:
    keys = [str(number).encode() for number in range(2000)]
    table = new_table(1 << 20)
    assert table.add(*packed(keys * 2)) == 4000
    parts = list(held(table, bits=4))
    assert sum(map(len, parts)) == len(table) == 2000
    assert {key: count for part in parts for key, count in part.items()} == dict.fromkeys(keys, 2)
    # 16 parts of mean 125 and standard deviation 11.
    assert all(60 < len(part) < 190 for part in parts)
    other_bits = list(held(table, bits=4, shift=4))
    assert other_bits != parts
    whole, halves = list(held(table, bits=5)), parts
    assert all(halves[i] == whole[2 * i] | whole[2 * i + 1] for i in range(16))


def test_many_keys_survive_growth_and_blocks() -> None:
    keys = [str(number).encode() * 9 for number in range(60_000)]
    table = CountTable(1 << 30)
    data, offsets = packed(keys)
    counts = np.arange(60_000)
    table.add(data, offsets, counts)
    table.add(data, offsets, counts)
    found = next(held(table))
    assert len(found) == 59_999  # the first key counts 0
    assert all(found[key] == 2 * number for number, key in enumerate(keys) if number)
    assert table.nbytes > 3 << 20
    table.clear()
    assert (len(table), table.nbytes) == (0, 64 * 8)


def test_longest_key_fits_and_a_longer_one_is_refused(new_table: Any) -> None:
    table = new_table(1)
    longest = b"x" * (1 << 19)
    assert table.add(*packed([longest])) == 1
    assert next(held(table)) == {longest: 1}
    table = CountTable(1)
    with pytest.raises(ValueError, match="key 1 has 524289 bytes, expected at most 524288"):
        table.add(*packed([b"", longest + b"x"]))


@pytest.mark.parametrize(
    ("offsets", "counts", "first", "message"),
    [
        ([0, 2, 1], None, 0, "offsets: not ascending"),
        ([0, 9], None, 0, r"not ascending within \[0, 3\]"),
        ([-1, 2], None, 0, "not ascending"),
        ([0, 1], [-1], 0, "counts: got -1"),
        ([0, 1], [1, 1], 0, "counts: got length 2, expected 1"),
        ([0, 1], None, 2, r"first: got 2, expected it in \[0, 1\]"),
    ],
)
def test_wrong_arrays_are_refused(
    offsets: list[int], counts: list[int] | None, first: int, message: str
) -> None:
    table = CountTable(100)
    given_counts = None if counts is None else np.array(counts)
    with pytest.raises(ValueError, match=message):
        table.add(np.zeros(3, np.uint8), np.array(offsets), given_counts, first)
    with pytest.raises(ValueError, match="limit_bytes: got 0"):
        CountTable(0)
    with pytest.raises(ValueError, match="bits: got 17 below 0"):
        table.partitions(0, 17)
