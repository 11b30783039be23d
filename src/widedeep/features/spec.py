"""FeatureSpec: the features of a model, its label, and where each feature goes."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, Literal

from widedeep.errors import FeatureError, nearest, show_value
from widedeep.features.bucketized import Bucketized, bucketized
from widedeep.features.categorical import Categorical, categorical
from widedeep.features.crossed import Crossed, crossed
from widedeep.features.kind import check, is_name
from widedeep.features.kinds import Feature
from widedeep.features.numeric import Numeric, numeric
from widedeep.features.toml import toml_text

__all__ = ["FeatureSpec"]

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
# What features that share an embedding table must agree on.
_TABLE_OPTIONS = (
    "vocabulary",
    "vocabulary_file",
    "min_count",
    "max_size",
    "hash_buckets",
    "num_buckets",
    "oov_buckets",
    "embedding_dim",
)
_KIND_ORDER: tuple[type, ...] = (Numeric, Bucketized, Categorical, Crossed)


def _flatten(features: object) -> list[Feature]:
    """One feature, or features in any nesting of lists, in their order."""
    if isinstance(features, (Numeric, Categorical, Bucketized, Crossed)):
        return [features]
    # A set has no order, and one of text would be another model in every process.
    ordered = isinstance(features, Iterable) and not isinstance(
        features, (str, bytes, Mapping, Set)
    )
    if not ordered:
        raise FeatureError(
            f"got {show_value(features)} ({type(features).__name__}) in features=[...], "
            "expected wd.numeric(...), wd.categorical(...), wd.bucketized(...) "
            "or wd.crossed(...), or a list of them"
        )
    return [
        feature
        for item in features  # type: ignore[attr-defined]
        for feature in _flatten(item)
    ]


def _plain_label(label: object) -> object:
    if isinstance(label, Mapping):
        columns = [*label.values()]
        plain: object = dict(label)
        named = all(head == "" or is_name(head) for head in label)
    elif label is None or isinstance(label, str):
        columns, plain, named = [] if label is None else [label], label, True
    else:
        columns = list(label) if isinstance(label, Sequence) else [label]
        plain, named = tuple(columns), not isinstance(label, (bytes, Set))
    for column in columns:
        if not is_name(column) or columns.count(column) > 1:
            named = False
    if not named:
        raise FeatureError(
            f"got label={show_value(label)}, expected a column's name, a list of different names "
            "or {head: column}"
        )
    return plain


def _listed(option: str, value: object) -> tuple[object, ...] | None:
    """An option that is a list of names, as a tuple."""
    if isinstance(value, str):
        raise FeatureError(f"got {option}={value!r}, expected a list: {option}=[{value!r}]")
    if value is None:
        return () if option in ("item", "extra") else None
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise FeatureError(f"got {option}={show_value(value)}, expected a list of names")
    names = tuple(value)
    for name in names:
        if not is_name(name) and not (option == "label_vocabulary" and name == ""):
            raise FeatureError(f"got {show_value(name)} in {option}, expected a name")
        if names.count(name) > 1:
            raise FeatureError(f"got {name!r} twice in {option}; remove one")
    return names


def _fixed_values(values: object) -> dict[str, str | int | float]:
    """The values of ``training_only``, each text or a finite number."""
    if not isinstance(values, Mapping):
        raise FeatureError(
            f"got training_only={show_value(values)}, expected a table of features and their "
            "values at serving, such as {'position': 1}"
        )
    for name, value in values.items():
        fits = is_name(value) or value == ""
        if isinstance(value, int):
            fits = -(2**63) <= value < 2**63
        elif isinstance(value, float):
            fits = math.isfinite(value)
        if not fits:
            raise FeatureError(
                f"got {show_value(value)} for {name!r} in training_only, expected text or a number "
                "of 64 bits"
            )
    return dict(values)


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """The features of a model, its label, and where each feature goes.

    Features are kept in one canonical order: numbers, buckets, categoricals, crosses.

    Args:
        features: Features; nested lists are flattened.
        label: The label's column, a list of columns (several labels) or ``{head: column}``.
        weight: A column of example weights, at least 0.
        group: A column that names the query (user, request) for grouped metrics.
        label_vocabulary: The classes in order, for labels that are strings; learned if not given.
        wide: Names of the features of the wide part. Default: categoricals, buckets and crosses.
        deep: Names of the features of the deep part. Default: numbers and categoricals.
        item: Names of the features that belong to the item; the rest is query and context.
        training_only: Features whose value is fixed at serving: ``{"position": 1}``.
        extra: Numeric features handed to towers apart, not part of the concatenated input.

    Raises:
        FeatureError: If two features have one name, or a name given is not a feature's.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(
        ...     label="income", features=[wd.numeric("age"), wd.categorical("job")]
        ... )
        >>> spec.wide_names, spec.deep_names
        (('job',), ('age', 'job'))
    """

    features: Sequence[object]
    label: str | Sequence[str] | Mapping[str, str] | None = None
    weight: str | None = None
    group: str | None = None
    label_vocabulary: Sequence[str] | None = None
    wide: Sequence[str] | None = None
    deep: Sequence[str] | None = None
    item: Sequence[str] = ()
    training_only: Mapping[str, str | int | float] = field(default_factory=dict)
    extra: Sequence[str] = ()

    def __post_init__(self) -> None:
        flat = _flatten(self.features)
        ordered = sorted(flat, key=lambda feature: _KIND_ORDER.index(type(feature)))
        set_field = object.__setattr__
        set_field(self, "features", tuple(ordered))
        set_field(self, "training_only", _fixed_values(self.training_only))
        set_field(self, "label", _plain_label(self.label))
        for option in ("wide", "deep", "item", "extra", "label_vocabulary"):
            set_field(self, option, _listed(option, getattr(self, option)))
        self._check_columns()
        self._check_names()
        self._check_leaks()
        self._check_placement()
        self._check_tables()

    def _check_names(self) -> None:
        seen: set[str] = set()
        for feature in self.all_features:
            if feature.name in seen:
                raise FeatureError(
                    f"got two features named {feature.name!r}; "
                    "give one of them another name (name=..., source=...)"
                )
            seen.add(feature.name)
        for option in ("wide", "deep", "item", "extra"):
            for name in getattr(self, option) or ():
                self._check_known(name, option)
        for name in self.training_only:
            self._check_known(name, "training_only")

    def _check_columns(self) -> None:
        """A label that is the weight or the group too would be told apart by itself."""
        labels = [*self.labels.values()]
        for option in ("weight", "group"):
            column = getattr(self, option)
            if column is not None and not is_name(column):
                raise FeatureError(f"got {option}={show_value(column)}, expected a column's name")
            if column in labels:
                raise FeatureError(
                    f"got {option}={column!r}, which is the label; name another column, or leave "
                    f"{option} out"
                )

    def _check_leaks(self) -> None:
        reserved = dict.fromkeys(self.labels.values(), "label")
        if self.weight is not None:
            reserved[self.weight] = "weight"
        for feature in self.all_features:
            for column in self._columns_of(feature):
                check(
                    column not in reserved,
                    feature.name,
                    f"its column {column!r} is the {reserved.get(column)}; "
                    "a model must not read what it is to predict: remove the feature",
                )

    def _columns_of(self, feature: Feature) -> list[str]:
        if isinstance(feature, Crossed):
            return [part for part in feature.parts if part not in self.by_name]
        if isinstance(feature, Categorical) and feature.weights is not None:
            return [feature.source, feature.weights]
        return [feature.source]

    def _check_known(self, name: str, option: str) -> None:
        if name not in self.by_name:
            raise FeatureError(
                f"got {name!r} in {option}, which is no feature's name; "
                f"{nearest(str(name), self.by_name)}"
            )

    def _check_placement(self) -> None:
        for feature in self.all_features:
            if isinstance(feature, Crossed):
                self._check_parts(feature)
        for name in self.extra:
            check(
                isinstance(self.by_name[name], Numeric), name, "only numeric features can be extra"
            )
        if not self.wide_names and not self.deep_names:
            raise FeatureError("got no feature in the wide or the deep part, expected at least one")

    def _check_parts(self, cross: Crossed) -> None:
        for part in cross.parts:
            feature = self.by_name.get(part)
            check(
                not isinstance(feature, Crossed),
                cross.name,
                f"its part {part!r} is itself a cross; name that cross's parts instead",
            )
            check(
                not isinstance(feature, Numeric),
                cross.name,
                f"its part {part!r} is numeric; cross a bucketized(..., source={part!r}) instead",
            )

    def _check_tables(self) -> None:
        taken = {f.name for f in self.all_features if not isinstance(f, Categorical)}
        for feature in self.all_features:
            if isinstance(feature, Crossed):
                taken.update(self._columns_of(feature))
        first: dict[str, Categorical] = {}
        for feature in self.all_features:
            if not isinstance(feature, Categorical):
                continue
            table = feature.table or feature.name
            check(
                table not in taken or feature.table is None,
                feature.name,
                f"got table={table!r}, which already names another feature or a column that a "
                "cross reads; choose another name",
            )
            other = first.setdefault(table, feature)
            for option in _TABLE_OPTIONS:
                check(
                    getattr(other, option) == getattr(feature, option),
                    feature.name,
                    f"shares table {table!r} with {other.name!r} but has another {option}; "
                    "make them equal",
                )

    @property
    def all_features(self) -> tuple[Feature, ...]:
        """The features in canonical order, typed."""
        return self.features  # type: ignore[return-value]

    @property
    def by_name(self) -> dict[str, Feature]:
        """The features by name."""
        return {feature.name: feature for feature in self.all_features}

    @property
    def labels(self) -> dict[str, str]:
        """Label columns by head; a single label's head is named ``""``."""
        if self.label is None:
            return {}
        if isinstance(self.label, str):
            return {"": self.label}
        if isinstance(self.label, Mapping):
            return dict(self.label)
        return {column: column for column in self.label}

    @property
    def wide_names(self) -> tuple[str, ...]:
        """Names of the features in the wide part."""
        if self.wide is not None:
            return tuple(self.wide)
        return tuple(f.name for f in self.all_features if not isinstance(f, Numeric))

    @property
    def deep_names(self) -> tuple[str, ...]:
        """Names of the features in the deep part."""
        if self.deep is not None:
            return tuple(self.deep)
        return tuple(
            f.name
            for f in self.all_features
            if isinstance(f, (Numeric, Categorical)) and f.name not in self.extra
        )

    def columns(self) -> list[str]:
        """Names of the columns the features read, each once; not label, weight and group."""
        names: dict[str, None] = {}
        for feature in self.all_features:
            names.update(dict.fromkeys(self._columns_of(feature)))
        return list(names)

    def replace(self, **changes: object) -> FeatureSpec:
        """Return a copy with some fields changed, as :func:`dataclasses.replace` does."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def to_toml(self) -> str:
        """Return the declaration as TOML, which :meth:`from_toml` reads to an equal spec."""
        return spec_to_toml(self)

    @classmethod
    def from_toml(cls, text: str) -> FeatureSpec:
        r"""Read a declaration from TOML: ``[features]``, and ``[data]`` for the label.

        Args:
            text: TOML; see the user guide for the keys.

        Raises:
            FeatureError: For an unknown key or name, with the nearest one.

        Example:
            >>> FeatureSpec.from_toml('[data]\nlabel = "y"\n[features]\nnumeric = ["age"]').labels
            {'': 'y'}
        """
        return spec_from_toml(text)


Side = Literal["query", "item", "both"]


def item_columns(spec: FeatureSpec) -> frozenset[str]:
    """Return the input columns that belong to the item: those that its features read."""
    named = [spec.by_name[name] for name in spec.item]
    return frozenset(
        column
        for feature in named
        if not isinstance(feature, Crossed)
        for column in _columns_through_parts(spec, feature)
    )


def feature_side(spec: FeatureSpec, name: str) -> Side:
    """Return whose the feature is: the query's, the item's, or both's (a cross that spans them)."""
    of_item = item_columns(spec)
    read = _columns_through_parts(spec, spec.by_name[name])
    if read <= of_item:
        return "item"
    return "both" if read & of_item or name in spec.item else "query"


def _columns_through_parts(spec: FeatureSpec, feature: Feature) -> frozenset[str]:
    if isinstance(feature, Crossed):
        parts = (spec.by_name.get(part) for part in feature.parts)
        found = [
            frozenset([name]) if part is None else _columns_through_parts(spec, part)
            for name, part in zip(feature.parts, parts, strict=True)
        ]
        return frozenset().union(*found)
    weights = feature.weights if isinstance(feature, Categorical) else None
    return frozenset([feature.source]) | (frozenset() if weights is None else {weights})


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
