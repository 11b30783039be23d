"""FeatureSpec: the features of a model, its label, and where each feature goes."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from widedeep.errors import FeatureError, nearest, show_value
from widedeep.features.kind import KINDS, Feature, check, is_name, load_installed_kinds
from widedeep.features.toml import toml_table, toml_text
from widedeep.options import is_unicode

_PLACEMENT_KEYS = ("wide", "deep", "item", "extra", "training_only")
DATA_KEYS = ("label", "weight", "head_weights", "group", "label_vocabulary", "null_values")


def _flatten(features: object) -> list[Feature]:
    """One feature, or features in any nesting of lists, in their order."""
    if isinstance(features, Feature):
        return [features]
    # A set has no order, and one of text would be another model in every process.
    ordered = isinstance(features, Iterable) and not isinstance(
        features, (str, bytes, Mapping, Set)
    )
    if not ordered:
        raise FeatureError(
            f"got {show_value(features)} ({type(features).__name__}) in features=[...], "
            "expected wd.numeric(...), wd.categorical(...), wd.bucketized(...), "
            "wd.crossed(...) or wd.indicator(...), or a list of them"
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


def null_words(values: object) -> tuple[str, ...]:
    """Return words that stand for a missing value, each once."""
    listed = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    words: tuple[object, ...] = tuple(values) if listed else ()  # type: ignore[arg-type]
    wrong = [word for word in words if not isinstance(word, str) or not is_unicode(word)]
    if not listed or wrong:
        got = show_value(wrong[0] if wrong else values)
        where = " in null_values" if wrong else " for null_values"
        raise FeatureError(f'got {got}{where}, expected a list of texts such as ["NA", "-999"]')
    return tuple(dict.fromkeys(map(str, words)))


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

    Features are kept in one canonical order: numbers, buckets, categoricals, crosses, indicators.

    Args:
        features: Features; nested lists are flattened.
        label: The label's column, a list of columns (several labels) or ``{head: column}``. With
            several labels, a row whose label is null teaches the other heads alone. A column of
            lists is a label of any number of classes.
        weight: A column of example weights, at least 0.
        head_weights: By head, a column of weights for its loss alone: ``{"price": "units"}``. It
            may be null where the label is.
        group: A column that names the query (user, request) for grouped metrics.
        label_vocabulary: The classes in order, for labels that are strings; learned if not given.
        null_values: Words that stand for a missing value in CSV files, such as ``["NA", "?"]``, in
            any column, between quotes or not. An empty field is missing without being named;
            ``""`` takes an empty text between quotes for missing too. Data of other formats and
            requests of a server have nulls, and their texts are values.
        wide: Names of the features of the wide part. Default: categoricals, buckets and crosses.
        deep: Names of the features of the deep part. Default: numbers, categoricals and indicators,
            each in the place of its source.
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
    head_weights: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    label_vocabulary: Sequence[str] | None = None
    null_values: Sequence[str] = ()
    wide: Sequence[str] | None = None
    deep: Sequence[str] | None = None
    item: Sequence[str] = ()
    training_only: Mapping[str, str | int | float] = field(default_factory=dict)
    extra: Sequence[str] = ()

    def __post_init__(self) -> None:
        flat = _flatten(self.features)
        ordered = sorted(flat, key=lambda feature: (feature.order, feature.kind))
        set_field = object.__setattr__
        set_field(self, "features", tuple(ordered))
        set_field(self, "training_only", _fixed_values(self.training_only))
        set_field(self, "label", _plain_label(self.label))
        for option in ("wide", "deep", "item", "extra", "label_vocabulary"):
            set_field(self, option, _listed(option, getattr(self, option)))
        set_field(self, "null_values", null_words(self.null_values))
        self._check_columns()
        self._check_names()
        self._check_leaks()
        self._check_placement()
        self._check_tables()
        self._check_parallel()

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
        served = (f for f in self.all_features if f.name not in self.training_only)
        if self.training_only and not any(self._columns_of(feature) for feature in served):
            raise FeatureError(
                f"got training_only={show_value(self.training_only)}, which fixes every feature: "
                "all rows would be served one score; leave out at least one of them"
            )

    def _check_columns(self) -> None:
        """Refuse a label that is the weight or the group too: it would predict itself."""
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
        for word in self.null_values:
            if word in (self.label_vocabulary or ()):
                raise FeatureError(
                    f"got the class {word!r} of label_vocabulary in null_values too: no row of a "
                    "CSV file would have it; leave it out of one of them"
                )
        if not isinstance(self.head_weights, Mapping):
            raise FeatureError(
                f"got head_weights={show_value(self.head_weights)}, expected {{head: column}}"
            )
        object.__setattr__(self, "head_weights", dict(self.head_weights))
        for head, column in self.head_weights.items():
            if head not in self.labels:
                raise FeatureError(
                    f"got head_weights for {head!r}, which is no label; "
                    f"{nearest(str(head), self.labels)}"
                )
            if not is_name(column) or column in labels:
                raise FeatureError(
                    f"got head_weights={show_value(self.head_weights)}, expected a column of "
                    f"weights for {head!r} that is no label"
                )

    def _check_leaks(self) -> None:
        reserved = dict.fromkeys(self.labels.values(), "label")
        for column in self.weights:
            reserved[column] = "weight"
        for feature in self.all_features:
            for column in self._columns_of(feature):
                feature.require(
                    column not in reserved,
                    f"its column {column!r} is the {reserved.get(column)}; "
                    "a model must not read what it is to predict: remove the feature",
                )

    def _columns_of(self, feature: Feature) -> list[str]:
        raw_parts = (part_name for part_name in feature.part_names if part_name not in self.by_name)
        return [*feature.input_columns, *raw_parts]

    def _check_known(self, name: str, option: str) -> None:
        if name not in self.by_name:
            raise FeatureError(
                f"got {name!r} in {option}, which is no feature's name; "
                f"{nearest(str(name), self.by_name)}"
            )

    def _check_placement(self) -> None:
        for feature in self.all_features:
            for part_name in feature.part_names:
                refusal = (
                    self.by_name[part_name].refusal_as_part() if part_name in self.by_name else ""
                )
                feature.require(not refusal, f"its part {part_name!r} {refusal}")
                composed = part_name in self.by_name and self.by_name[part_name].is_composed
                feature.require(
                    feature.is_hashed or not composed,
                    f"its part {part_name!r} has two ids for each value (compose); give the cross "
                    "hash_buckets",
                )
        for name in self.extra:
            feature = self.by_name[name]
            check(feature.is_dense, name, "only numeric features can be extra")
            is_plain = feature.periodic_embedding is None
            check(is_plain, name, "an extra number has no embedding; leave embedding out")
        for feature in self.all_features:
            if feature.source_feature is not None:
                self._check_source(feature, feature.source_feature)
        if not self.wide_names and not self.deep_names:
            raise FeatureError("got no feature in the wide or the deep part, expected at least one")

    def _check_source(self, feature: Feature, source: str) -> None:
        """Refuse an indicator of what has no countable ids, and one in the wide part."""
        self._check_known(source, f"source of feature {feature.name!r}")
        counted = self.by_name[source]
        feature.require(
            not (counted.is_dense or counted.is_weighted_number or counted.is_composed),
            f"its source {source!r} is {counted.kind_text}, whose ids are no values to count; name "
            "a categorical, bucketized or crossed feature",
        )
        feature.require(
            feature.name not in self.wide_names,
            f"counts values for the deep part and is in wide; name its source {source!r} there, "
            "which has a weight per value",
        )

    def _check_tables(self) -> None:
        """Refuse tables of two meanings, and features that share a table but not its options."""
        names = {f.name for f in self.all_features if not f.table_options}
        names |= {part_name for f in self.all_features for part_name in f.part_names} - set(
            self.by_name
        )
        first: dict[str, Feature] = {}
        for feature in self.all_features:
            if not feature.table_options:
                continue
            table = feature.table_name
            feature.require(
                table not in names or table == feature.name,
                f"got table={table!r}, which already names another feature or a column that a "
                "cross reads; choose another name",
            )
            other = first.setdefault(table, feature)
            for option in feature.table_options:
                feature.require(
                    getattr(other, option, None) == getattr(feature, option),
                    f"shares table {table!r} with {other.name!r} but has another {option}; "
                    "make them equal",
                )

    def _check_parallel(self) -> None:
        """Refuse parallel sequences that would not keep the same events."""
        for feature in self.all_features:
            if feature.parallel_to is None:
                continue
            self._check_known(feature.parallel_to, f"parallel of feature {feature.name!r}")
            other = self.by_name[feature.parallel_to]
            feature.require(
                other is not feature and other.parallel_to is None,
                f"got parallel={other.name!r}, expected a sequence that stands alone; name the one "
                "that all parallel sequences follow",
            )
            for sequence in (feature, other):
                sequence.require(
                    sequence.deep_combiner is None and sequence.unseen_rule != "drop",
                    "keeps no place for each of its values, and its sequence has a parallel one "
                    f"({feature.name!r}, {other.name!r}); set combiner=None and oov='id'",
                )
            bounds = {
                "maxlen": (feature.most_values, other.most_values),
                "keep": (feature.end_read, other.end_read),
            }
            for option, (own, others) in bounds.items():
                feature.require(
                    own == others,
                    f"got {option}={own!r}, but {option}={others!r} in the parallel sequence "
                    f"{other.name!r}; make them equal",
                )
            sides = [name in self.item for name in (feature.name, other.name)]
            feature.require(
                sides[0] == sides[1],
                f"is parallel to {other.name!r}, and one of them belongs to the item; name both in "
                "item=[...], or neither",
            )

    @cached_property
    def parallel_names(self) -> frozenset[str]:
        """The sequences that have parallel ones: in these a null keeps its place."""
        pairs = ((f.name, f.parallel_to) for f in self.all_features if f.parallel_to is not None)
        return frozenset(name for pair in pairs for name in pair)

    def parallel_columns(self, name: str) -> frozenset[str]:
        """Return the columns whose lists have the same lengths as those of a feature's column."""
        feature = self.by_name[name]
        first = feature.parallel_to or name
        columns = (f.main_column for f in self.all_features if first in (f.name, f.parallel_to))
        return frozenset(c for c in columns if c is not None and c != feature.main_column)

    @property
    def all_features(self) -> tuple[Feature, ...]:
        """The features in canonical order, typed."""
        return self.features  # type: ignore[return-value]

    @cached_property
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
    def weights(self) -> list[str]:
        """Columns of weights, each once."""
        return list(
            dict.fromkeys([*([self.weight] if self.weight else []), *self.head_weights.values()])
        )

    @property
    def wide_names(self) -> tuple[str, ...]:
        """Names of the features in the wide part."""
        if self.wide is not None:
            return tuple(self.wide)
        return tuple(f.name for f in self.all_features if f.wide_by_default)

    @property
    def deep_names(self) -> tuple[str, ...]:
        """Names of the features in the deep part."""
        if self.deep is not None:
            return tuple(self.deep)
        counted = {feature.source_feature for feature in self.all_features}
        return tuple(
            f.name
            for f in self.all_features
            if f.deep_by_default and f.name not in self.extra and f.name not in counted
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
        return toml_text(spec_to_table(self))

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
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise FeatureError(f"got text that is no TOML: {error}") from error
        if "features" not in table:
            raise FeatureError("got TOML without a [features] table; add one")
        return spec_from_table(table.get("data", {}), table["features"])


Side = Literal["query", "item", "both"]


def item_columns(spec: FeatureSpec) -> frozenset[str]:
    """Return the input columns that belong to the item: those that its features read."""

    def own_columns(name: str) -> tuple[str, ...]:
        source = spec.by_name[name].source_feature
        return spec.by_name[name].input_columns if source is None else own_columns(source)

    return frozenset(column for name in spec.item for column in own_columns(name))


def feature_side(spec: FeatureSpec, name: str) -> Side:
    """Return the side that a feature belongs to; ``"both"`` for a cross that spans them."""
    of_item = item_columns(spec)
    columns = all_columns(spec, name)
    if columns <= of_item:
        return "item"
    return "both" if columns & of_item or name in spec.item else "query"


def all_columns(spec: FeatureSpec, name: str) -> frozenset[str]:
    """Return the columns that a feature or raw column reads, through parts and sources."""
    feature = spec.by_name.get(name)
    if feature is None:
        return frozenset([name])
    source = () if feature.source_feature is None else (feature.source_feature,)
    return frozenset(feature.input_columns).union(
        *(all_columns(spec, part_name) for part_name in (*feature.part_names, *source))
    )


def _kinds() -> list[type[Feature]]:
    """Return all kinds in the order of their features in a spec."""
    return sorted(KINDS.values(), key=lambda kind: (kind.order, kind.kind))


def _feature_keys() -> list[str]:
    """Return the keys of ``[features]`` as written: what may become a table of its own is last."""
    lists = [kind.kind for kind in _kinds() if kind.toml_form != "table"]
    tables = [kind.kind for kind in _kinds() if kind.toml_form == "table"]
    return [*lists, *_PLACEMENT_KEYS, *tables, "options"]


def spec_to_table(spec: FeatureSpec) -> dict[str, dict[str, object]]:
    """Return the ``[data]`` and ``[features]`` tables of a spec."""
    features: dict[str, object] = {
        "item": list(spec.item),
        "extra": list(spec.extra),
        "training_only": dict(spec.training_only),
        "options": {
            f.name: f.changed_options()
            for f in spec.all_features
            if f.toml_form == "names" and f.changed_options()
        },
    }
    for kind in _kinds():
        features[kind.kind] = kind.to_toml([f for f in spec.all_features if type(f) is kind])
    features = {key: value for key, value in features.items() if value}
    # An empty placement is not the default one, and is written.
    for key, names in (("wide", spec.wide), ("deep", spec.deep)):
        if names is not None:
            features[key] = list(names)
    data = {key: getattr(spec, key) for key in DATA_KEYS if getattr(spec, key) not in (None, {})}
    if not data["null_values"]:
        del data["null_values"]
    return {"data": data, "features": {k: features[k] for k in _feature_keys() if k in features}}


def spec_from_table(data: Mapping[str, Any], features: Mapping[str, Any]) -> FeatureSpec:
    """Build a spec from the ``[data]`` keys it owns and the ``[features]`` table."""
    if not set(features) <= set(_feature_keys()):
        load_installed_kinds()
    keys = _feature_keys()
    for key in features:
        if key not in keys:
            raise FeatureError(f"got the unknown key {key!r} in [features]; {nearest(key, keys)}")
    options = dict(toml_table(features.get("options", {}), "options"))
    declared: list[Feature] = []
    for kind in _kinds():
        if kind.kind in features:
            declared += kind.from_toml(features[kind.kind], options)
    if options:
        name = next(iter(options))
        listed = [kind.kind for kind in _kinds() if kind.toml_form == "names"]
        names = [feature.name for feature in declared if feature.toml_form == "names"]
        raise FeatureError(
            f"got options for {name!r}, which is no {' or '.join(listed)} feature; "
            f"{nearest(name, names)}"
        )
    placement = {key: features[key] for key in _PLACEMENT_KEYS if key in features}
    owned = {key: data[key] for key in DATA_KEYS if key in data}
    return FeatureSpec(features=declared, **owned, **placement)
