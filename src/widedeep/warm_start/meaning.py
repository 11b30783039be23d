"""Whether a part of an older model still means the same: only then may it be taken over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from widedeep.features import Crossed
from widedeep.schema import Schema

# A rate or a penalty says how a state is used, not what it holds; FTRL's z is rebuilt for them.
_HOW_USED = ("lr", "eps", "initial_accumulator")


def source_columns(schema: Schema, name: str) -> Iterator[str]:
    """Yield the columns that a feature reads, through the parts of a cross."""
    feature = schema.spec.by_name.get(name)
    if isinstance(feature, Crossed):
        for part in feature.parts:
            yield from source_columns(schema, part)
    elif feature is None:
        yield name
    else:
        yield feature.source


def _is_several(schema: Schema, name: str) -> bool:
    """Whether a feature may have several ids, or weights of them, in a row."""
    feature = schema.spec.by_name.get(name)
    columns = [schema.columns.get(column) for column in source_columns(schema, name)]
    nested = any(column is not None and column.nested for column in columns)
    return nested or getattr(feature, "weights", None) is not None or hasattr(feature, "transform")


def pooling_change(
    new: Schema, old: Schema, name: str, combiners: tuple[Any, Any] | None = None
) -> str:
    """Return why a feature's ids add up to something else than they did, or ""."""
    for column in source_columns(new, name):
        if new.history.get(column) != old.history.get(column):
            return f"column {column!r} is computed from other events than it was"
    mine, theirs = new.spec.by_name[name], old.spec.by_name[name]
    weights = tuple(getattr(feature, "weights", None) for feature in (mine, theirs))
    if weights[0] != weights[1]:
        return f"weights {weights[1]!r} became {weights[0]!r}"
    if combiners is None:
        combiners = (getattr(mine, "combiner", "sum"), getattr(theirs, "combiner", "sum"))
    several = _is_several(new, name) or _is_several(old, name) or None in combiners
    if combiners[0] != combiners[1] and several:
        return f"combiner {combiners[1]!r} became {combiners[0]!r}"
    rules = [getattr(feature, "oov", "id") for feature in (mine, theirs)]
    if several and rules[0] != rules[1]:
        return f"unseen values of a list: {rules[1]!r} became {rules[0]!r}"
    return ""


def layer_change(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """Return why hidden layers of the same shapes compute something else, or ""."""
    changes = [
        f"{option} {old[option]!r} became {new[option]!r}"
        for option in ("activation", "batch_norm")
        if old[option] != new[option]
    ]
    return "; ".join(changes)


def state_change(
    part: str,
    new: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    scales: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> str:
    """Return why an optimizer's state is no longer of use, or "" if it is."""
    if old is None:
        return "its state is not known"
    if new["optimizer"] != old["optimizer"]:
        return f"{old['optimizer']} became {new['optimizer']}"
    if str(new["optimizer"]).startswith("torch:"):
        return "the state of a torch optimizer starts anew"
    scale = "loss_reduction" if part == "dense" else "grad_scale"
    if scales[0].get(scale) != scales[1].get(scale):
        return f"{scale} {scales[1].get(scale)!r} became {scales[0].get(scale)!r}"
    if new["optimizer"] == "ftrl":
        return ""
    for option, value in new.items():
        if option not in _HOW_USED and option in old and old[option] != value:
            return f"{option} {old[option]!r} became {value!r}"
    return ""
