"""What a row may cost and weigh: combinations of crosses, weights of values, numbers too large."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.errors import DataError, FeatureError, LimitError

LIST = pa.list_(pa.string())


def lists(**columns: Any) -> pa.Table:
    return pa.table({name: pa.array(values, LIST) for name, values in columns.items()})


def crossed_schema(hash_buckets: int | None = None, **options: Any) -> wd.Schema:
    rows = lists(a=[["x", "y"], ["z"]], b=[["u"], ["v", "w"]])
    cross = wd.crossed("a", "b", hash_buckets=hash_buckets, **options)
    return wd.fit_schema(wd.FeatureSpec(features=[*wd.categorical("a", "b"), cross]), rows)


@pytest.mark.parametrize("hash_buckets", [None, 50])
@pytest.mark.parametrize("as_table", [True, False])
def test_a_row_of_too_many_combinations_is_named(hash_buckets: int | None, as_table: bool) -> None:
    encode = Transform(crossed_schema(hash_buckets, max_combinations=6))
    rows = [{"a": ["x"] * 2, "b": ["u"] * 3}, {"a": ["x"] * 7, "b": ["v"]}]
    fine = encode.rows(rows[:1])
    assert np.diff(fine.offsets_BF).tolist() == [2, 3, 6]
    with pytest.raises(LimitError) as told:
        encode(pa.Table.from_pylist(rows), targets=False) if as_table else encode.rows(rows)
    message = str(told.value)
    assert message.startswith(
        "feature 'a_x_b' (row 1): got 7 x 1 values of its parts, which make 7"
    )
    assert "at most max_combinations=6 in a row" in message
    assert isinstance(told.value, DataError)


def test_the_default_limit_and_its_edge() -> None:
    encode = Transform(crossed_schema(50))
    assert len(encode.rows([{"a": ["x"] * 256, "b": ["u"] * 256}]).ids_N) == 512 + 65_536
    with pytest.raises(LimitError, match=r"257 x 256 values.*65,792 combinations.*65,536"):
        encode.rows([{"a": ["x"] * 257, "b": ["u"] * 256}])


def test_what_yields_no_cross_has_no_limit() -> None:
    encode = Transform(crossed_schema(50, max_combinations=6))
    for row in ({"a": ["x"] * 100}, {"a": ["x"] * 100, "b": []}, {"a": ["x"] * 9, "b": [None] * 9}):
        assert np.diff(encode.rows([row]).offsets_BF)[2] == 0


def test_counting_combinations_has_the_limit_too() -> None:
    spec = wd.FeatureSpec(
        features=[*wd.categorical("a", "b"), wd.crossed("a", "b", max_combinations=100)]
    )
    rows = lists(a=[["x"], ["y"] * 11, ["z"]], b=[["u"], ["v"] * 10, None])
    with pytest.raises(LimitError, match=r"'a_x_b' \(row 1.*\): got 11 x 10 values.*make 110 "):
        wd.fit_schema(spec, rows)
    huge = lists(a=[["y"] * 3_000_000], b=[["v"] * 3_000_000])
    with pytest.raises(LimitError, match="9,000,000,000,000 combinations"):
        wd.fit_schema(spec, huge)


def test_the_limit_stands_in_files_where_it_is_not_the_usual(tmp_path: Path) -> None:
    schema = crossed_schema(50, max_combinations=6)
    schema.save(tmp_path / "schema")
    again = wd.Schema.load(tmp_path / "schema")
    assert again == schema and again.spec.by_name["a_x_b"].max_combinations == 6
    assert crossed_schema(50).fingerprint == crossed_schema(50, max_combinations=65_536).fingerprint
    assert crossed_schema(50).fingerprint != schema.fingerprint
    with pytest.raises(FeatureError, match="max_combinations"):
        wd.crossed("a", "b", max_combinations=0)


VALUES = st.lists(st.sampled_from(["x", "y", "z", "new", None]), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.none() | VALUES] * 3), min_size=1, max_size=8), st.booleans())
def test_combinations_come_in_order(rows: list[tuple[Any, ...]], hashed: bool) -> None:
    names = ("a", "b", "c")
    known = lists(**{name: [["x", "y"], ["z"]] for name in names})
    cross = wd.crossed(*names, hash_buckets=97 if hashed else None)
    schema = wd.fit_schema(wd.FeatureSpec(features=[*wd.categorical(*names), cross]), known)
    encode = Transform(schema)
    dicts = [dict(zip(names, row, strict=True)) for row in rows]
    batch = encode.rows(dicts)
    n_slots = len(schema.slots)
    at = [slot.name for slot in schema.slots].index(cross.name)
    tuples = schema.vocabularies[cross.name].values.tolist() if not hashed else []
    plain = {name: {v: i for i, v in enumerate(["<0>", "<1>", *vocabulary(schema, name)])}
             for name in names}  # fmt: skip
    for row, values in enumerate(rows):
        cell = row * n_slots + at
        ids = batch.ids_N[slice(*batch.offsets_BF[cell : cell + 2])].tolist()
        parts = [[v for v in value or [] if v is not None] for value in values]
        combinations = list(itertools.product(*parts))
        assert len(ids) == len(combinations)
        if not hashed:
            of_parts = [[plain[n].get(v, 0) for n, v in zip(names, c, strict=True)]
                        for c in combinations]  # fmt: skip
            expected = [tuples.index(ids_) + 2 if ids_ in tuples else 0 for ids_ in of_parts]
            assert ids == expected
        else:
            one_by_one = [
                encode.rows([{n: [v] for n, v in zip(names, c, strict=True)}]).ids_N.tolist()[at]
                for c in combinations
            ]
            assert ids == one_by_one


def vocabulary(schema: wd.Schema, name: str) -> list[str]:
    return [value.as_py().decode() for value in schema.vocabularies[name].values]


# ---- weights of values, of rows; labels; numbers ------------------------------------------------


def weighted(combiner: str = "mean", rows: pa.Table | None = None) -> Transform:
    rows = pa.table({"t": [["a", "b"]] * 4, "w": [[1.0, 2.0]] * 4}) if rows is None else rows
    spec = wd.FeatureSpec(features=wd.categorical("t", weights="w", combiner=combiner))
    return Transform(wd.fit_schema(spec, rows))


@pytest.mark.parametrize(
    "weight, says",
    [(1e39, "1e+39"), (1e308, "1e+308"), (1.01e15, "1.01e+15"), (float("inf"), "inf"),
     (-1e-300, "-1e-300"), (float("nan"), "nan"), (None, "null"), ("2", "'2'")],
)  # fmt: skip
def test_a_weight_out_of_range_is_named(weight: Any, says: str) -> None:
    with pytest.raises(FeatureError) as told:
        weighted().rows([{"t": ["a"], "w": [1]}, {"t": ["a", "b"], "w": [1.0, weight]}])
    message = str(told.value)
    assert message.startswith("feature 't' (row 1): got ") and says in message
    assert "as a weight in column 'w', expected a number from 0 to 1e15" in message


@pytest.mark.parametrize("weight", [1e39, -1.0, float("inf")])
def test_a_weight_out_of_range_is_refused_before_training(weight: float) -> None:
    rows = pa.table({"t": [["a"], [], ["a", "b"]], "w": [[1.0], None, [0.0, weight]]})
    with pytest.raises(
        FeatureError, match=r"'t' \(row 2 of .*\): got .* as a weight in column 'w'"
    ):
        weighted(rows=rows)
    rows = pa.table({"x": [1.0, 2.0], "w": [1.0, weight]})
    with pytest.raises(DataError, match=r"weight 'w' \(row 1 .*expected a number from 0 to 1e15"):
        wd.fit_schema(wd.FeatureSpec(features=wd.numeric("x"), weight="w"), rows)


@pytest.mark.parametrize(
    "row, says",
    [
        ({"t": ["a", "b"]}, "null in place of the weights in column 'w' for 2 values"),
        ({"t": ["a"], "w": None}, "null in place of the weights in column 'w' for 1 values"),
        ({"t": ["a", "b"], "w": [1.0]}, "1 weights in column 'w' for 2 values"),
        ({"t": [], "w": [1.0]}, "1 weights in column 'w' for 0 values"),
        ({"t": ["a"], "w": []}, "0 weights in column 'w' for 1 values"),
    ],
)
def test_lists_and_weights_of_other_lengths(row: dict[str, Any], says: str) -> None:
    for rows in ([row], [{"t": ["a"], "w": [1.0]}, row]):
        with pytest.raises(FeatureError, match=rf"\(row {len(rows) - 1}\): got {says}"):
            weighted().rows(rows)


def test_nothing_needs_no_weights() -> None:
    asked = [{"t": [], "w": None}, {"t": [], "w": []}, {"t": None, "w": None}, {}]
    batch = weighted().rows(asked)
    assert np.diff(batch.offsets_BF).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("combiner", ["mean", "sqrtn", "sum"])
@pytest.mark.parametrize(
    "weights", [[5e-324, 1e-323], [1e-46, 3e-46], [1e-25, 1e-27], [1e-19, 2e-19], [1e15, 1e15],
                [1e15, 5e-324], [0.0, 0.0], [-0.0, 1e-310]],
)  # fmt: skip
def test_a_finite_weight_gives_a_finite_score(combiner: str, weights: list[float]) -> None:
    rows = pa.table(
        {"t": [["a", "b"], ["b"]] * 40, "w": [[1.0, 2.0], [1.0]] * 40, "y": [0, 1] * 40}
    )
    spec = wd.FeatureSpec(label="y", features=wd.categorical("t", weights="w", combiner=combiner))
    model = wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4], embedding_dim=2)
    trainer = wd.Trainer(model, progress=False, threads=1)
    asked = pa.table({"t": [["a", "b"]] * 80, "w": [weights] * 80, "y": [0, 1] * 40})
    trainer.fit(asked, epochs=1)
    assert np.isfinite(trainer.predict(asked)).all()
    assert np.isfinite(trainer.predict(rows)).all()


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-46, 1e-30, 1.0, 1e14])
def test_only_the_ratios_of_weights_count_in_a_mean(scale: float) -> None:
    asked = [{"t": ["a", "b"], "w": [scale * 1.0, scale * 3.0]}]
    values = weighted().rows(asked).values_N.astype(np.float64)
    assert values[1] / values[0] == pytest.approx(3.0, rel=1e-6)
    assert (values**2).sum() > 1e-37


@pytest.mark.parametrize("label", [1e39, -1e18, float("inf"), float("nan")])
def test_a_label_out_of_range_is_named(label: float) -> None:
    spec = wd.FeatureSpec(label="y", features=wd.numeric("x"))
    with pytest.raises(FeatureError, match=r"label 'y' \(row 1 of"):
        wd.fit_schema(spec, pa.table({"x": [1.0, 2.0], "y": [0.0, label]}))
    schema = wd.fit_schema(spec, pa.table({"x": [1.0, 2.0], "y": [0.0, 1e17]}))
    with pytest.raises(FeatureError, match=r"label 'y' \(row 1\).*finite number of at most 1e17"):
        Transform(schema)(pa.table({"x": [1.0, 2.0], "y": [0.0, label]}))


@pytest.mark.parametrize("transform", ["none", "standard", "minmax", "log1p"])
def test_a_number_scaled_out_of_range_is_named(transform: str) -> None:
    rows = pa.table({"x": [0.0, 1e-12]})
    schema = wd.fit_schema(wd.FeatureSpec(features=wd.numeric("x", transform=transform)), rows)
    value = 1e300
    if transform == "log1p":
        assert np.isfinite(Transform(schema).rows([{"x": value}]).dense_BK).all()
        return
    with pytest.raises(FeatureError, match=r"'x' \(row 1\): got 1e\+300.*beyond 1e30"):
        Transform(schema).rows([{"x": 0.0}, {"x": value}])
