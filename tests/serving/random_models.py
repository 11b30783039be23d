"""Random specs over one log, with models of random weights: what a ranker must score as they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import widedeep as wd
from tests.bundle import models
from widedeep.bundle import Bundle, write_bundle
from widedeep.features import Crossed, Indicator, Numeric
from widedeep.schema import Schema

__all__ = ["ITEM_COLUMNS", "QUERY_COLUMNS", "random_bundle", "random_items", "random_query"]

QUERY_COLUMNS = ("user", "tags", "seen", "seen_weight", "age", "device", "hours")
ITEM_COLUMNS = ("app", "genres", "genre_weight", "price", "sizes", "maker")
_TYPES = {
    "user": pa.string(),
    "tags": pa.list_(pa.string()),
    "seen": pa.list_(pa.int64()),
    "seen_weight": pa.list_(pa.float64()),
    "age": pa.float64(),
    "device": pa.string(),
    "hours": pa.int64(),
    "app": pa.string(),
    "genres": pa.list_(pa.string()),
    "genre_weight": pa.list_(pa.float64()),
    "price": pa.float64(),
    "sizes": pa.list_(pa.float64()),
    "maker": pa.int64(),
}


def random_value(rng: np.random.Generator, column: str, unseen: bool) -> Any:
    """A value, a null, an empty list, or (in requests) one that the log does not hold."""
    if column in ("seen_weight", "genre_weight"):
        return None  # made to fit the ids
    if column not in ("sizes",) and rng.random() < 0.15:
        return None
    known = int(rng.integers(6 if unseen else 4))
    length = int(rng.integers(4))
    if column in ("tags", "genres"):
        return [f"{column}{int(rng.integers(5))}" for _ in range(length)]
    if column == "seen":
        return [int(rng.integers(9)) for _ in range(length)]
    if column == "sizes":
        return [float(rng.normal()), float(rng.normal())]
    if column in ("age", "price"):
        return round(float(rng.uniform(0, 60)), 1)
    return known if column in ("hours", "maker") else f"{column}{known}"


def _row(rng: np.random.Generator, columns: tuple[str, ...], unseen: bool = True) -> dict[str, Any]:
    row = {column: random_value(rng, column, unseen) for column in columns}
    for ids, weights in (("seen", "seen_weight"), ("genres", "genre_weight")):
        if weights in row and row[ids] is not None:
            row[weights] = [round(float(rng.uniform(0.1, 2)), 2) for _ in row[ids]]
    return row


def random_query(rng: np.random.Generator) -> dict[str, Any]:
    """A user and a context; some keys are absent."""
    row = _row(rng, QUERY_COLUMNS)
    gone = [c for c in ("user", "age", "device") if rng.random() < 0.1]
    return {column: value for column, value in row.items() if column not in gone}


def random_items(rng: np.random.Generator, n: int) -> pa.Table:
    """A catalogue with the id column ``item``, whose values the log does not hold."""
    rows = [{"item": f"item{i}"} | _row(rng, ITEM_COLUMNS) for i in range(n)]
    types = [("item", pa.string()), *((name, _TYPES[name]) for name in ITEM_COLUMNS)]
    return pa.Table.from_pylist(rows, pa.schema(types))


def _features(rng: np.random.Generator) -> list[Any]:
    weighted = rng.random() < 0.5
    chosen = [
        wd.numeric("age", transform="none", missing=0.0),
        wd.numeric("price", missing="mean"),
        wd.numeric("sizes", size=2, transform="standard", missing="indicator"),
        wd.bucketized("age_bucket", source="age", boundaries=[20, 40]),
        wd.bucketized("size_buckets", source="sizes", boundaries=[-0.5, 0.5], size=2),
        wd.bucketized("price_bucket", source="price", boundaries=[10, 30]),
        wd.categorical("user", oov_buckets=int(rng.integers(3))),
        wd.categorical("tags", combiner="sqrtn"),
        wd.categorical("seen", num_buckets=8, weights="seen_weight" if weighted else None),
        wd.categorical("app", oov="drop" if rng.random() < 0.3 else "id"),
        wd.categorical("genres", combiner="mean", weights="genre_weight" if weighted else None),
        wd.categorical("maker", hash_buckets=7),
    ]
    crosses = [
        wd.crossed("user", "app"),
        wd.crossed("tags", "genres"),
        wd.crossed("user", "app", "maker", name="three", hash_buckets=11),
        wd.crossed("tags", "genres", name="hashed tags", hash_buckets=13),
        wd.crossed("device", "app", name="raw", hash_buckets=17),
        wd.crossed("age_bucket", "price_bucket", "device"),
        wd.crossed("app", "price_bucket"),
        wd.crossed("user", "age_bucket"),
        wd.crossed("seen", "genres", hash_buckets=19),
        wd.crossed("user", "size_buckets", hash_buckets=23, hash_key=5),
    ]
    features = [*chosen, *(cross for cross in crosses if rng.random() < 0.6)]
    # Of one side alone: an indicator of a cross of both is ranked row by row.
    counted = ["age_bucket", "size_buckets", "user", "seen", "app", "genres", "app_x_price_bucket"]
    names = {feature.name for feature in wd.FeatureSpec(features=features).all_features}
    return features + [
        wd.indicator(f"counts of {name}", source=name)
        for name in counted
        if name in names and rng.random() < 0.3
    ]


def random_schema(rng: np.random.Generator, label: str | None = None) -> Schema:
    """A schema fitted to a small log, with crosses and a number in any part."""
    features = _features(rng)
    flat = wd.FeatureSpec(features=features).all_features
    names = [feature.name for feature in flat]
    numbers = [feature.name for feature in flat if isinstance(feature, Numeric)]
    crosses = [feature.name for feature in flat if isinstance(feature, Crossed)]
    indicators = [feature.name for feature in flat if isinstance(feature, Indicator)]
    spec = wd.FeatureSpec(
        label=label,
        features=features,
        item=["price", "sizes", "price_bucket", "size_buckets", "app", "genres", "maker"],
        wide=[
            name
            for name in names
            if name not in indicators and (name not in numbers or rng.random() < 0.3)
        ],
        deep=[name for name in names if name not in crosses or rng.random() < 0.3],
        training_only={"user": "user1"} if rng.random() < 0.2 else {},
    )
    log = [_row(rng, (*QUERY_COLUMNS, *ITEM_COLUMNS), unseen=False) for _ in range(60)]
    table = pa.Table.from_pylist(log, pa.schema(list(_TYPES.items())))
    for column in spec.labels.values():
        table = table.append_column(column, pa.array(np.arange(len(log)) % 2))
    return wd.fit_schema(spec, table)


def random_bundle(rng: np.random.Generator, path: Path, label: str | None = None) -> Bundle:
    """A bundle of random features, shape and weights; with a label for one head."""
    schema = random_schema(rng, label)
    heads = [models.BINARY, models.THREE_HEADS][int(rng.integers(2))]
    if label is not None:
        heads = models.BINARY
    model = models.model(
        schema,
        heads=heads,
        hidden_units=[(), (16,), (37, 20), (64, 33, 5)][int(rng.integers(4))],
        activation=["relu", "tanh", "gelu"][int(rng.integers(3))],
        dim=int(rng.integers(1, 20)),
        deep=rng.random() < 0.9,
        wide=rng.random() < 0.9,
    )
    return write_bundle(
        path,
        schema=schema,
        weights=models.random_weights(schema, model, seed=int(rng.integers(100))),
        model=model,
        metrics={},
        warmup_rows=[],
        config={},
    )
