"""FeatureSpec to TOML text and back."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from widedeep.errors import FeatureError, nearest
from widedeep.features.kinds import (
    Bucketized,
    Categorical,
    Crossed,
    Feature,
    Numeric,
    bucketized,
    categorical,
    crossed,
    numeric,
)
from widedeep.features.spec import FeatureSpec

__all__ = ["spec_from_table", "spec_from_toml", "spec_to_table", "spec_to_toml", "toml_text"]

_FEATURE_KEYS = (
    "numeric",
    "categorical",
    "bucketized",
    "crossed",
    "options",
    "wide",
    "deep",
    "item",
    "training_only",
    "extra",
)
_DATA_KEYS = ("label", "weight", "group", "label_vocabulary")


def _options_of(kind: type) -> list[str]:
    return [f.name for f in fields(kind) if f.name not in ("name", "parts")]


def _default(entry: Field[Any]) -> object:
    return None if entry.default is MISSING else entry.default


def _changed(feature: Feature, *, skip: tuple[str, ...] = ("name",)) -> dict[str, object]:
    """The options of a feature that differ from their defaults."""
    options: dict[str, object] = {}
    for entry in fields(feature):
        value = getattr(feature, entry.name)
        if entry.name in skip or value == _default(entry):
            continue
        if entry.name == "source" and value == feature.name:
            continue
        # TOML has no null: a combiner of None (keep the sequence) is written as "none".
        options[entry.name] = "none" if value is None else value
    return options


def spec_to_table(spec: FeatureSpec) -> dict[str, dict[str, object]]:
    """Return the ``[data]`` and ``[features]`` tables of a spec."""
    features: dict[str, object] = {}
    options: dict[str, object] = {}
    for key, kind in (("numeric", Numeric), ("categorical", Categorical)):
        chosen = [f for f in spec.all_features if isinstance(f, kind)]
        if chosen:
            features[key] = [f.name for f in chosen]
        options.update({f.name: _changed(f) for f in chosen if _changed(f)})
    crosses = [f for f in spec.all_features if isinstance(f, Crossed)]
    if crosses:
        features["crossed"] = [_cross_entry(f) for f in crosses]
    buckets = [f for f in spec.all_features if isinstance(f, Bucketized)]
    for option in ("wide", "deep"):
        if getattr(spec, option) is not None:
            features[option] = list(getattr(spec, option))
    for option in ("item", "extra"):
        if getattr(spec, option):
            features[option] = list(getattr(spec, option))
    if spec.training_only:
        features["training_only"] = dict(spec.training_only)
    if buckets:
        features["bucketized"] = {f.name: {"source": f.source, **_changed(f)} for f in buckets}
    if options:
        features["options"] = options
    data = {key: getattr(spec, key) for key in _DATA_KEYS if getattr(spec, key) is not None}
    return {"data": data, "features": features}


def _cross_entry(cross: Crossed) -> object:
    changed = _changed(cross, skip=("name", "parts"))
    if cross.name != "_x_".join(cross.parts):
        changed["name"] = cross.name
    return {"parts": list(cross.parts), **changed} if changed else list(cross.parts)


def spec_from_table(data: Mapping[str, Any], features: Mapping[str, Any]) -> FeatureSpec:
    """Build a spec from the ``[data]`` keys it owns and the ``[features]`` table.

    Raises:
        FeatureError: For an unknown key or feature name, with the nearest one.
    """
    for key in features:
        if key not in _FEATURE_KEYS:
            raise FeatureError(
                f"got the unknown key {key!r} in [features]; {nearest(key, _FEATURE_KEYS)}"
            )
    options = dict(features.get("options", {}))
    declared: list[Feature] = []
    for name in _names(features, "numeric"):
        declared += numeric(name, **_known(name, options.pop(name, {}), Numeric))
    for name in _names(features, "categorical"):
        declared += categorical(name, **_known(name, options.pop(name, {}), Categorical))
    for name, entry in features.get("bucketized", {}).items():
        declared.append(bucketized(name, **_known(name, entry, Bucketized)))
    declared += [_cross_from(entry) for entry in features.get("crossed", [])]
    if options:
        name = next(iter(options))
        known = [*_names(features, "numeric"), *_names(features, "categorical")]
        raise FeatureError(
            f"got options for {name!r}, which is no numeric or categorical feature; {nearest(name, known)}"
        )
    placement = {
        key: features[key]
        for key in ("wide", "deep", "item", "training_only", "extra")
        if key in features
    }
    owned = {key: data[key] for key in _DATA_KEYS if key in data}
    return FeatureSpec(features=declared, **owned, **placement)


def _names(features: Mapping[str, Any], key: str) -> list[str]:
    names = features.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FeatureError(f"got {key} = {names!r} in [features], expected a list of names")
    return names


def _known(name: str, entry: object, kind: type) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise FeatureError(
            f"feature {name!r}: got {entry!r}, expected a table of options like {{ min_count = 2 }}"
        )
    for key in entry:
        if key not in _options_of(kind):
            raise FeatureError(
                f"feature {name!r}: got the unknown option {key!r}; {nearest(key, _options_of(kind))}"
            )
    options = dict(entry)
    if options.get("combiner") == "none":
        options["combiner"] = None
    return options


def _cross_from(entry: object) -> Crossed:
    if isinstance(entry, list):
        return crossed(*entry)
    if not isinstance(entry, Mapping) or "parts" not in entry:
        raise FeatureError(
            f"got crossed = [{entry!r}], expected a list of parts or a table like "
            '{ parts = ["a", "b"], hash_buckets = 1000 }'
        )
    label = str(entry.get("name", "_x_".join(map(str, entry["parts"]))))
    rest = {key: value for key, value in entry.items() if key not in ("parts", "name")}
    return crossed(*entry["parts"], name=entry.get("name"), **_known(label, rest, Crossed))


def spec_to_toml(spec: FeatureSpec) -> str:
    """Return the spec as TOML text."""
    return toml_text(spec_to_table(spec))


def spec_from_toml(text: str) -> FeatureSpec:
    """Read a spec from TOML text.

    Raises:
        FeatureError: If the text is no TOML, has no ``[features]``, or names an unknown key.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FeatureError(f"got text that is no TOML: {error}") from error
    if "features" not in table:
        raise FeatureError("got TOML without a [features] table; add one")
    return spec_from_table(table.get("data", {}), table["features"])


def toml_text(table: Mapping[str, Mapping[str, object]]) -> str:
    """Write two levels of tables as TOML; deeper ones become inline tables.

    Example:
        >>> print(toml_text({"data": {"label": "y"}}), end="")
        [data]
        label = "y"
    """
    blocks = []
    for section, entries in table.items():
        lines = [f"[{section}]"]
        for key, value in entries.items():
            if isinstance(value, Mapping) and value and all(
                isinstance(v, Mapping) for v in value.values()
            ):
                lines += [f"{_key(key)}.{_key(k)} = {_value(v)}" for k, v in value.items()]
            else:
                lines.append(f"{_key(key)} = {_value(value)}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _key(name: str) -> str:
    bare = name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    return name if bare else json.dumps(name)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML has no surrogate pairs and forbids a raw DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (int, float)):
        return repr(value)
    raise FeatureError(f"got {value!r} ({type(value).__name__}), which TOML cannot hold")
