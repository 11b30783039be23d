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

# In the order they are written: what may become a table of its own comes last.
_FEATURE_KEYS = (
    "numeric",
    "categorical",
    "crossed",
    "wide",
    "deep",
    "item",
    "extra",
    "training_only",
    "bucketized",
    "options",
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
    listed = [f for f in spec.all_features if isinstance(f, (Numeric, Categorical))]
    buckets = [f for f in spec.all_features if isinstance(f, Bucketized)]
    features: dict[str, object] = {
        "numeric": [f.name for f in listed if isinstance(f, Numeric)],
        "categorical": [f.name for f in listed if isinstance(f, Categorical)],
        "crossed": [_cross_entry(f) for f in spec.all_features if isinstance(f, Crossed)],
        "item": list(spec.item),
        "extra": list(spec.extra),
        "training_only": dict(spec.training_only),
        "bucketized": {f.name: {"source": f.source, **_changed(f)} for f in buckets},
        "options": {f.name: _changed(f) for f in listed if _changed(f)},
    }
    features = {key: value for key, value in features.items() if value}
    # An empty placement is not the default one, and is written.
    for key, names in (("wide", spec.wide), ("deep", spec.deep)):
        if names is not None:
            features[key] = list(names)
    data = {key: getattr(spec, key) for key in _DATA_KEYS if getattr(spec, key) is not None}
    return {"data": data, "features": {k: features[k] for k in _FEATURE_KEYS if k in features}}


def _cross_entry(cross: Crossed) -> object:
    changed = _changed(cross, skip=("name", "parts"))
    if cross.name != "_x_".join(cross.parts):
        changed["name"] = cross.name
    return {"parts": list(cross.parts), **changed} if changed else list(cross.parts)


def spec_from_table(data: Mapping[str, Any], features: Mapping[str, Any]) -> FeatureSpec:
    """Build a spec from the ``[data]`` keys it owns and the ``[features]`` table."""
    for key in features:
        if key not in _FEATURE_KEYS:
            raise FeatureError(
                f"got the unknown key {key!r} in [features]; {nearest(key, _FEATURE_KEYS)}"
            )
    options = dict(_table(features, "options"))
    declared: list[Feature] = []
    for name in _names(features, "numeric"):
        declared += numeric(name, **_known(name, options.pop(name, {}), Numeric))
    for name in _names(features, "categorical"):
        declared += categorical(name, **_known(name, options.pop(name, {}), Categorical))
    for name, entry in _table(features, "bucketized").items():
        declared.append(bucketized(name, **{"source": name, **_known(name, entry, Bucketized)}))
    declared += [_cross_from(entry) for entry in _list(features, "crossed")]
    if options:
        name = next(iter(options))
        known = [*_names(features, "numeric"), *_names(features, "categorical")]
        raise FeatureError(
            f"got options for {name!r}, which is no numeric or categorical feature; "
            f"{nearest(name, known)}"
        )
    placement = {
        key: features[key]
        for key in ("wide", "deep", "item", "training_only", "extra")
        if key in features
    }
    owned = {key: data[key] for key in _DATA_KEYS if key in data}
    return FeatureSpec(features=declared, **owned, **placement)


def _table(features: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    entries = features.get(key, {})
    if not isinstance(entries, Mapping):
        raise FeatureError(
            f"got {key} = {entries!r} in [features], expected a table with one entry a feature"
        )
    return entries


def _list(features: Mapping[str, Any], key: str) -> list[Any]:
    entries = features.get(key, [])
    if not isinstance(entries, (list, tuple)):
        raise FeatureError(f"got {key} = {entries!r} in [features], expected a list")
    return list(entries)


def _names(features: Mapping[str, Any], key: str) -> list[str]:
    names = _list(features, key)
    if not all(isinstance(name, str) for name in names):
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
                f"feature {name!r}: got the unknown option {key!r}; "
                f"{nearest(key, _options_of(kind))}"
            )
    options = dict(entry)
    if options.get("combiner") == "none":
        options["combiner"] = None
    return options


def _cross_from(entry: object) -> Crossed:
    if isinstance(entry, list):
        return crossed(*entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("parts"), (list, tuple)):
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
    """Read a spec from TOML text."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FeatureError(f"got text that is no TOML: {error}") from error
    if "features" not in table:
        raise FeatureError("got TOML without a [features] table; add one")
    return spec_from_table(table.get("data", {}), table["features"])


def toml_text(table: Mapping[str, Mapping[str, object]]) -> str:
    """Write two levels of tables as TOML; deeper ones become inline tables."""
    blocks = []
    for section, entries in table.items():
        lines = [f"[{section}]"]
        for key, value in entries.items():
            inner = value if isinstance(value, Mapping) else {}
            if inner and all(isinstance(v, Mapping) for v in inner.values()):
                lines += [
                    f"{toml_key(key)}.{toml_key(k)} = {toml_value(v)}" for k, v in inner.items()
                ]
            else:
                lines.append(f"{toml_key(key)} = {toml_value(value)}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def toml_key(name: str) -> str:
    """Return a key, quoted if it must be."""
    bare = name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    return name if bare else toml_value(name)


def toml_value(value: object) -> str:
    """Return a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, except that TOML has no surrogate pairs and forbids a raw DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        # NumPy's scalars are floats that print with their type's name.
        return repr(float(value))
    raise FeatureError(f"got {value!r} ({type(value).__name__}), which TOML cannot hold")
