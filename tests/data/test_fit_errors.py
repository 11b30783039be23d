"""What fit_schema refuses, and that it says what was got, where, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.errors import ConfigError, DataError, FeatureError

NUMBER = wd.FeatureSpec(features=wd.numeric("x"))
VECTOR = wd.FeatureSpec(features=wd.numeric("x", size=2))
CATEGORY = wd.FeatureSpec(features=wd.categorical("x"))
LABELLED = wd.FeatureSpec(label="y", features=wd.categorical("x"))
WEIGHTED = LABELLED.replace(weight="w")


def refused(kind: type[Exception], spec: wd.FeatureSpec, data: Any) -> str:
    with pytest.raises(kind) as caught:
        wd.fit_schema(spec, data)
    return str(caught.value)


@pytest.mark.parametrize(
    "spec, values, message",
    [
        (
            NUMBER,
            ["1", "n/a"],
            "feature 'x' (row 1 of the dict): got 'n/a' (str), expected a number or null; write a "
            "number (in JSON without quotes) or null, or drop the row",
        ),
        (
            NUMBER,
            ["1", None],
            "feature 'x': got a column of text such as '1', expected numbers; "
            "cast the column to a number",
        ),
        (
            NUMBER,
            [1.0, None, float("-inf")],
            "feature 'x' (row 2 of the dict): got -inf (float), expected a finite number or null; "
            "write it as null, clip it, or drop the row",
        ),
        (
            NUMBER,
            [[1.0], [2.0]],
            "feature 'x': column 'x' holds lists, expected plain values for size=1; "
            "set size= to the length of its lists, or parallel= to the sequence whose events they "
            "describe",
        ),
        (
            VECTOR,
            [1.0, 2.0],
            "feature 'x': column 'x' holds plain values, expected lists for size=2; "
            "set size= to the length of its lists, or parallel= to the sequence whose events they "
            "describe",
        ),
        (
            VECTOR,
            [[1.0, 2.0], None, [1.0, 2.0, 3.0]],
            "feature 'x' (row 2 of the dict): got a list of 3 numbers, expected 2 or null; "
            "set size=3 if all have as many, or drop the row",
        ),
        (
            VECTOR,
            [None, [1.0, float("inf")]],
            "feature 'x' (row 1 of the dict): got inf (float), expected a finite number or null; "
            "write it as null, clip it, or drop the row",
        ),
        (
            VECTOR,
            [["a", "b"]],
            "feature 'x' (row 0 of the dict): got text in a list, expected numbers",
        ),
        (
            CATEGORY,
            [1.0, None, 2.5],
            "feature 'x' (row 2 of the dict): got 2.5 (double), expected text or whole numbers of "
            "64 bits (as floats below 2**53); use bucketized(...) for numbers, or cast the column "
            "to text",
        ),
        (
            CATEGORY,
            [[1.0], [2.0, 0.5]],
            "feature 'x' (row 1 of the dict): got 0.5 (double), expected text or whole numbers of "
            "64 bits (as floats below 2**53); use bucketized(...) for numbers, or cast the column "
            "to text",
        ),
        (
            CATEGORY,
            pa.array([1, 2**63], pa.uint64()),
            "feature 'x' (row 1 of the dict): got 9223372036854775808 (uint64), expected integers "
            "below 2**63; cast the column to text",
        ),
        (
            CATEGORY,
            [{"a": 1}],
            "feature 'x': column 'x' is struct<a: int64>, expected text, numbers, booleans, dates, "
            "timestamps or lists of them; cast it to one of these",
        ),
        (
            CATEGORY,
            [[["a"]]],
            "feature 'x': column 'x' is list<item: list<item: string>>, expected text, numbers, "
            "booleans, dates, timestamps or lists of them; cast it to one of these",
        ),
    ],
)
def test_a_value_that_does_not_fit(spec: wd.FeatureSpec, values: Any, message: str) -> None:
    got = refused(FeatureError, spec, {"x": values})
    assert got.replace("list<element:", "list<item:") == message


@pytest.mark.parametrize(
    "error, spec, columns, message",
    [
        (
            FeatureError,
            LABELLED,
            {"y": [1, 0, None]},
            "label 'y' (row 2 of the dict): got null, expected a label in every row; drop the row",
        ),
        (
            FeatureError,
            LABELLED,
            {"y": [1.0, float("nan"), 0.0]},
            "label 'y' (row 1 of the dict): got nan, expected a label in every row; drop the row",
        ),
        (
            FeatureError,
            LABELLED,
            {"y": ["yes", None, "no"]},
            "label 'y' (row 1 of the dict): got null, expected a label in every row; drop the row",
        ),
        (
            FeatureError,
            LABELLED,
            {"y": [0.0, float("inf"), 1.0]},
            "label 'y' (row 1 of the dict): got inf (float), expected a finite number or null; "
            "write it as null, clip it, or drop the row",
        ),
        (
            FeatureError,
            LABELLED.replace(label_vocabulary=["no", "yes"]),
            {"y": ["no", "yes", "maybe"]},
            "label 'y' (row 2 of the dict): got 'maybe', expected one of ['no', 'yes']; "
            "add it to label_vocabulary, or drop the row",
        ),
        (
            FeatureError,
            LABELLED.replace(label_vocabulary=["0", "1"]),
            {"y": [0, 1, 1]},
            "label 'y': got a column of int, expected text for label_vocabulary; cast the "
            "column to text, or drop label_vocabulary",
        ),
        (
            DataError,
            WEIGHTED,
            {"y": [1, 0, 1], "w": [1.0, 2.0, -0.5]},
            "weight 'w' (row 2 of the dict): got -0.5, expected a number from 0 to 1e15; "
            "correct it or drop the row",
        ),
        (
            DataError,
            WEIGHTED,
            {"y": [1, 0, 1], "w": [1.0, None, 1.0]},
            "weight 'w' (row 1 of the dict): got None, expected a number from 0 to 1e15; "
            "correct it or drop the row",
        ),
        (
            DataError,
            WEIGHTED,
            {"y": [1, 0, 1], "w": ["1", "2", "3"]},
            "weight 'w': got a column of text, expected one number a row",
        ),
        (
            FeatureError,
            LABELLED.replace(group="g"),
            {"y": [1, 0, 1], "g": [1.0, 2.0, 2.5]},
            "group 'g' (row 2 of the dict): got 2.5 (double), expected text or whole numbers of "
            "64 bits (as floats below 2**53); use bucketized(...) for numbers, or cast the column "
            "to text",
        ),
        (
            DataError,
            LABELLED,
            {"yy": [1, 0, 1]},
            "the dict: no column 'y'; did you mean 'yy'?",
        ),
    ],
)
def test_a_label_weight_or_group_that_does_not_fit(
    error: type[Exception], spec: wd.FeatureSpec, columns: dict[str, Any], message: str
) -> None:
    assert refused(error, spec, {"x": ["a", "b", "c"], **columns}) == message


def test_a_row_is_named_by_its_file(tmp_path: Path) -> None:
    ages = np.arange(100, dtype=np.float64)
    pq.write_table(pa.table({"x": ages}), tmp_path / "a.parquet", row_group_size=30)
    ages[77] = np.inf
    pq.write_table(pa.table({"x": ages}), tmp_path / "b.parquet", row_group_size=30)
    message = refused(FeatureError, NUMBER, [tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert message.startswith(f"feature 'x' (row 77 of {tmp_path / 'b.parquet'}): got inf (float)")


def test_the_first_failing_column_is_named_whatever_the_threads() -> None:
    spec = wd.FeatureSpec(features=wd.numeric("a", "b", "c"))
    rows = {"a": [1.0] * 9, "b": [np.inf] * 9, "c": [np.inf] * 9}
    for threads in (1, 3):
        with pytest.raises(FeatureError, match="feature 'b'"):
            wd.fit_schema(spec, rows, threads=threads)


def test_shared_tables_hold_one_kind() -> None:
    spec = wd.FeatureSpec(features=wd.categorical("a", "b", table="t"))
    message = refused(FeatureError, spec, {"a": ["x"], "b": [1]})
    assert message == (
        "feature 'b': column 'b' is int, but 'a', which shares table 't', is text; cast one of them"
    )


def test_vectors_of_two_sizes_are_refused() -> None:
    spec = wd.FeatureSpec(features=[wd.numeric("x", size=2), wd.numeric("z", source="x")])
    message = refused(FeatureError, spec, {"x": [[1.0, 2.0]]})
    assert "column 'x' is read as vectors of" in message


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a\n\nb\n", "(line 2 of {path}): got an empty line; remove the line"),
        (b"a\nb\na\n", "(line 3 of {path}): got 'a', as on line 1; remove one of them"),
        (b"", "(line 1 of {path}): got an empty file; add at least one value"),
        (b"\xff\n", "got vocabulary_file='{path}', which cannot be read"),
        (None, "got vocabulary_file='{path}', which cannot be read"),
    ],
)
def test_a_vocabulary_file_is_checked(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "v.txt"
    if content is not None:
        path.write_bytes(content)
    spec = wd.FeatureSpec(features=wd.categorical("x", vocabulary_file=str(path)))
    assert message.format(path=path) in refused(FeatureError, spec, {"x": ["a"]})


@pytest.mark.parametrize("line", ["x", "1.5", str(2**63)])
def test_a_vocabulary_file_for_integers_is_checked(tmp_path: Path, line: str) -> None:
    path = tmp_path / "v.txt"
    path.write_text(f"7\n{line}\n")
    spec = wd.FeatureSpec(features=wd.categorical("x", vocabulary_file=str(path)))
    assert refused(FeatureError, spec, {"x": [7]}) == (
        f"feature 'x' (line 2 of {path}): got {line!r}; expected integers of 64 bits "
        "without leading zeros or signs, as column 'x' holds"
    )


def test_data_without_rows_is_refused() -> None:
    message = refused(DataError, CATEGORY, pa.table({"x": pa.array([], pa.string())}))
    assert message == "data: got no rows, expected at least one; check the path or the query"


def test_a_value_too_long_for_a_category_is_refused() -> None:
    message = refused(DataError, CATEGORY, {"x": ["a" * (1 << 20)]})
    assert message.startswith("feature 'x', column 'x': values: one has 1048576 bytes")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"memory_limit": 1000}, "memory_limit: got 1000, expected at least 16777216"),
        ({"sample_rows": 1}, "sample_rows: got 1, expected at least 2"),
        ({"threads": 0}, "threads: got 0, expected at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        wd.fit_schema(CATEGORY, {"x": ["a"]}, **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_something_else_than_a_spec_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"spec: got 'x' \(str\), expected wd.FeatureSpec"):
        wd.fit_schema("x", {"x": ["a"]})  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [["0", "1", "NA"], ["1.5", "?", "2"], ["n/a", "-1"]])
@pytest.mark.parametrize("form", ["csv", "table"])
def test_a_label_of_numbers_and_a_word(tmp_path: Path, labels: list[str], form: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"a,{label}\n" for label in labels))
    data = str(path) if form == "csv" else pa.table({"x": ["a"] * len(labels), "y": labels})
    spec = wd.FeatureSpec(label="y", features=wd.categorical("x"))
    with pytest.raises(FeatureError, match=r"label 'y': got numbers such as .* label_vocabulary"):
        wd.fit_schema(spec, data)
    named = wd.FeatureSpec(label="y", features=wd.categorical("x"), label_vocabulary=labels)
    assert wd.fit_schema(named, data).classes == {"": tuple(labels)}


@pytest.mark.parametrize("line", ["007", "+7", " 7", "7.0", "1_000", "\u0667", str(2**63)])
def test_a_vocabulary_file_of_integers_written_otherwise(tmp_path: Path, line: str) -> None:
    (tmp_path / "v.txt").write_text(f"5\n{line}\n", encoding="utf-8")
    feature = wd.categorical("x", vocabulary_file=str(tmp_path / "v.txt"))
    spec = wd.FeatureSpec(features=feature)
    with pytest.raises(FeatureError, match=r"line 2 of .*v\.txt.*without leading zeros"):
        wd.fit_schema(spec, pa.table({"x": [5, 7]}))
