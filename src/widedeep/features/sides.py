"""Which features a request gives once, and which come anew with every candidate."""

from __future__ import annotations

from typing import Literal

from widedeep.features.kinds import Categorical, Crossed, Feature
from widedeep.features.spec import FeatureSpec

Side = Literal["query", "item", "both"]


def item_columns(spec: FeatureSpec) -> frozenset[str]:
    """Return the input columns that belong to the item: those that its features read."""
    named = [spec.by_name[name] for name in spec.item]
    return frozenset(
        column
        for feature in named
        if not isinstance(feature, Crossed)
        for column in _columns(spec, feature)
    )


def feature_side(spec: FeatureSpec, name: str) -> Side:
    """Return whose the feature is: the query's, the item's, or both's (a cross that spans them)."""
    of_item = item_columns(spec)
    read = _columns(spec, spec.by_name[name])
    if read <= of_item:
        return "item"
    return "both" if read & of_item or name in spec.item else "query"


def _columns(spec: FeatureSpec, feature: Feature) -> frozenset[str]:
    if isinstance(feature, Crossed):
        parts = (spec.by_name.get(part) for part in feature.parts)
        found = [
            frozenset([name]) if part is None else _columns(spec, part)
            for name, part in zip(feature.parts, parts, strict=True)
        ]
        return frozenset().union(*found)
    weights = feature.weights if isinstance(feature, Categorical) else None
    return frozenset([feature.source]) | (frozenset() if weights is None else {weights})
