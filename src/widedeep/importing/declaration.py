"""From feature columns to our features: a spec, and the schema that no data is needed for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from widedeep.data.fit_scans import plan_fit
from widedeep.errors import FeatureError, nearest
from widedeep.features import Feature, FeatureSpec
from widedeep.features.bucketized import Bucketized, bucketized
from widedeep.features.categorical import categorical
from widedeep.features.crossed import crossed
from widedeep.features.kind import KINDS
from widedeep.features.numbers import NumberSummary
from widedeep.features.numeric import Numeric, numeric
from widedeep.importing.columns import (
    CROSS_KEY,
    CountColumn,
    DenseColumn,
    IdColumn,
    NumberColumn,
    ParsedFeature,
    TableColumn,
    default_error,
)
from widedeep.importing.network import Network, WideColumn
from widedeep.schema import Schema

_SUFFIXES = ("_shared_embedding", "_embedding", "_indicator")
Key = tuple[IdColumn, int]  # With the rows of its table, where the column does not say their number


@dataclass(kw_only=True)
class _Uses:
    """Where a column of ids is used: in each table it becomes a feature of its own."""

    name: str
    rows: int
    tables: list[TableColumn] = field(default_factory=list)
    features: list[str] = field(default_factory=list)


class Declaration:
    """Makes features of a network's columns.

    Args:
        network: The network.
        shapes: Shape of each table and of each linear weight, by the operation that holds it.
        frozen: Operations that hold tables which are not trained.

    Attributes:
        inputs: The deep input's parts in TensorFlow's order, and the feature of each.
        wide: The linear columns, and the feature of each.
    """

    def __init__(
        self, network: Network, shapes: Mapping[str, tuple[int, ...]], frozen: Collection[str]
    ) -> None:
        self._shapes, self._frozen = shapes, frozen
        self._features: dict[str, Feature] = {}
        self._numbers: dict[NumberColumn, str] = {}
        self._uses: dict[Key, _Uses] = {}
        self._columns: dict[str, ParsedFeature] = {}  # What is read, by column of the data
        self._shared = _shared_tables(network)
        self._raw = _raw_parts(network)
        for name, column in network.deep:
            self._collect(name, column, deep=True)
        for wide in network.wide:
            self._collect(wide.name, wide.column, deep=False)
        for (ids, _), uses in list(self._uses.items()):
            if not uses.features:  # or else made as the part of a cross
                self._make(ids, uses)
        self.inputs = [self._input(name, column) for name, column in network.deep]
        self.wide = [self._wide(wide) for wide in network.wide]
        self.combiner = _combiner(network)

    def spec(
        self, labels: Sequence[str], weight: str | None, classes: Sequence[str]
    ) -> FeatureSpec:
        """Return the declaration.

        Args:
            labels: Columns of the labels.
            weight: Column of example weights.
            classes: Names of the classes, where they are text.
        """
        return FeatureSpec(
            features=list(self._features.values()),
            label=labels[0] if len(labels) == 1 else list(labels),
            weight=weight,
            label_vocabulary=tuple(classes) or None,
            wide=list(dict.fromkeys(name for name, _ in self.wide)),
            deep=list(dict.fromkeys(name for name, _ in self.inputs)),
        )

    # ---- what columns there are -----------------------------------------------------------------

    def _collect(self, name: str, column: DenseColumn, *, deep: bool) -> None:
        if isinstance(column, NumberColumn):
            if column not in self._numbers:
                self._numbers[column] = self._add_number(name, column)
            return
        uses = self._uses_of(column.column, self._rows(column), _base(name))
        if deep and isinstance(column, TableColumn):
            uses.tables.append(column)

    def _rows(self, column: TableColumn | CountColumn) -> int:
        if isinstance(column, CountColumn):
            column.column.check_part()
            return column.width
        return self._shapes[column.variable][0]

    def _uses_of(self, column: IdColumn, rows: int, name: str) -> _Uses:
        count = column.count(rows)
        if count != rows:
            raise FeatureError(
                f"feature column {name!r}: has {count:,} ids and a table of {rows:,} rows; the "
                "model is damaged, export it again"
            )
        key = (column, rows if column.kind == "identity" else 0)
        if key not in self._uses:
            self._uses[key] = _Uses(name=name, rows=rows)
        return self._uses[key]

    # ---- features -------------------------------------------------------------------------------

    def _free(self, name: str) -> str:
        number, free = 2, name
        while free in self._features:
            free, number = f"{name}_{number}", number + 1
        return free

    def _apart(self, name: str, column: IdColumn) -> str:
        """Return a name that no cross takes for the column of the data that it reads as it is."""
        source = column.source
        if name not in self._raw or source is None:
            return name
        enters_as_text = column.kind == "hashed" and source.is_text and not source.drops_empty
        return name if enters_as_text and column.weights is None else f"{name}_{column.kind}"

    def _add_number(self, name: str, column: NumberColumn) -> str:
        source = self._read(column.source)
        default = source.default
        if default is not None and len(set(default)) > 1:
            raise FeatureError(
                f"feature column {name!r}: has another default for each component, "
                f"{list(default)}; fill them in before the model, and train it with columns that "
                "have no default"
            )
        scaling: dict[str, Any] = {"transform": "none"}
        if not column.is_plain:
            scaling = {
                "transform": "standard",
                "shift": _one_or_all(column.shift, source.size or 1),
                "scale": _one_or_all(column.scale, source.size or 1),
            }
        name = self._free(source.key if source.key not in self._raw else f"{source.key}_number")
        (self._features[name],) = numeric(
            name,
            source=source.key,
            missing="mean" if default is None else default[0],
            size=source.size or 1,
            **scaling,
        )
        return name

    def _make(self, column: IdColumn, uses: _Uses) -> None:
        tables: Sequence[TableColumn | None] = uses.tables or [None]
        for table in tables:
            name = self._free(self._apart(uses.name, column))
            self._features[name] = self._feature(name, column, uses.rows, table)
            uses.features.append(name)

    def _feature(
        self, name: str, column: IdColumn, rows: int, table: TableColumn | None
    ) -> Feature:
        options: dict[str, Any] = {} if table is None else self._table_options(table)
        if column.kind == "crossed":
            if column.hash_key != CROSS_KEY:
                options["hash_key"] = _signed(column.hash_key)
            parts = [self._part(part) for part in column.parts]
            return crossed(*parts, name=name, hash_buckets=column.buckets, **options)
        assert column.source is not None
        source = self._read(column.source)
        if column.kind == "bucketized":
            if (source.size or 1) > 1:
                options["size"] = source.size
            else:
                options.pop("combiner", None)
            cuts = column.boundaries
            return bucketized(name, source=source.key, boundaries=cuts, **options)
        if table is not None and table.variable in self._shared:
            column.check_part()
            options["table"] = self._shared[table.variable]
        if column.weights is not None:
            options["weights"] = self._read(column.weights).key
        return self._categorical(name, column, rows, options)

    def _categorical(
        self, name: str, column: IdColumn, rows: int, options: dict[str, Any]
    ) -> Feature:
        assert column.source is not None
        if column.source.drops_empty:
            options["empty_as_null"] = True
        if column.kind == "hashed":
            options["hash_buckets"] = column.buckets
        elif column.kind == "identity":
            options["num_buckets"] = rows
        else:
            options["vocabulary"] = column.values
        default = column.default
        if column.kind == "vocabulary" and column.buckets:
            options["oov_buckets"] = column.buckets
        elif column.kind == "hashed":
            pass  # every value has a bucket
        elif default is None:
            options["oov"] = "drop"
        else:
            options["default_value"] = column.values[default] if column.values else default
        (feature,) = categorical(name, source=column.source.key, **options)
        return feature

    def _table_options(self, table: TableColumn) -> dict[str, Any]:
        embedding: dict[str, Any] = {}
        if table.variable in self._frozen:
            embedding["frozen"] = True
        elif table.max_norm is not None:
            embedding["max_norm"] = table.max_norm
        options: dict[str, Any] = {
            "embedding_dim": self._shapes[table.variable][1],
            "combiner": table.combiner,
        }
        return {**options, "embedding": embedding} if embedding else options

    def _part(self, part: IdColumn | ParsedFeature) -> Any:
        """Return what a cross calls a part: a feature, made for it if need be, or a column."""
        if isinstance(part, IdColumn):
            part.check_part()
        elif part.default is not None:
            raise default_error(part)
        if isinstance(part, ParsedFeature):
            return self._read(part).key
        matches = [uses for (column, _), uses in self._uses.items() if column == part]
        if matches and matches[0].features:
            return matches[0].features[0]
        name = self._free(_part_name(part))
        if part.kind == "identity" and not part.buckets and not matches:
            assert part.source is not None
            return self._read(part.source).key
        uses = matches[0] if matches else self._uses_of(part, part.count(0), name)
        self._make(part, uses)
        return uses.features[0]

    # ---- where they are -------------------------------------------------------------------------

    def _input(self, name: str, column: DenseColumn) -> tuple[str, DenseColumn]:
        if isinstance(column, NumberColumn):
            return self._numbers[column], column
        uses = self._uses_of(column.column, self._rows(column), name)
        if isinstance(column, TableColumn):
            return uses.features[uses.tables.index(column)], column
        if "indicator" not in KINDS:
            raise FeatureError(
                f"feature column {name!r}: is an indicator, which this version does not have"
            )
        free = self._free(name)
        self._features[free] = KINDS["indicator"].declare(free, {"source": uses.features[0]})
        return free, column

    def _wide(self, wide: WideColumn) -> tuple[str, WideColumn]:
        column = wide.column
        if isinstance(column, NumberColumn):
            return self._numbers[column], wide
        return self._uses_of(column.column, self._rows(column), wide.name).features[0], wide

    def notes(self) -> list[str]:
        """Return what is otherwise than in TensorFlow, one sentence each."""
        notes = []
        for column, _ in self._uses:
            if column.source is not None and column.missing is not None:
                notes.append(
                    f"column {column.source.key!r}: a row without it has the weights of "
                    "TensorFlow's default to begin with, and learns its own from then on"
                )
            if column.source is not None and column.source.drops_minus_one:
                notes.append(
                    f"column {column.source.key!r}: TensorFlow takes -1 of it for no value; it is "
                    "an integer like others here: leave it out of the row instead"
                )
        return list(dict.fromkeys(notes))

    def _read(self, source: ParsedFeature) -> ParsedFeature:
        """Note that a column is read, in one way alone."""
        known = self._columns.setdefault(source.key, source)
        if (known.dtype, known.size) != (source.dtype, source.size):
            raise FeatureError(
                f"column {source.key!r}: is read in two ways, of types {known.dtype} and "
                f"{source.dtype}; give one of them another key, and train the model again"
            )
        return source

    def lists(
        self, named: Collection[str], rows: Sequence[Mapping[str, Sequence[Any]]]
    ) -> set[str]:
        """Return the columns of lists: those named, and those that have no or many values in rows.

        Args:
            named: Columns.
            rows: Rows by column.
        """
        any_length = {key for key, source in self._columns.items() if source.size is None}
        for name in named:
            if name not in any_length:
                raise FeatureError(
                    f"got the list {name!r}, which is no column of values; "
                    f"{nearest(name, any_length)}"
                )
        lists = set(named)
        lists |= {key for key in any_length for row in rows if len(row.get(key, "1")) != 1}
        uses = [column for column, _ in self._uses if column.weights and column.source]
        for column in uses:
            pair = {column.weights.key, column.source.key}  # type: ignore[union-attr]
            lists |= pair if pair & lists else set()
        return lists

    def fit(self, spec: FeatureSpec, lists: Collection[str], label_type: pa.DataType) -> Schema:
        """Return the schema: no data is needed, for nothing is to be learned of it.

        Args:
            spec: What :meth:`spec` returned.
            lists: Columns that hold a list of any length in each row.
            label_type: Type of the labels' columns.
        """
        fields = {key: _arrow_type(one, key in lists) for key, one in self._columns.items()}
        fields.update(dict.fromkeys(spec.labels.values(), label_type))
        fields.update(dict.fromkeys(spec.weights, pa.float64()))
        return schema_without_data(spec, fields)


def schema_without_data(spec: FeatureSpec, types: Mapping[str, pa.DataType]) -> Schema:
    """Return the schema of a spec that leaves nothing to be learned.

    Args:
        spec: The declaration.
        types: Type of each column that it reads.

    Raises:
        FeatureError: If a vocabulary, boundaries or a scale are to be learned.
    """
    columns = [*spec.columns(), *spec.labels.values(), *spec.weights]
    plan = plan_fit(spec, pa.schema([(name, types[name]) for name in dict.fromkeys(columns)]))
    learned = [f.name for f in spec.all_features if _learns(f)]
    learned += [use.reader for uses in plan.learned for use in uses]
    if learned:
        raise FeatureError(
            f"feature {learned[0]!r}: leaves what its ids stand for, or its scale, to be learned "
            "from data; give it as the estimator had it (vocabulary=, hash_buckets=, num_buckets=, "
            "boundaries=, transform='none', or shift= and scale=)"
        )
    nothing = NumberSummary(())
    numerics, boundaries = {}, {}
    for feature in spec.all_features:
        numbers = feature.number_input
        if numbers is None:
            continue
        column = plan.types[numbers.column]
        if feature.is_bucketed:
            boundaries[feature.name] = feature.fit_boundaries(nothing, column)
        if feature.learns_numbers:
            numerics[feature.name] = feature.fit_numbers([nothing] * numbers.size, column)
    classes = {head: tuple(spec.label_vocabulary or ()) for head in spec.labels}
    return Schema(
        spec=spec,
        columns=plan.types,
        vocabularies=plan.vocabularies,
        boundaries=boundaries,
        numerics=numerics,
        classes=classes if spec.label_vocabulary else {},
        missing=dict.fromkeys(plan.types, 0.0),
        notes=("carried over from TensorFlow; no data was read",),
    )


def _learns(feature: Feature) -> bool:
    if isinstance(feature, Numeric):
        return feature.has_cut_points or not (
            feature.transform == "none" or feature.has_given_scaling
        )
    if isinstance(feature, Bucketized):
        return feature.boundaries is None
    return feature.kind == "crossed" and not feature.is_hashed


def _shared_tables(network: Network) -> dict[str, str]:
    """Return the tables that several columns share, by the operation that holds them."""
    variables = [c.variable for _, c in network.deep if isinstance(c, TableColumn)]
    return {
        # TensorFlow 1: .../viewed_bought_shared_embedding/embedding_weights/part_0
        variable: re.sub(r"(/embedding_weights)?(/part_\d+)?$", "", variable).rpartition("/")[2]
        for variable in variables
        if variables.count(variable) > 1
    }


def _raw_parts(network: Network) -> set[str]:
    """Return the keys that crosses read as they are."""
    columns = [*(c for _, c in network.deep), *(wide.column for wide in network.wide)]
    ids = [c.column for c in columns if not isinstance(c, NumberColumn)]
    parts = [part for column in ids for part in column.parts]
    return {part.key for part in parts if isinstance(part, ParsedFeature)}


def _combiner(network: Network) -> str:
    """Return how values are combined in the linear part."""
    combiners: dict[str, str] = {}
    for wide in network.wide:
        if isinstance(wide.column, TableColumn):
            combiners.setdefault(wide.column.combiner, wide.name)
        elif isinstance(wide.column, CountColumn):
            combiners.setdefault("sum", wide.name)  # a weight per count is one per occurrence
    if len(combiners) > 1:
        (first, one), (second, other) = list(combiners.items())[:2]
        raise FeatureError(
            f"feature columns {one!r} and {other!r}: are combined by {first!r} and {second!r} in "
            "the linear part, which has one combiner; give indicators as categorical columns, and "
            "train the model again"
        )
    return next(iter(combiners), "sum")


def _base(name: str) -> str:
    """Return the name of the categorical column that a dense column is made of."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _part_name(part: IdColumn) -> str:
    key = "cross" if part.source is None else part.source.key
    return f"{key}_bucketized" if part.kind == "bucketized" else key


def _arrow_type(source: ParsedFeature, is_list: bool) -> pa.DataType:
    item = pa.string() if source.is_text else pa.int64() if source.is_integer else pa.float32()
    several = is_list if source.size is None else source.size > 1
    return pa.list_(item) if several else item


def _one_or_all(values: tuple[float, ...], size: int) -> float | tuple[float, ...]:
    """Return one number for all components, or one each."""
    if len(values) == 1:
        return values[0]
    return values if len(values) == size else values * size


def _signed(key: int) -> int:
    return key - 2**64 if key >= 2**63 else key
