"""Small models with random weights, and the batches and rows to score them with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import widedeep as wd
from widedeep.bundle import BundleHead, BundleModel, DeepColumn
from widedeep.data.batch import Batch
from widedeep.features import FeatureSpec
from widedeep.schema import ColumnType, NumericFit, Schema, Vocabulary

BINARY = (BundleHead(name="", kind="binary", start=0, stop=1),)
MULTICLASS = (BundleHead(name="", kind="multiclass", start=0, stop=3, classes=("a", "b", "c")),)
THREE_HEADS = (
    BundleHead(name="click", kind="binary", start=0, stop=1),
    BundleHead(name="kind", kind="multiclass", start=1, stop=4),
    BundleHead(name="price", kind="regression", start=4, stop=5),
)

USERS = ["anna", "bo", "Ἀριάδνη", "d", "e"]
TAGS = ["x", "y", "z", "w"]
APPS = ["maps", "mail", "игра", "日本"]
Weights = dict[str, NDArray[np.float32]]


def spec(item: tuple[str, ...] = ("app", "price"), extra: tuple[str, ...] = ()) -> FeatureSpec:
    """Two query categoricals, an item with a number, a cross that spans both; odd names."""
    return FeatureSpec(
        label="installed",
        features=[
            wd.numeric("age", transform="none", missing=0.0),
            wd.numeric("price", transform="none", missing=0.0),
            wd.bucketized("age_bucket", source="age", boundaries=[20, 40]),
            wd.categorical("użytkownik 👤", source="user"),
            wd.categorical("tags", combiner="sqrtn"),
            wd.categorical("app", table="apps"),
            wd.categorical("seen", table="apps"),
            wd.crossed("użytkownik 👤", "app", name="user/app"),
        ],
        item=item,
        extra=extra,
    )


def schema(item: tuple[str, ...] = ("app", "price"), extra: tuple[str, ...] = ()) -> Schema:
    """The schema of :func:`spec`, as if fitted."""
    pairs = np.array([[2, 2], [2, 3], [3, 4], [4, 5]], np.int64)
    return Schema(
        spec=spec(item, extra),
        columns={
            "age": ColumnType(kind="float"),
            "price": ColumnType(kind="float"),
            "user": ColumnType(kind="string"),
            "tags": ColumnType(kind="string", nested=True),
            "app": ColumnType(kind="string"),
            "seen": ColumnType(kind="string", nested=True),
            "installed": ColumnType(kind="int"),
        },
        vocabularies={
            "użytkownik 👤": _words(USERS),
            "tags": _words(TAGS),
            "apps": _words(APPS),
            "user/app": Vocabulary(values=pairs, counts=np.ones(4, np.int64)),
        },
        boundaries={"age_bucket": np.array([20.0, 40.0])},
        numerics={"age": _as_it_is(), "price": _as_it_is()},
        rows=100,
    )


def _words(words: list[str]) -> Vocabulary:
    values = pa.array([word.encode() for word in words], pa.large_binary())
    return Vocabulary(values=values, counts=np.ones(len(words), np.int64))


def _as_it_is() -> NumericFit:
    zero = np.zeros(1)
    return NumericFit(
        boundaries=(),
        shift=zero,
        scale=np.ones(1),
        fill=zero.astype(np.float32),
        minimum=zero,
        maximum=np.full(1, 100.0),
        mean=zero,
    )


def model(
    of: Schema,
    *,
    heads: tuple[BundleHead, ...] = BINARY,
    hidden_units: tuple[int, ...] = (37, 20),
    activation: str = "relu",
    dim: int = 5,
    wide: bool = True,
    deep: bool = True,
) -> BundleModel:
    """A model of every feature of the schema; embeddings first, then the numbers."""
    columns: list[DeepColumn] = []
    for slot in of.slots if deep else ():
        if slot.deep:
            at = columns[-1].stop if columns else 0
            columns.append(
                DeepColumn(
                    name=slot.name,
                    source="table",
                    start=at,
                    stop=at + dim,
                    combiner=slot.combiner,
                )
            )
    for name, places in of.dense_layout.items() if deep else ():
        if name not in of.spec.extra:
            at = columns[-1].stop
            width = places.stop - places.start
            columns.append(DeepColumn(name=name, source="dense", start=at, stop=at + width))
    return BundleModel(
        heads=heads,
        activation=activation,
        hidden_units=hidden_units if deep else (),
        wide=tuple(slot.name for slot in of.slots if slot.wide) if wide else (),
        deep=tuple(columns),
    )


def random_weights(of: Schema, shape: BundleModel, *, tower: bool = True, seed: int = 0) -> Weights:
    """Weights of the size that training leaves, so that sums neither vanish nor blow up."""
    rng = np.random.default_rng(seed)

    def draw(*size: int) -> NDArray[np.float32]:
        return rng.normal(scale=size[-1] ** -0.5, size=size).astype(np.float32)

    slots = {slot.name: slot for slot in of.slots}
    weights = {"bias": draw(shape.n_logits)}
    weights |= {f"wide/{name}": draw(slots[name].size, shape.n_logits) for name in shape.wide}
    for column in shape.deep:
        if column.source == "table":
            slot = slots[column.name]
            weights[f"table/{slot.table}"] = draw(slot.size, column.stop - column.start)
    inputs = shape.width
    for layer, units in enumerate(shape.hidden_units if tower else ()):
        weights[f"mlp/{layer}/weight"], weights[f"mlp/{layer}/bias"] = (
            draw(units, inputs),
            draw(units),
        )
        inputs = units
    if shape.deep and tower:
        weights["head/weight"] = draw(shape.n_logits, inputs)
    return weights


def random_batch(of: Schema, n_rows: int, *, seed: int = 0, weighted: bool = False) -> Batch:
    """Encoded rows with empty, single and long cells."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, 1, 1, 3], size=n_rows * len(of.slots))
    sizes = np.tile([slot.size for slot in of.slots], n_rows)
    ids = rng.integers(0, np.repeat(sizes, lengths))
    return Batch(
        ids_N=ids,
        offsets_BF=np.concatenate([[0], np.cumsum(lengths)]),
        dense_BK=rng.normal(size=(n_rows, of.n_dense)).astype(np.float32),
        values_N=rng.normal(size=len(ids)).astype(np.float32) if weighted else None,
    )


def rows(n_rows: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Raw rows with nulls, unseen values and lists."""
    rng = np.random.default_rng(seed)

    def one_of(words: list[str]) -> str | None:
        return [*words, "unseen", None][int(rng.integers(len(words) + 2))]

    return [
        {
            "age": round(float(rng.uniform(10, 60)), 1),
            "price": float(rng.integers(5)),
            "user": one_of(USERS),
            "tags": [str(word) for word in rng.choice(TAGS, size=int(rng.integers(4)))],
            "app": one_of(APPS),
            "seen": [str(word) for word in rng.choice(APPS, size=int(rng.integers(3)))],
        }
        for _ in range(n_rows)
    ]
