"""Quotient-remainder embeddings, from the transform to a bundle that ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.errors import FeatureError
from widedeep.kernels.transform import fingerprint64
from widedeep.schema import Schema

BUCKETS = 1000


def rows_of(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(count)
    return [
        {
            "user": None if i % 9 == 0 else f"user {rng.integers(200)}",
            "tags": [f"t{t}" for t in rng.integers(30, size=rng.integers(4))],
            "weights": [],
            "item": f"item {rng.integers(40)}",
            "y": int(rng.integers(2)),
        }
        for i in range(count)
    ]


def weighed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "weights": [0.5 + i for i in range(len(row["tags"]))]} for row in rows]


def make_schema() -> Schema:
    composed: dict[str, Any] = {"hash_buckets": BUCKETS, "compose": "quotient_remainder"}
    spec = wd.FeatureSpec(
        label="y",
        features=[
            wd.categorical("user", "item", combiner="sum", **composed),
            wd.categorical("tags", weights="weights", maxlen=2, **composed),
            wd.crossed("user", "item", hash_buckets=50),
        ],
        item=["item"],
    )
    return wd.fit_schema(spec, weighed(rows_of(60)))


def expected_ids(values: list[str | None]) -> list[int]:
    m, ids = math.ceil(math.sqrt(BUCKETS)), []
    for value in values:
        if value is None:
            ids.append(1)
        else:
            bucket = fingerprint64(value) % BUCKETS
            ids += [2 + bucket % m, 2 + m + bucket // m]
    return ids


def test_a_value_has_the_ids_of_its_remainder_and_its_quotient() -> None:
    schema = make_schema()
    rows = weighed(rows_of(50))
    sizes = {slot.name: slot.size for slot in schema.slots}
    assert sizes["user"] == 2 + 32 + math.ceil(1000 / 32)
    for data in (pa.Table.from_pylist(rows), None):
        transform = Transform(schema)
        batch = transform.rows(rows) if data is None else transform(data)
        n = batch.n_slots
        for slot, name in enumerate(s.name for s in schema.slots):
            for b, row in enumerate(rows):
                cell = slice(*batch.offsets_BF[b * n + slot : b * n + slot + 2])
                if name in ("user", "item"):
                    assert batch.ids_N[cell].tolist() == expected_ids([row[name]])
                elif name == "tags":
                    assert batch.ids_N[cell].tolist() == expected_ids(row["tags"][-2:])
                    assert batch.values_N is not None
                    weights = np.repeat(row["weights"][-2:], 2)
                    assert batch.values_N[cell].tolist() == weights.tolist()
                else:  # a hashed cross combines values, not their ids
                    assert len(batch.ids_N[cell]) == (row["user"] is not None)
    assert schema.describe_id("user", 2 + 31) == "<remainder 31 of the hash>"
    assert schema.describe_id("user", 2 + 32) == "<quotient 0 of the hash>"


def test_it_learns_exports_ranks_and_starts_warm(tmp_path: Path) -> None:
    schema = make_schema()
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[6]), batch_size=16, progress=False)
    trainer.fit(weighed(rows_of(120)), epochs=2)
    bundle = trainer.export(tmp_path / "bundle")
    rows = weighed(rows_of(40))
    np.testing.assert_allclose(bundle.score(rows), trainer.predict(rows), atol=1e-6)
    table = bundle.weights["table/user"]
    assert len(table) == 66 and np.abs(bundle.weights["wide/user"]).max() > 0

    user = {name: rows[1][name] for name in ("user", "tags", "weights")}
    items = [f"item {i}" for i in range(40)]
    ranking = wd.Ranker(bundle).rank(user, {}, {"item": items})
    scores = np.asarray(bundle.score([{**user, "item": item} for item in items]))
    np.testing.assert_array_equal(ranking.scores, np.sort(scores)[::-1])

    again = wd.Trainer(wd.WideDeep(schema, hidden_units=[6]), progress=False)
    assert all(t.state == "carried" for t in again.warm_start(tmp_path / "bundle").tensors)
    plain = wd.fit_schema(
        wd.FeatureSpec(label="y", features=wd.categorical("user", hash_buckets=BUCKETS)), rows
    )
    other = wd.Trainer(wd.WideDeep(plain, hidden_units=[6]), progress=False)
    first = other.warm_start(tmp_path / "bundle").tensors[0]
    assert (first.state, first.reason) == ("fresh", "compose 'quotient_remainder' became None")


def test_two_values_of_one_row_apart_have_scores_of_their_own() -> None:
    """What shares a remainder differs in the quotient: the model tells them apart."""
    m = math.ceil(math.sqrt(BUCKETS))
    values = [f"v{i}" for i in range(400)]
    buckets = {value: fingerprint64(value) % BUCKETS for value in values}
    a = values[0]
    b = next(v for v in values[1:] if buckets[v] % m == buckets[a] % m and buckets[v] != buckets[a])
    rows = [{"v": value, "y": float(value == a)} for value in (a, b) * 50]
    spec = wd.FeatureSpec(
        label="y",
        features=wd.categorical("v", hash_buckets=BUCKETS, compose="quotient_remainder"),
    )
    trainer = wd.Trainer(
        wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4]), batch_size=20, progress=False
    )
    trainer.fit(rows, epochs=20)
    high, low = np.asarray(trainer.predict(rows[:2]))
    assert high > 0.9 and low < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compose": "quotient_remainder"}, "needs hash_buckets"),
        ({"compose": "product", "hash_buckets": 9}, "got compose='product', expected"),
        (
            {"compose": "quotient_remainder", "hash_buckets": 9, "combiner": None},
            "and a combiner for the two rows",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        wd.categorical("x", **options)


def test_a_learned_cross_is_refused() -> None:
    x = wd.categorical("x", hash_buckets=9, compose="quotient_remainder")
    with pytest.raises(FeatureError, match=r"its part 'x' has two ids .* give the cross hash_bu"):
        wd.FeatureSpec(features=[x, wd.categorical("z"), wd.crossed("x", "z")])
