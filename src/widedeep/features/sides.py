"""Which features a request gives once, and which come anew with every candidate."""

from __future__ import annotations

from typing import Literal

from widedeep.features.kinds import Categorical, Crossed, Feature
from widedeep.features.spec import FeatureSpec

__all__ = ["Side", "feature_side", "item_columns"]

Side = Literal["query", "item", "both"]


def item_columns(spec: FeatureSpec) -> frozenset[str]:
    """Return the input columns that belong to the item: those that its features read.

    A cross named in ``FeatureSpec.item`` adds none: its parts may be the query's.

    Args:
        spec: The declaration.
    """
    named = [spec.by_name[name] for name in spec.item]
    return frozenset(
        column
        for feature in named
        if not isinstance(feature, Crossed)
        for column in _columns(spec, feature)
    )


def feature_side(spec: FeatureSpec, name: str) -> Side:
    """Return whose feature this is: the query's, the item's, or (a cross that spans them) both's.

    A feature is the item's if ``FeatureSpec.item`` names it, or if all columns it reads are the
    item's. A feature that reads columns of both sides changes with the candidate, but cannot be
    computed from the item alone.

    Args:
        spec: The declaration.
        name: A feature's name.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(
        ...     features=[wd.categorical("user", "app"), wd.crossed("user", "app")], item=["app"]
        ... )
        >>> [feature_side(spec, name) for name in ("user", "app", "user_x_app")]
        ['query', 'item', 'both']
    """
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
