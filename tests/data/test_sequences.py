"""Lists with a bound, and parallel ones: which values are read, and which rows are refused."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from widedeep.data.made_up_rows import made_up_rows
from widedeep.data.transform import Transform
from widedeep.errors import FeatureError

VALUES = [f"v{i}" for i in range(8)]


def schema(**options: Any) -> wd.Schema:
    features = wd.categorical("seen", vocabulary=VALUES, **options)
    rows = [{"seen": [v], "w": [1.0], "y": i % 2} for i, v in enumerate(VALUES)]
    return wd.fit_schema(wd.FeatureSpec(label="y", features=features), rows)


def ids(transform: Transform, table: pa.Table, slot: int = 0) -> list[list[int]]:
    cells = transform(table, targets=False).cells(slot)
    pairs = zip(cells.offsets[:-1], cells.offsets[1:], strict=True)
    return [cells.ids_N[start:stop].tolist() for start, stop in pairs]


LISTS = st.lists(
    st.none() | st.lists(st.none() | st.sampled_from([*VALUES, "unseen"]), max_size=6), max_size=6
)


@settings(max_examples=30, deadline=None)
@given(lists=LISTS, maxlen=st.integers(1, 4), keep=st.sampled_from(["last", "first"]))
def test_a_longer_list_is_cut_before_anything_is_looked_up(
    lists: list[Any], maxlen: int, keep: Literal["last", "first"]
) -> None:
    bounded = Transform(schema(combiner=None, maxlen=maxlen, keep=keep))
    cut = [None if x is None else x[-maxlen:] if keep == "last" else x[:maxlen] for x in lists]
    column = pa.array(lists, pa.list_(pa.string()))
    expected = ids(Transform(schema(combiner=None)), pa.table({"seen": pa.array(cut, column.type)}))
    assert ids(bounded, pa.table({"seen": column})) == expected
    assert ids(bounded, pa.table({"seen": column.cast(pa.large_list(pa.string()))})) == expected
    n_long = sum(x is not None and len(x) > maxlen for x in lists)
    assert bounded.truncated == ({"seen": 2 * n_long} if n_long else {})


@pytest.mark.parametrize("options", [{}, {"vocabulary": VALUES}, {"hash_buckets": 9}])
def test_fitting_says_how_many_lists_are_cut(options: dict[str, Any]) -> None:
    features = wd.categorical("seen", maxlen=2, keep="first", **options)
    lists = [["v1"] * 3, ["v1"] * 2, None, [], ["v2"] * 9]
    rows = [{"seen": seen, "y": i % 2} for i, seen in enumerate(lists)]
    notes = wd.fit_schema(wd.FeatureSpec(label="y", features=features), rows).notes
    text = "feature 'seen': 2 lists are longer than maxlen = 2; their first 2 values are read"
    assert text in notes


def test_a_request_and_a_dictionary_are_cut_as_a_table_is() -> None:
    transform = Transform(schema(maxlen=2))  # pooled features are cut too
    rows = [{"seen": ["v1", "v2", "v3"]}, {"seen": []}, {"seen": [None, "v7", None]}]
    table = pa.Table.from_pylist(rows)
    expected = [[4, 5], [], [9]]
    assert ids(transform, table) == expected
    coded = pa.ListArray.from_arrays(
        table["seen"].combine_chunks().offsets,
        table["seen"].combine_chunks().values.dictionary_encode(),
    )
    assert ids(transform, pa.table({"seen": coded})) == expected
    batch = transform.rows(rows)
    assert batch.ids_N.tolist() == [4, 5, 9]


def test_the_weights_of_a_cut_list_are_those_of_what_is_left() -> None:
    transform = Transform(schema(weights="w", maxlen=2))
    rows = [{"seen": ["v1", "v2", "v3"], "w": [9.0, 2.0, 3.0]}]
    np.testing.assert_array_equal(transform.rows(rows).values_N, [2.0, 3.0])
    with pytest.raises(FeatureError, match="2 weights in column 'w' for 3 values"):
        transform.rows([{"seen": ["v1", "v2", "v3"], "w": [2.0, 3.0]}])


def parallel_schema() -> wd.Schema:
    options: dict[str, Any] = {"combiner": None, "maxlen": 3}
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical("item", vocabulary=["a", "b"], **options),
            wd.categorical("shop", vocabulary=["s"], parallel="item", **options),
        ],
    )
    rows = [{"item": ["a", "b"], "shop": ["s", "s"], "y": i % 2} for i in range(2)]
    return wd.fit_schema(spec, rows)


def test_a_null_keeps_its_place_in_parallel_sequences() -> None:
    transform = Transform(parallel_schema())
    table = pa.table(
        {
            "item": [["a", None, "b", "?"], [], None],
            "shop": [["s", "s", None, "s"], [], None],
        }
    )
    assert ids(transform, table) == [[1, 3, 0], [], [1]]
    assert ids(transform, table, slot=1) == [[2, 1, 2], [], [1]]
    for row, item, shop in zip(table.to_pylist(), [[1, 3, 0], [], [1]], [3, 0, 1], strict=True):
        assert transform.rows([row]).ids_N.tolist()[: len(item)] == item
        assert len(transform.rows([row]).ids_N) == len(item) + shop


def test_rows_made_up_for_a_comparison_have_lists_of_one_length() -> None:
    rows = made_up_rows(Transform(parallel_schema()))
    lengths = [None if row["item"] is None else len(row["item"]) for row in rows]
    assert lengths == [None if row["shop"] is None else len(row["shop"]) for row in rows]
    assert len(rows) == 32 and {None, 0, 1, 2} <= {*lengths}


@pytest.mark.parametrize(
    ("shop", "got"), [(["s"], "a list of 1"), (None, "null"), ([], "a list of 0")]
)
def test_parallel_lists_of_other_lengths_are_refused(shop: Any, got: str) -> None:
    transform = Transform(parallel_schema())
    message = (
        rf"feature 'shop' \(row 1 of .*\): got {got} in column 'shop' and a list of 2 in column "
        "'item', expected one value an event in both; make the lists equally long"
    )
    table = pa.Table.from_pylist(
        [{"item": ["a"], "shop": ["s"]}, {"item": ["a", "b"], "shop": shop}]
    )
    with pytest.raises(FeatureError, match=message):
        transform(table, targets=False, origin="x.parquet")
    with pytest.raises(
        FeatureError, match=f"got {got} in column 'shop'"
    ):  # a request's row is held to the same
        transform.rows([{"item": ["a", "b"], "shop": shop}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maxlen": 0}, "got maxlen=0, expected an integer of at least 1"),
        ({"maxlen": 2.5}, "got maxlen=2.5"),
        ({"keep": "newest"}, "got keep='newest', expected 'last' or 'first'"),
        ({"keep": None}, "got keep=None, expected 'last' or 'first'"),
        ({"parallel": "itm"}, "got 'itm' in parallel of feature 'shop'"),
        ({"parallel": "shop"}, "expected a sequence that stands alone"),
        ({"parallel": "item", "combiner": "mean"}, "set combiner=None and oov='id'"),
        ({"parallel": "item", "oov": "drop"}, "set combiner=None and oov='id'"),
        ({"parallel": "item", "maxlen": 3}, "got maxlen=3, but maxlen=None in the parallel"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        wd.FeatureSpec(
            label="y",
            features=[
                wd.categorical("item", combiner=None),
                wd.categorical("shop", **{"combiner": None, **options}),
            ],
        )


NUMBERS = st.lists(
    st.none()
    | st.lists(st.none() | st.floats(-100, 100, width=32) | st.just(float("nan")), max_size=6),
    max_size=6,
)


def number_schema(**options: Any) -> wd.Schema:
    bounds = {key: value for key, value in options.items() if key in ("maxlen", "keep")}
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical("seen", vocabulary=VALUES, combiner=None, **bounds),
            wd.numeric("seconds", parallel="seen", **options),
        ],
    )
    rows = [
        {"seen": ["v0"] * 3, "seconds": [2.0, None, x], "y": i % 2} for i, x in enumerate([4, 6])
    ]
    return wd.fit_schema(spec, rows)


@settings(max_examples=30, deadline=None)
@given(
    lists=NUMBERS,
    maxlen=st.integers(1, 4),
    keep=st.sampled_from(["last", "first"]),
    transform=st.sampled_from(["quantile", "standard", "minmax", "log1p", "none"]),
)
def test_a_number_of_an_event_is_normalised_as_a_plain_one(
    lists: list[Any], maxlen: int, keep: Literal["last", "first"], transform: Any
) -> None:
    events = Transform(number_schema(maxlen=maxlen, keep=keep, transform=transform))
    seen = [None if numbers is None else ["v0"] * len(numbers) for numbers in lists]
    table = pa.table(
        {
            "seen": pa.array(seen, pa.list_(pa.string())),
            "seconds": pa.array(lists, pa.list_(pa.float64())),
        }
    )
    plain = wd.fit_schema(
        wd.FeatureSpec(label="y", features=wd.numeric("seconds", transform=transform)),
        [{"seconds": x, "y": i % 2} for i, x in enumerate([2.0, None, 4.0, 2.0, None, 6.0])],
    )
    for row, numbers in zip(table.to_pylist(), lists, strict=True):
        cells = events(pa.Table.from_pylist([row], schema=table.schema), targets=False).cells(0)
        request = events.rows([row]).cells(0)
        cut = (
            [None] if numbers is None else numbers[-maxlen:] if keep == "last" else numbers[:maxlen]
        )
        missing = [x is None or np.isnan(x) for x in cut]
        assert cells.ids_N.tolist() == request.ids_N.tolist() == [1 if m else 2 for m in missing]
        alone = Transform(plain).rows([{"seconds": x} for x in cut]).dense_BK[:, 0]
        expected = np.where(missing, np.float32(1), alone)
        np.testing.assert_array_equal(cells.values_N, expected)
        np.testing.assert_array_equal(request.values_N, expected)


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ([1.0], "got a list of 1 in column 'seconds' and a list of 2 in column 'seen'"),
        ([1.0, float("inf")], "got inf .*, expected a finite number"),
        ([1.0, "long"], "got 'long' .*, expected a number or null"),
        (3.0, "got a list of 1 in column 'seconds' and a list of 2"),
    ],
)
def test_a_number_that_no_event_can_have_is_refused(got: Any, message: str) -> None:
    with pytest.raises(FeatureError, match=rf"feature 'seconds' \(row 0.*\): {message}"):
        Transform(number_schema()).rows([{"seen": ["v0", "v1"], "seconds": got}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maxlen": 5}, "got maxlen=5, which has no effect on a plain number"),
        ({"keep": "first"}, "got keep='first', which has no effect on a plain number"),
        ({"parallel": "seen", "size": 2}, "got size=2 and parallel='seen'"),
        ({"parallel": "seen", "missing": 0.0}, "whose null has a vector of its own; leave missing"),
        ({"parallel": "seen", "embedding": "bins"}, "got embedding='bins' and parallel='seen'"),
        ({"parallel": "sen"}, "got 'sen' in parallel of feature 'seconds', .* did you mean 'seen'"),
        ({"parallel": "seen", "maxlen": 2}, "got maxlen=2, but maxlen=None in the parallel"),
    ],
)
def test_numbers_of_events_that_cannot_be_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(FeatureError, match=message):
        wd.FeatureSpec(
            label="y",
            features=[wd.categorical("seen", combiner=None), wd.numeric("seconds", **options)],
        )


def test_a_column_of_plain_numbers_is_no_list_of_events() -> None:
    spec = number_schema().spec
    with pytest.raises(FeatureError, match="column 'seconds' holds plain values, expected lists"):
        wd.fit_schema(spec, [{"seen": ["v0"], "seconds": 1.0, "y": 1}])
    with pytest.raises(FeatureError, match=r"row 1 .*: got inf .*, expected a finite number"):
        wd.fit_schema(
            spec, pa.table({"seen": [["v0"]] * 2, "seconds": [[1.0], [np.inf]], "y": [0, 1]})
        )


def test_toml_has_the_options_too() -> None:
    spec = parallel_schema().spec
    text = spec.to_toml()
    assert "maxlen = 3" in text and 'parallel = "item"' in text
    assert wd.FeatureSpec.from_toml(text) == spec
