"""What goes into a model: each feature's values in training, and in the rows of today."""

from __future__ import annotations

from typing import Any

import numpy as np

from widedeep.features import Bucketized, Categorical, Crossed, Feature, Numeric
from widedeep.gate.drift import DriftCounts
from widedeep.schema import Schema, kind_text, place_text

_TOP_VALUES = 3


def input_statistics(schema: Schema, drift: DriftCounts | None = None) -> list[dict[str, Any]]:
    """Return what is known of each feature's values."""
    moved = {one.feature: one for one in drift.features()} if drift else {}
    crosses = drift.new_crosses() if drift else {}
    found = []
    for feature in schema.spec.all_features:
        entry = _of_training(schema, feature)
        now = moved.get(feature.name)
        entry |= {
            "missing_now": drift.missing(feature.source)
            if drift and not isinstance(feature, Crossed)
            else None,
            "unseen": now.new_values if now else crosses.get(feature.name),
            "psi": now.psi if now else None,
            "moved_most": now.moved_most if now else None,
        }
        found.append(entry)
    return found


def _of_training(schema: Schema, feature: Feature) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "feature": feature.name,
        "kind": kind_text(feature),
        "place": place_text(schema, feature),
        "values": None,
        "left_out": 0,
        "missing": None,
        "range": None,
        "top": [],
    }
    if not isinstance(feature, Crossed):
        entry["missing"] = schema.missing.get(feature.source)
    if isinstance(feature, Numeric):
        entry["range"] = _range(schema, feature)
        return entry
    hashed = getattr(feature, "hash_buckets", None) or getattr(feature, "num_buckets", None)
    if isinstance(feature, Bucketized):
        entry["values"] = len(schema.boundaries[feature.name]) + 1
    elif hashed:
        entry["values"] = hashed
    else:
        entry |= _of_vocabulary(schema, feature)
    return entry


def _range(schema: Schema, feature: Numeric) -> dict[str, float] | None:
    """Smallest, mean and largest value; None for several components, or if none was seen."""
    fit = schema.numerics[feature.name]
    if feature.size > 1 or not fit.minimum[0] <= fit.maximum[0]:
        return None
    return {key: float(getattr(fit, key)[0]) for key in ("minimum", "mean", "maximum")}


def _of_vocabulary(schema: Schema, feature: Categorical | Crossed) -> dict[str, Any]:
    vocabulary = schema.vocabularies[schema.vocabulary_key(feature.name)]
    counts = np.asarray(vocabulary.counts)
    found: dict[str, Any] = {"values": len(vocabulary), "left_out": vocabulary.dropped}
    if counts.any():
        first, total = schema.id_count(feature.name) - len(vocabulary), int(counts.sum())
        often = np.argsort(-counts, kind="stable")[:_TOP_VALUES]
        found["top"] = [
            [schema.describe_id(feature.name, first + int(at)), int(counts[at]) / total]
            for at in often
        ]
    return found
