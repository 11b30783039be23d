"""Requests: rows given as dicts."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from tests.data.schemas import make_schema, vocabulary
from widedeep.data.transform import Transform
from widedeep.errors import DataError, FeatureError

JOBS = {"job": vocabulary(["clerk", "sales"])}
TWO = make_schema([wd.numeric("age", transform="none"), wd.categorical("job")], vocabularies=JOBS)


def test_absent_keys_are_null_and_counted() -> None:
    transform = Transform(TWO)
    batch = transform.rows([{"age": 1}, {"job": "clerk"}, {"age": None, "job": None}])
    assert batch.ids_N.tolist() == [1, 2, 1]
    transform.rows([{}])
    assert transform.absent == {"age": 2, "job": 2}


def test_a_copy_shares_the_tables() -> None:
    transform = Transform(
        make_schema(wd.categorical("job"), vocabularies={"job": vocabulary(["a"])})
    )
    copied = copy.copy(transform)
    copied.threads, copied.absent = 2, {}
    assert copied.plan is transform.plan
    assert copied.rows([{"job": "a"}, {}]).ids_N.tolist() == [2, 1]
    assert (copied.absent, transform.absent, transform.threads) == ({"job": 1}, {}, 1)


@pytest.mark.parametrize("value", ["half \ud83d", ["clerk", "\udc00"]])
def test_half_of_a_surrogate_pair_is_named(value: object) -> None:
    with pytest.raises(FeatureError, match=r"column 'job' \(row 1\): got .*half of a surrogate"):
        Transform(TWO).rows([{"job": "clerk"}, {"job": value}])


def test_strict_refuses_an_absent_key() -> None:
    rows = [{"age": 1, "job": None}, {"agee": 1, "job": "x"}]
    with pytest.raises(DataError, match=r"row 1: got no key 'age'.* did you mean 'agee'\?"):
        Transform(TWO).rows(rows, strict=True)
    assert Transform(TWO).rows(rows[:1], strict=True).ids_N.tolist() == [1]


@pytest.mark.parametrize(
    "value",
    [
        7,
        np.int8(7),
        np.float32(7),
        7.0,
        "7",
        np.str_("7"),
        b"7",
        True * 7,
        np.array(7),
        pa.scalar(7),
    ],
    ids=lambda value: type(value).__name__,
)
def test_scalars_of_requests(value: object) -> None:
    schema = make_schema(
        wd.categorical("x"), kinds={"x": "int"}, vocabularies={"x": vocabulary([7])}
    )
    assert Transform(schema).rows([{"x": value}]).ids_N.tolist() == [2]


@pytest.mark.parametrize(
    "values", [["clerk", "sales"], ("clerk", "sales"), np.array(["clerk", "sales"])]
)
def test_lists_of_requests(values: object) -> None:
    schema = make_schema(wd.categorical("job"), vocabularies=JOBS)
    assert Transform(schema).rows([{"job": values}, {"job": []}]).ids_N.tolist() == [2, 3]


def test_values_that_no_feature_reads_are_told() -> None:
    with pytest.raises(FeatureError, match=r"column 'job' \(row 1\): got \{'a': 1\} \(dict\)"):
        Transform(TWO).rows([{}, {"job": {"a": 1}}])
    with pytest.raises(DataError, match=r"row 0: got 'job' \(str\), expected a dict"):
        Transform(TWO).rows(["job"])  # type: ignore[list-item]


def test_no_rows() -> None:
    assert len(Transform(TWO).rows([])) == 0


def test_one_transform_serves_many_threads() -> None:
    transform = Transform(TWO, threads=2)
    rows = [{"age": i, "job": "clerk"} for i in range(1500)]
    expected = transform.rows(rows).dense_BK
    wrong = []

    def score() -> None:
        for _ in range(20):
            if not np.array_equal(transform.rows(rows).dense_BK, expected):
                wrong.append(1)

    workers = [threading.Thread(target=score) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
