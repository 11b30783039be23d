"""What is said about input that cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.data.schemas import make_schema, vocabulary
from widedeep.data.transform import Transform
from widedeep.errors import FeatureError, WideDeepError
from widedeep.schema import Schema

JOBS = {"job": vocabulary(["clerk", "sales"])}
TWO = make_schema([wd.numeric("age", transform="none"), wd.categorical("job")], vocabularies=JOBS)
TARGETS = make_schema(
    wd.categorical("job"),
    vocabularies=JOBS,
    label={"buy": "bought", "kind": "kind"},
    weight="w",
    group="user",
    classes={"kind": ("no", "yes", "maybe")},
)
# With one label a row without it teaches nothing.
ALONE = {
    "bought": make_schema(
        wd.categorical("job"), vocabularies=JOBS, label={"": "bought"}, weight="w", group="user"
    ),
    "kind": make_schema(
        wd.categorical("job"), vocabularies=JOBS, label={"": "kind"}, weight="w", group="user",
        classes={"": ("no", "yes", "maybe")},
    ),
    "w": TARGETS,
    "user": TARGETS,
}  # fmt: skip
GOOD: dict[str, Any] = {
    "bought": [True, False],
    "w": [1, 0],
    "user": ["ann", "bob"],
    "kind": ["maybe", "no"],
    "job": ["clerk", None],
}


def message(schema: Schema, columns: dict[str, Any], *, targets: bool = False) -> str:
    """What is said about a column that cannot be used."""
    with pytest.raises(WideDeepError) as error:
        Transform(schema)(pa.table(columns), targets=targets, origin="a.csv", first_row=15)
    return f"{type(error.value).__name__}: {error.value}"


def test_a_missing_column_is_named_with_the_nearest() -> None:
    assert message(TWO, {"agee": [1], "job": ["x"]}) == (
        "DataError: a.csv: got no column 'age'; did you mean 'agee'?"
    )


def test_the_message_of_the_contract() -> None:
    table = pa.table({"age": ["n/a"], "job": ["clerk"]})
    with pytest.raises(FeatureError) as error:
        Transform(TWO)(table, targets=False, origin="train.parquet", first_row=17)
    assert str(error.value) == (
        "feature 'age' (row 17 of train.parquet): got 'n/a' (str), expected a number or null; "
        "write a number (in JSON without quotes) or null, or drop the row"
    )


LISTS = make_schema(wd.categorical("job", weights="w"), vocabularies=JOBS)
VECTOR = make_schema(wd.numeric("age", transform="none", size=2))
CODES = make_schema(
    wd.categorical("code"), kinds={"code": "int"}, vocabularies={"code": vocabulary([1, 2])}
)


@pytest.mark.parametrize(
    ("schema", "columns", "expected"),
    [
        (
            TWO,
            {"age": ["1", "x", "n/a"]},
            "feature 'age' (row 15 of a.csv): got '1' (str), expected a number or null; "
            "write a number (in JSON without quotes) or null, or drop the row",
        ),
        (
            TWO,
            {"age": [1.0, 2.0, float("-inf")]},
            "feature 'age' (row 17 of a.csv): got -inf (float), expected a finite number or "
            "null; make it null or drop the row",
        ),
        (
            TWO,
            {"age": [1, 1e300, 1]},
            "feature 'age' (row 16 of a.csv): got 1e+300 (float), which transform='none' takes "
            "beyond 1e30; scale the column or choose transform='quantile'",
        ),
        (
            TWO,
            {"age": [[1], [1, 2], []]},
            "feature 'age' (row 16 of a.csv): got a list of 2, expected a number or null; "
            "declare size=2 or take one of them",
        ),
        (
            VECTOR,
            {"age": [[1, 2], None, [1, 2, 3]]},
            "feature 'age' (row 17 of a.csv): got a list of 3, expected a list of 2 numbers or "
            "null; make it so or declare another size",
        ),
        (
            VECTOR,
            {"age": [1, 2, 3]},
            "feature 'age' (row 15 of a.csv): got 1 (int), expected a list of 2 numbers or "
            "null; make it so or declare another size",
        ),
        (
            TWO,
            {"job": [None, 1.5, None]},
            "feature 'job' (row 16 of a.csv): got 1.5 (float), expected text, an integer or "
            "null; convert column 'job' to text",
        ),
        (
            TWO,
            {"job": [None, None, True]},
            "feature 'job' (row 17 of a.csv): got True (bool), expected text, an integer or "
            "null; convert column 'job' to text",
        ),
        (
            CODES,
            {"code": [1.0, None, 1.5]},
            "feature 'code' (row 17 of a.csv): got 1.5 (float), expected a whole number of at most "
            "64 bits (as a float below 2**53) or null; convert column 'code' to integers or "
            "declare the feature over text",
        ),
        (
            CODES,
            {"code": ["1", "2", "it's\n"]},
            "feature 'code' (row 17 of a.csv): got 'it\\'s\\x0a' (str), expected a whole number of "
            "at most 64 bits (as a float below 2**53) or null; convert column 'code' to integers "
            "or declare the feature over text",
        ),
        (
            LISTS,
            {"job": [["x"], ["x", "y"], []], "w": [[1], [1], []]},
            "feature 'job' (row 16 of a.csv): got 1 weights in column 'w' for 2 values, "
            "expected one a value; make the lists equally long",
        ),
        (
            LISTS,
            {"job": [["x"], ["y"], []], "w": [[1.0], [-0.5], []]},
            "feature 'job' (row 16 of a.csv): got -0.5 (float) as a weight in column 'w', "
            "expected a number from 0 to 1e15; correct it or drop the row",
        ),
    ],
)
def test_bad_values_of_features(schema: Schema, columns: dict[str, Any], expected: str) -> None:
    good = {name: pa.nulls(3) for name in Transform(schema).columns(False)}
    assert message(schema, {**good, **columns}) == f"FeatureError: {expected}"


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (
            "bought",
            [1, None],
            "FeatureError: label 'bought' (row 16 of a.csv): got null, expected a finite "
            "number of at most 1e17; correct it or drop the row",
        ),
        (
            "bought",
            [float("nan"), 1],
            "FeatureError: label 'bought' (row 15 of a.csv): got nan (float), expected a finite "
            "number of at most 1e17; correct it or drop the row",
        ),
        (
            "bought",
            ["yes", "no"],
            "FeatureError: label 'bought' (row 15 of a.csv): got 'yes' (str), expected a finite "
            "number of at most 1e17; correct it or drop the row",
        ),
        (
            "kind",
            ["no", "never"],
            "FeatureError: label 'kind' (row 16 of a.csv): got 'never' (str), expected one of "
            "'no', 'yes', 'maybe'; correct it or drop the row",
        ),
        (
            "kind",
            [None, "no"],
            "FeatureError: label 'kind' (row 15 of a.csv): got null, expected one of 'no', "
            "'yes', 'maybe'; correct it or drop the row",
        ),
        (
            "w",
            [1, -2],
            "DataError: weight 'w' (row 16 of a.csv): got -2 (int), expected a number from 0 to "
            "1e15; correct it or drop the row",
        ),
        (
            "w",
            [float("nan"), 1],
            "DataError: weight 'w' (row 15 of a.csv): got nan (float), expected a number from 0 "
            "to 1e15; correct it or drop the row",
        ),
        (
            "w",
            [[1], [2]],
            "DataError: weight 'w' (row 15 of a.csv): got a list, expected one value a row",
        ),
        (
            "user",
            ["ann", None],
            "DataError: group 'user' (row 16 of a.csv): got null, expected text or an integer; "
            "correct it or drop the row",
        ),
    ],
)
def test_bad_targets(column: str, values: list[Any], expected: str) -> None:
    schema = ALONE[column] if "got null" in expected or "got nan" in expected else TARGETS
    assert message(schema, {**GOOD, column: values}, targets=True) == expected


def test_a_null_label_among_several_leaves_its_row_to_the_others() -> None:
    columns = {**GOOD, "bought": [None, True], "kind": ["no", None]}
    batch = Transform(TARGETS)(pa.table(columns), targets=True)
    assert batch.labels_BL is not None
    assert np.isnan(batch.labels_BL).tolist() == [[True, False], [False, True]]


def test_the_first_bad_row_is_told_whatever_the_threads_and_batches() -> None:
    ages = [1.0] * 5000
    ages[1700] = ages[1800] = ages[4000] = float("inf")
    table = pa.table({"age": ages, "job": ["x"] * 5000})
    for threads, chunk in ((1, 5000), (4, 5000), (3, 900)):
        cut = pa.Table.from_batches(table.to_batches(max_chunksize=chunk))
        with pytest.raises(FeatureError, match=r"\(row 1700\)"):
            Transform(TWO, threads=threads)(cut, targets=False)


def test_a_value_that_no_row_uses_is_no_error() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["1", "n/a"]))
    table = pa.table({"code": column})
    assert Transform(CODES)(table, targets=False).ids_N.tolist() == [2, 2]


def test_an_index_outside_its_dictionary_is_told() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 7]), pa.array(["x"]), safe=False)
    said = message(TWO, {"age": [1, 2], "job": column})
    assert "(row 16 of a.csv): got an index outside its dictionary" in said
