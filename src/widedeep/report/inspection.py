"""What a model learned and how large it is: its strongest wide weights by name, its tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle import Bundle, Explanation
from widedeep.errors import DataError
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.kernels.packed_rows import row_blocks
from widedeep.schema import Schema


@dataclass(frozen=True, kw_only=True, slots=True)
class WideWeight:
    """One weight of the wide part."""

    feature: str  # The feature
    value: str  # What the id stands for: a value, a bucket, the parts of a cross
    weight: float  # What it adds to the logit
    # How often it was seen when the schema was fitted; None where that is not counted
    count: int | None
    id: int  # The feature-local id


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSize:
    """A table of weights."""

    name: str  # The wide feature, or the logical embedding table
    part: Literal["wide", "deep"]  # ``"wide"`` or ``"deep"``
    rows: int  # Ids
    width: int  # Numbers an id
    nonzero: int  # Numbers that are not 0

    @property
    def numbers(self) -> int:
        """How many weights it holds."""
        return self.rows * self.width

    @property
    def share(self) -> float:
        """The share of its weights that are not 0."""
        return self.nonzero / max(1, self.numbers)


def top_wide_weights(
    bundle: Bundle, *, top: int = 20, column: int = 0, features: Collection[str] | None = None
) -> tuple[list[WideWeight], list[WideWeight]]:
    """Return the largest positive and the largest negative wide weights, by name."""
    if not 0 <= column < bundle.model.n_logits:
        raise DataError(f"got logit {column}, expected 0 to {bundle.model.n_logits - 1}")
    entries: list[tuple[float, str, int]] = []
    for name in bundle.model.wide:
        if features is not None and name not in features:
            continue
        weights = np.asarray(bundle.weights[f"wide/{name}"][:, column])
        entries += [(float(weights[id_]), name, id_) for id_ in _extremes(weights, top)]
    entries.sort(key=lambda entry: (-abs(entry[0]), entry[1], entry[2]))
    schema = bundle.schema
    positive = [_named(schema, *entry) for entry in entries if entry[0] > 0][:top]
    negative = [_named(schema, *entry) for entry in entries if entry[0] < 0][:top]
    return positive, negative


def _extremes(weights: NDArray[np.float32], top: int) -> list[int]:
    """Ids of the ``top`` largest and smallest weights, without sorting a large table."""
    if len(weights) <= 2 * top:
        return list(range(len(weights)))
    high = np.argpartition(weights, -top)[-top:]
    low = np.argpartition(weights, top)[:top]
    return sorted({*high.tolist(), *low.tolist()})


def _named(schema: Schema, weight: float, feature: str, id_: int) -> WideWeight:
    return WideWeight(
        feature=feature,
        value=schema.describe_id(feature, id_),
        weight=weight,
        count=_count(schema, feature, id_),
        id=id_,
    )


def _count(schema: Schema, feature: str, id_: int) -> int | None:
    vocabulary = schema.vocabularies.get(schema.vocabulary_key(feature))
    if vocabulary is None:
        return None
    # Known values are the last ids, after the reserved ones and the out-of-vocabulary buckets.
    position = id_ - (schema.id_count(feature) - len(vocabulary))
    return int(vocabulary.counts[position]) if position >= 0 else None


def table_sizes(bundle: Bundle) -> list[TableSize]:
    """Return the size of each table, the wide ones first."""
    sizes = []
    for name, weights in bundle.weights.items():
        kind, _, table = name.partition("/")
        if kind in ("wide", "table"):
            sizes.append(
                TableSize(
                    name=table,
                    part="wide" if kind == "wide" else "deep",
                    rows=weights.shape[0],
                    width=weights.shape[1],
                    nonzero=sum(int(np.count_nonzero(rows)) for rows in row_blocks(weights)),
                )
            )
    return sorted(sizes, key=lambda size: (size.part != "wide", -size.numbers, size.name))


def wide_zeros(bundle: Bundle) -> list[tuple[str, int, int]]:
    """Return feature, weights that are zero, and weights in all, the largest feature first."""
    zeros = []
    for name in bundle.model.wide:
        weights = bundle.weights[f"wide/{name}"][FIRST_KNOWN_ID:]
        zeros.append((name, weights.size - int(np.count_nonzero(weights)), weights.size))
    return sorted(zeros, key=lambda entry: (-entry[2], entry[0]))


def layer_sizes(bundle: Bundle) -> list[tuple[str, tuple[int, ...], int]]:
    """Return name, shape and number of weights of each layer of the standard tower."""
    sizes: list[tuple[str, tuple[int, ...], int]] = []
    widths = [bundle.model.width, *bundle.model.hidden_units]
    for i in range(len(bundle.model.hidden_units)):
        weights = bundle.weights.get(f"mlp/{i}/weight")
        if weights is not None:
            shape = (widths[i], widths[i + 1])
            sizes.append((f"hidden {i + 1}", shape, weights.size + widths[i + 1]))
    for name, size in bundle.model.towers.items():
        options = _tower_options(bundle, name)
        title = "embeddings of numbers" if name == "numbers" else f"tower {name}"
        sizes.append((f"{title}{options and f' ({options})'}", (), size))
    head = bundle.weights.get("head/weight")
    if head is not None:
        sizes.append(("output", (head.shape[1], head.shape[0]), head.size))
    sizes.append(("bias", tuple(bundle.weights["bias"].shape), bundle.weights["bias"].size))
    return sizes


def _tower_options(bundle: Bundle, name: str) -> str:
    """Return the options that a tower was made with, as text."""
    deep = bundle.config.get("model", {}).get("deep", [])
    table: Mapping[str, Any] = next((one for one in deep if one.get("name") == name), {})
    return ", ".join(f"{key} {value}" for key, value in table.items() if key != "name")


def logit_name(bundle: Bundle, column: int) -> str:
    """Return which head and class a logit is of; nothing where there is one logit alone."""
    if bundle.model.n_logits == 1:
        return ""
    head = next(head for head in bundle.model.heads if head.start <= column < head.stop)
    position = column - head.start
    label = f"class {head.classes[position] if head.classes else position}"
    parts = [f"head {head.name}"] if head.name else []
    return " of ".join([label, *parts] if head.stop - head.start > 1 else parts)


def explanation_table(explanation: Explanation) -> list[dict[str, Any]]:
    """Return an explanation as plain values, one entry a logit column."""
    entries = []
    for head in explanation.model.heads:
        for column in range(head.start, head.stop):
            terms = [
                {"feature": t.feature, "value": t.value, "weight": t.weights[column]}
                for t in explanation.wide
            ]
            terms.sort(key=lambda term: -abs(float(str(term["weight"]))))
            score = explanation.score[head.name]
            position = column - head.start
            entries.append(
                {
                    "head": head.name,
                    "class": head.classes[position] if head.classes else position,
                    "wide": terms,
                    "wide_logit": math.fsum(t.weights[column] for t in explanation.wide),
                    "deep_logit": explanation.deep[column],
                    "tower_logits": {
                        name: values[column] for name, values in explanation.towers.items()
                    },
                    "bias": explanation.bias[column],
                    "logit": explanation.logits[column],
                    "score": score if isinstance(score, float) else score[position],
                }
            )
    return entries


def vocabulary_table(schema: Schema, *, top: int = 20) -> Mapping[str, list[tuple[str, int]]]:
    """Return the most frequent values of each vocabulary, with how often each was seen."""
    by_key = {}
    for key, vocabulary in schema.vocabularies.items():
        order = np.argsort(-np.asarray(vocabulary.counts), kind="stable")[:top]
        owner = next(
            (f.name for f in schema.spec.all_features if schema.vocabulary_key(f.name) == key), key
        )
        first = schema.id_count(owner) - len(vocabulary)
        by_key[key] = [
            (schema.describe_id(owner, first + int(i)), int(vocabulary.counts[i])) for i in order
        ]
    return by_key
