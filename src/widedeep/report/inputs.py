"""What goes into a model: each feature's values in training, and in the rows of today."""

from __future__ import annotations

from typing import Any

import numpy as np

from widedeep.data.drift import DriftCounts
from widedeep.features import Feature
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.schema import Schema, place_text

_TOP_VALUES = 3


def input_statistics(schema: Schema, drift: DriftCounts | None = None) -> list[dict[str, Any]]:
    """Return what is known of each feature's values."""
    moved = {one.feature: one for one in drift.features()} if drift else {}
    crosses = drift.new_crosses() if drift else {}
    entries = []
    for feature in schema.spec.all_features:
        entry = _of_training(schema, feature)
        if feature.source_feature is not None:  # its values are those of its source
            feature = schema.spec.by_name[feature.source_feature]
        now = moved.get(feature.name)
        entry |= {
            "missing_now": drift.missing(feature.main_column)
            if drift and feature.main_column is not None
            else None,
            "unseen": now.new_values if now else crosses.get(feature.name),
            "psi": now.psi if now else None,
            "moved_most": now.moved_most if now else None,
        }
        entries.append(entry)
    return entries


def _of_training(schema: Schema, feature: Feature) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "feature": feature.name,
        "kind": feature.kind_text,
        "place": place_text(schema, feature),
        "values": None,
        "left_out": 0,
        "missing": None,
        "range": None,
        "top": [],
    }
    if feature.source_feature is not None:
        feature = schema.spec.by_name[feature.source_feature]
    if feature.main_column is not None:
        entry["missing"] = schema.missing.get(feature.main_column)
    if feature.learns_numbers:
        entry["range"] = _range(schema, feature)
    if feature.dense_width:
        return entry
    if feature.vocabulary_key is None:
        entry["values"] = schema.id_count(feature.name) - FIRST_KNOWN_ID
    else:
        entry |= _of_vocabulary(schema, feature.name, feature.vocabulary_key)
    return entry


def _range(schema: Schema, feature: Feature) -> dict[str, float] | None:
    """Smallest, mean and largest value; None for several components, or if none was seen."""
    fit = schema.numerics[feature.name]
    if len(fit.minimum) > 1 or not fit.minimum[0] <= fit.maximum[0]:
        return None
    return {key: float(getattr(fit, key)[0]) for key in ("minimum", "mean", "maximum")}


def _of_vocabulary(schema: Schema, name: str, key: str) -> dict[str, Any]:
    vocabulary = schema.vocabularies[key]
    counts = np.asarray(vocabulary.counts)
    entry: dict[str, Any] = {"values": len(vocabulary), "left_out": vocabulary.dropped}
    if counts.any():
        first, total = schema.id_count(name) - len(vocabulary), int(counts.sum())
        often = np.argsort(-counts, kind="stable")[:_TOP_VALUES]
        entry["top"] = [
            [schema.describe_id(name, first + int(index)), int(counts[index]) / total]
            for index in often
        ]
    return entry
