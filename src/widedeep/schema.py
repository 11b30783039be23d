"""Schema: a spec and all that was learned from data for it. A value object with a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.errors import ConfigError, FeatureError, SchemaError, nearest
from widedeep.features import Feature, FeatureSpec
from widedeep.features.embedding import DEFAULT, EmbeddingOptions
from widedeep.features.kind import Combiner
from widedeep.features.learned import (
    FIRST_KNOWN_ID,
    ColumnType,
    ColumnTypes,
    NumericFit,
    Vocabulary,
    text_buffers,
)
from widedeep.features.spec import spec_from_table, spec_to_table
from widedeep.files import map_tensors, read_metadata, write_tensors
from widedeep.kernels import integer_index, text_index
from widedeep.options import check_value
from widedeep.page import framed_page, note, table

__all__ = ["ColumnType", "NumericFit", "Schema", "Slot", "Vocabulary"]

# Format 1 knew no storage of columns; a schema without any is still written so.
SCHEMA_FORMAT = 2
_COUNTS = "counts/"
# Statistics of the training data, which turn no row into numbers.
_TAIL = "tail/"
_NOT_FINGERPRINTED = (_COUNTS, "profile_cuts/", "profile_counts/", _TAIL)
# Hash tables of vocabularies: what look-ups build from the values. Another hash needs another name.
_INDEX = "index/"
INDEXED_VALUES = 1 << 18
"""Fewest values of a vocabulary whose index is saved. That of a smaller one takes 8 MiB at most and
is built in each process: there it lies on huge pages, which look-ups like better than a file's."""
_DAMAGED = (AttributeError, ConfigError, FeatureError, KeyError, TypeError, ValueError)
# What a schema file says beside its tensors.
_FACTS: Mapping[str, Any] = {
    "rows": int,
    "missing": Mapping[str, float],
    "label_means": Mapping[str, float],
    "quantile_rows": int,
    "notes": list[str],
}
_LATER_FACTS = ("label_quantiles", "class_rates")  # Earlier versions did not write them


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One feature's place among the ids of a Batch.

    Args:
        name: The feature's name.
        kind: The feature's kind: ``"categorical"``, ``"bucketized"``, ``"crossed"``, ``"numeric"``
            or one's own.
        size: Ids run from 0 to ``size - 1``.
        table: Logical embedding table; the feature's name unless shared.
        combiner: In the deep part; None keeps the sequence.
        embedding_dim: Declared width, or None for the model's default.
        wide: True if in the wide part.
        deep: True if embedded in the deep part.
        is_number: True for a number whose ids have weights by its value: in the wide part id 2 +
            component with the transformed value, or the two cut points beside it.
        is_value: True for a feature that reads a column of categories.
        maxlen: Most ids of a list; None for any number.
        embedding: How its rows start and are trained.
    """

    name: str
    kind: str
    size: int
    table: str
    combiner: Combiner | None
    embedding_dim: int | None
    wide: bool
    deep: bool
    is_number: bool = False
    is_value: bool = False
    maxlen: int | None = None
    embedding: EmbeddingOptions = DEFAULT

    def wide_combiner(self, combiner: str) -> str:
        """Return how its wide weights are combined where a model says ``combiner``.

        A combiner counts sparse values; divided by itself, a number would be 1 whatever it is.
        """
        return "sum" if self.is_number else combiner


@dataclass(frozen=True, kw_only=True, eq=False)
class Schema:
    """A spec with its vocabularies, quantiles and column types: all that turns rows into ids.

    Made by :func:`widedeep.fit_schema`. Two schemas are equal if their fingerprints are, and the
    order of their labels.

    Args:
        spec: The declaration.
        columns: Logical type of every input column (features, label, weight, group).
        vocabularies: By table name for categoricals, by feature name for crosses, by column name
            for raw columns that only crosses read.
        boundaries: Cut points by bucketized feature.
        numerics: What was learned by numeric feature.
        classes: Label classes by head, for labels with a vocabulary.
        rows: Rows of the data it was fitted on.
        missing: Share of nulls by column.
        label_means: Mean label by head, for numeric labels.
        label_quantiles: Labels at equal steps of their distribution by head, for labels that are
            more than 0 and 1.
        class_rates: Fraction of the rows that have each class by head, for lists of classes.
        quantile_rows: Rows the quantiles are exact on: all of them, or a seeded sample.
        notes: What a person should know about the fit, one sentence each.
        history: By column, how a join computes it from earlier events: the arguments of
            :class:`widedeep.join.History`, and the logs' delays.
    """

    spec: FeatureSpec
    columns: Mapping[str, ColumnType]
    vocabularies: Mapping[str, Vocabulary]
    boundaries: Mapping[str, NDArray[np.float64]]
    numerics: Mapping[str, NumericFit]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: int = 0
    missing: Mapping[str, float] = field(default_factory=dict)
    label_means: Mapping[str, float] = field(default_factory=dict)
    label_quantiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    class_rates: Mapping[str, Sequence[float]] = field(default_factory=dict)
    quantile_rows: int = 0
    notes: tuple[str, ...] = ()
    history: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The features that have ids, in the order of a Batch's cells."""
        slots = []
        for feature in self.spec.all_features:
            wide = feature.name in self.spec.wide_names
            deep = feature.name in self.spec.deep_names and not feature.is_dense
            if wide or deep:
                slots.append(
                    Slot(
                        name=feature.name,
                        kind=feature.kind,
                        size=self.id_count(feature.name),
                        table=feature.table_name,
                        combiner=feature.deep_combiner,
                        embedding_dim=feature.deep_width,
                        wide=wide,
                        deep=deep,
                        is_number=feature.is_weighted_number,
                        is_value=feature.value_input is not None,
                        maxlen=feature.most_values,
                        embedding=feature.embedding_options,
                    )
                )
        return tuple(slots)

    @cached_property
    def dense_layout(self) -> dict[str, slice]:
        """Columns of ``dense_BK`` by feature of numbers, those of :attr:`FeatureSpec.extra` too.

        A number of size s with ``missing="indicator"`` fills 2 s columns: s values, then s null
        flags. An indicator feature fills one per known value of its source.
        """
        layout, start = {}, 0
        for feature in self.spec.all_features:
            if feature.is_dense:
                width = feature.dense_columns(self)
                layout[feature.name] = slice(start, start + width)
                start += width
        return layout

    @property
    def n_dense(self) -> int:
        """K, the number of dense columns of a Batch."""
        return sum(feature.dense_columns(self) for feature in self.spec.all_features)

    def is_multilabel(self, head: str) -> bool:
        """Tell whether a head's label is a column of lists: any number of classes a row."""
        column = self.columns.get(self.spec.labels.get(head, ""))
        return column is not None and column.nested

    @cached_property
    def label_layout(self) -> dict[str, slice]:
        """Columns of ``labels_BL`` by head: one, or one a class for a column of lists."""
        layout, start = {}, 0
        for head in self.spec.labels:
            width = len(self.classes[head]) if self.is_multilabel(head) else 1
            layout[head] = slice(start, start + width)
            start += width
        return layout

    @cached_property
    def weight_columns(self) -> dict[str, int]:
        """Column of ``labels_BL`` with the weights of a head, for heads with weights of their own.

        They follow the labels.
        """
        first = sum(columns.stop - columns.start for columns in self.label_layout.values())
        return {head: first + index for index, head in enumerate(self.spec.head_weights)}

    def input_types(self) -> ColumnTypes:
        """Return what the columns hold, for files that do not say it (CSV).

        A column that is read as numbers alone holds numbers, whole ones or not.
        """
        kinds = {name: column.arrow() for name, column in self.columns.items()}
        types = ColumnTypes(kinds, self.spec.null_values)
        features = self.spec.all_features
        numbers = {f.number_input.column for f in features if f.number_input is not None}
        values = {f.value_input.column for f in features if f.value_input is not None}
        values.update(part_name for feature in features for part_name in feature.part_names)
        for column in numbers - values:
            if types.get(column) == pa.int64():
                types[column] = pa.float64()
        return types

    def vocabulary_key(self, name: str) -> str:
        """Return the key in :attr:`vocabularies` of a feature or of a cross's raw column."""
        feature = self.spec.by_name.get(name)
        return name if feature is None else feature.table_name

    def id_count(self, name: str) -> int:
        """Return how many ids a feature has: the two reserved ones, OOV buckets, and known values.

        Args:
            name: A feature's name, or a raw column's that a cross reads.

        Raises:
            SchemaError: If there is no such feature.
        """
        feature = self.spec.by_name.get(name)
        try:
            n_known = len(self.vocabularies[name]) if feature is None else feature.known_ids(self)
        except KeyError:
            names = [f.name for f in self.spec.all_features]
            raise SchemaError(
                f"got {name!r}, which is no feature of the schema; {nearest(name, names)}"
            ) from None
        return FIRST_KNOWN_ID + n_known

    def describe_id(self, name: str, id_: int) -> str:
        """Return what an id of a feature stands for: a value, a bucket, the parts of a cross.

        Args:
            name: A feature's name, or a raw column's that a cross reads.
            id_: A feature-local id.

        Raises:
            SchemaError: If there is no such feature or id.
        """
        if not 0 <= id_ < self.id_count(name):
            raise SchemaError(
                f"feature {name!r}: got id {id_}, expected 0 <= id < {self.id_count(name)}"
            )
        if id_ == 0:
            return "<unseen>"
        if id_ == 1:
            return "<missing>"
        feature = self.spec.by_name.get(name)
        if feature is None:
            return str(self.vocabularies[name].value(id_ - FIRST_KNOWN_ID))
        return feature.describe(self, id_ - FIRST_KNOWN_ID)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that turns rows into ids and numbers."""
        digest = hashlib.sha256()
        digest.update(json.dumps(self._identity(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            if not name.startswith(_NOT_FINGERPRINTED):
                _update(digest, name, tensor)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether both turn rows into the same arrays; the order of the labels counts too."""
        if not isinstance(other, Schema) or list(self.spec.labels) != list(other.spec.labels):
            return False
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def _identity(self) -> dict[str, Any]:
        history = {"history": {name: dict(definition) for name, definition in self.history.items()}}
        return {
            **(history if self.history else {}),
            "format": SCHEMA_FORMAT if any(kind.storage for kind in self.columns.values()) else 1,
            "spec": spec_to_table(self.spec),
            "columns": {name: kind.to_json() for name, kind in self.columns.items()},
            "classes": {head: list(names) for head, names in self.classes.items()},
        }

    def _tensors(self) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        for key, vocabulary in self.vocabularies.items():
            tensors.update(_vocabulary_tensors(vocabulary, key))
            if vocabulary.tail is not None:
                tail = _vocabulary_tensors(vocabulary.tail, key)
                tensors.update({_TAIL + name: array for name, array in tail.items()})
        for name, cuts in self.boundaries.items():
            tensors[f"boundaries/{name}"] = cuts
        for name, fit in self.numerics.items():
            for component, cuts in enumerate(fit.boundaries):
                tensors[f"quantiles/{component}/{name}"] = cuts
            for component, (cuts, counts) in enumerate(fit.profile):
                tensors[f"profile_cuts/{component}/{name}"] = cuts
                tensors[f"profile_counts/{component}/{name}"] = counts
            for statistic in ("shift", "scale", "fill", "minimum", "maximum", "mean"):
                tensors[f"{statistic}/{name}"] = getattr(fit, statistic)
        return tensors

    def without_tails(self) -> Schema:
        """Return the schema without the counts of values that its vocabularies leave out."""
        vocabularies = {
            key: replace(vocabulary, tail=None) for key, vocabulary in self.vocabularies.items()
        }
        return replace(self, vocabularies=vocabularies)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schema to one file, which :meth:`load` reads back to an equal schema.

        Args:
            path: The file; by convention ``schema.safetensors``.

        Raises:
            SchemaError: If it cannot be written (a full disk, no permission, no such folder); a
                file that was there is as it was.
        """
        try:
            self.write(path)
        except OSError as error:
            raise SchemaError(
                f"{path}: cannot write the schema ({error.strerror or error}); make room, or name "
                "a file in a folder that is there and may be written; nothing half-written is left"
            ) from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the schema as :meth:`save` does, but raise ``OSError`` as it is.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        facts = {name: _plain(getattr(self, name)) for name in _FACTS}
        facts["dropped"] = {key: v.dropped for key, v in self.vocabularies.items()}
        facts |= {name: _plain(v) for name in _LATER_FACTS if (v := getattr(self, name))}
        tails = {k: v.tail.dropped for k, v in self.vocabularies.items() if v.tail is not None}
        if tails:
            facts["tails"] = tails
        tensors = self._tensors()
        metadata = {
            "schema": json.dumps(self._identity()),
            "facts": json.dumps(facts),
            "fingerprint": self.fingerprint,
        }
        metadata["facts_sha256"] = _facts_digest(metadata["facts"], tensors)
        indices = self._indices()
        if indices:
            metadata["index_sha256"] = _index_digest(indices)
        write_tensors(path, {**tensors, **indices}, metadata)

    def _indices(self) -> dict[str, NDArray[Any]]:
        """Return the hash tables of large vocabularies, built where none was mapped."""
        return {
            _INDEX + key: _built_index(vocabulary) if vocabulary.index is None else vocabulary.index
            for key, vocabulary in self.vocabularies.items()
            if len(vocabulary) >= INDEXED_VALUES and np.ndim(vocabulary.values) == 1
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schema:
        """Read a schema; vocabularies are mapped from the file.

        Raises:
            SchemaError: If the file is of another format version or its contents do not match its
                fingerprint.
            DataError: If the file is damaged.
        """
        metadata = read_metadata(path)
        if "schema" not in metadata:
            raise SchemaError(f"{path}: got a safetensors file that holds no schema")
        try:
            return cls._read(path, metadata)
        except _DAMAGED as error:
            raise SchemaError(
                f"{path}: got contents that make no schema ({error}); the file is damaged"
            ) from error

    @classmethod
    def _read(cls, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Schema:
        identity = json.loads(metadata["schema"])
        if identity["format"] not in range(1, SCHEMA_FORMAT + 1):
            raise SchemaError(
                f"{path}: got schema format {identity['format']}, expected 1 to {SCHEMA_FORMAT}; "
                "fit the schema again"
            )
        tensors = map_tensors(path)
        schema = _assemble(identity, json.loads(metadata["facts"]), tensors)
        facts_digest = _facts_digest(metadata["facts"], tensors)
        digests = metadata["fingerprint"], metadata["facts_sha256"]
        indices = {k: tensor for k, tensor in tensors.items() if k.startswith(_INDEX)}
        index_digest = _index_digest(indices) if indices else None
        if (schema.fingerprint, facts_digest) != digests or (
            index_digest != metadata.get("index_sha256")
        ):
            raise SchemaError(
                f"{path}: its contents do not match its fingerprint; the file is damaged"
            )
        return schema

    def __repr__(self) -> str:
        return schema_table(self)

    def _repr_html_(self) -> str:
        features = self.spec.all_features
        rows = table(_HEADINGS, [_row(self, f) for f in features], numbers=("size", "missing"))
        notes = [note(f"label: {_label(self)}"), *map(note, self.notes)]
        title = f"Schema of {len(features)} features"
        subtitle = f"fitted on {self.rows:,} rows, fingerprint {self.fingerprint[:12]}"
        height = min(160 + 36 * (len(features) + len(notes)), 560)
        return framed_page(title, [rows, *notes], subtitle=subtitle, height=height)


def _plain(value: Any) -> Any:
    """Return mappings and sequences as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple | list) else value


def _update(digest: Any, name: str, tensor: NDArray[Any]) -> None:
    digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
    digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def _facts_digest(facts: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of what the fingerprint leaves out, to detect a damaged file."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        if name.startswith(_NOT_FINGERPRINTED):
            _update(digest, name, tensor)
    return digest.hexdigest()


def _index_digest(indices: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(indices.items()):
        _update(digest, name, tensor)
    return digest.hexdigest()


def _built_index(vocabulary: Vocabulary) -> NDArray[Any]:
    if isinstance(vocabulary.values, np.ndarray):
        return integer_index(np.ascontiguousarray(vocabulary.values))
    return text_index(*text_buffers(vocabulary.values))


def stored_spec(path: str | os.PathLike[str]) -> FeatureSpec:
    """Return the declaration that a schema's file holds, without the vocabularies."""
    metadata = read_metadata(path)
    if "schema" not in metadata:
        raise SchemaError(f"{path}: got a safetensors file that holds no schema")
    spec = json.loads(metadata["schema"])["spec"]
    return spec_from_table(spec["data"], spec["features"])


def _assemble(
    identity: dict[str, Any], facts: dict[str, Any], tensors: dict[str, NDArray[Any]]
) -> Schema:
    for name, hint in _FACTS.items():
        check_value(facts[name], hint, name)
    check_value(facts["dropped"], Mapping[str, int], "dropped")
    later = {name: facts.get(name, {}) for name in _LATER_FACTS}
    for name, by_head in later.items():
        check_value(by_head, Mapping[str, list[float]], name)
    history = identity.get("history", {})
    check_value(history, Mapping[str, Mapping[str, Any]], "history")
    check_value(identity["classes"], Mapping[str, list[Any]], "classes")
    spec = spec_from_table(identity["spec"]["data"], identity["spec"]["features"])
    if untyped := [name for name in spec.columns() if name not in identity["columns"]]:
        raise ValueError(f"column {untyped[0]!r}: got no type of a column that features read")
    vocabularies = {}
    tails = facts.get("tails", {})
    check_value(tails, Mapping[str, int], "tails")
    for key, dropped in facts["dropped"].items():
        vocabulary = _stored_vocabulary(tensors, key, dropped)
        vocabulary = replace(vocabulary, index=tensors.get(_INDEX + key))
        if key in tails:
            tail = _stored_vocabulary(tensors, key, tails[key], _TAIL)
            vocabulary = replace(vocabulary, tail=tail)
        vocabularies[key] = vocabulary
    numerics = {
        feature.name: _numeric_fit(tensors, feature.name, feature.number_input.size)
        for feature in spec.all_features
        if feature.learns_numbers and feature.number_input is not None
    }
    boundaries = {
        feature.name: _rising(tensors, f"boundaries/{feature.name}")
        for feature in spec.all_features
        if feature.is_bucketed
    }
    return Schema(
        spec=spec,
        columns={name: ColumnType(**kind) for name, kind in identity["columns"].items()},
        vocabularies=vocabularies,
        boundaries=boundaries,
        numerics=numerics,
        classes={head: tuple(names) for head, names in identity["classes"].items()},
        history=history,
        **{name: facts[name] for name in _FACTS} | later | {"notes": tuple(facts["notes"])},
    )


def _tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, dtype: type, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """A tensor of that type and shape; None stands for any length."""
    tensor = tensors[name]
    fits = len(tensor.shape) == len(shape) and all(
        size in (None, length) for size, length in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype != dtype or not fits:
        raise ValueError(
            f"tensor {name!r}: got {tensor.dtype} of shape {tensor.shape}, expected "
            f"{np.dtype(dtype)} of shape {shape}"
        )
    return tensor


def _vocabulary_tensors(vocabulary: Vocabulary, key: str) -> dict[str, NDArray[Any]]:
    if isinstance(vocabulary.values, np.ndarray):
        return {_COUNTS + key: vocabulary.counts, f"ints/{key}": vocabulary.values}
    offsets, data = text_buffers(vocabulary.values)
    return {_COUNTS + key: vocabulary.counts, f"offsets/{key}": offsets, f"bytes/{key}": data}


def _stored_vocabulary(
    tensors: Mapping[str, NDArray[Any]], key: str, dropped: int, lead: str = ""
) -> Vocabulary:
    values = _vocabulary_values(tensors, key, lead)
    counts = _tensor(tensors, lead + _COUNTS + key, np.int64, (len(values),))
    return Vocabulary(values=values, counts=counts, dropped=dropped)


def _vocabulary_values(
    tensors: Mapping[str, NDArray[Any]], key: str, lead: str
) -> pa.LargeBinaryArray | NDArray[np.int64]:
    integers = tensors.get(f"{lead}ints/{key}")
    if integers is not None:
        shape = (None,) if integers.ndim == 1 else (None, None)
        return _tensor(tensors, f"{lead}ints/{key}", np.int64, shape)
    offsets = _tensor(tensors, f"{lead}offsets/{key}", np.int64, (None,))
    data = _tensor(tensors, f"{lead}bytes/{key}", np.uint8, (None,))
    # Native look-ups follow the offsets without a check of their own.
    if (
        not len(offsets)
        or offsets[0] != 0
        or offsets[-1] != len(data)
        or (np.diff(offsets) < 0).any()
    ):
        raise ValueError(
            f"tensor '{lead}offsets/{key}': got offsets that do not rise from 0 to the {len(data)} "
            "bytes of the vocabulary"
        )
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def _numeric_fit(tensors: Mapping[str, NDArray[Any]], name: str, size: int) -> NumericFit:
    def per_component(statistic: str, dtype: type = np.float64) -> NDArray[Any]:
        return _tensor(tensors, f"{statistic}/{name}", dtype, (size,))

    shift = per_component("shift")  # First: it refuses a size that the file does not have.

    def profile(component: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        cuts = _rising(tensors, f"profile_cuts/{component}/{name}")
        counts = f"profile_counts/{component}/{name}"
        return cuts, _tensor(tensors, counts, np.int64, (len(cuts) + 1,))

    return NumericFit(
        boundaries=tuple(
            _rising(tensors, f"quantiles/{component}/{name}")
            for component in range(size)
            if f"quantiles/{component}/{name}" in tensors
        ),
        shift=shift,
        scale=per_component("scale"),
        fill=per_component("fill", np.float32),
        minimum=per_component("minimum"),
        maximum=per_component("maximum"),
        mean=per_component("mean"),
        profile=tuple(
            profile(component)
            for component in range(size)
            if f"profile_cuts/{component}/{name}" in tensors
        ),
    )


def _rising(tensors: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float64]:
    """Cut points; what looks values up among them relies on their order."""
    cuts: NDArray[np.float64] = _tensor(tensors, name, np.float64, (None,))
    if np.isnan(cuts).any() or not (np.diff(cuts) > 0).all():
        raise ValueError(f"tensor {name!r}: got cut points that do not rise")
    return cuts


_HEADINGS = ("feature", "kind", "size", "missing", "placement")


def schema_table(schema: Schema) -> str:
    """Return a schema as text: a row a feature with kind, size, share of nulls, placement."""
    rows = [_row(schema, feature) for feature in schema.spec.all_features]
    widths = [max(len(row[i]) for row in [_HEADINGS, *rows]) for i in range(len(_HEADINGS))]
    quantiles = (
        "exact"
        if schema.quantile_rows >= schema.rows
        else f"exact on a sample of {schema.quantile_rows:,} rows"
    )
    head = (
        f"Schema of {len(rows)} features, fitted on {schema.rows:,} rows "
        f"(quantiles {quantiles}), fingerprint {schema.fingerprint[:12]}"
    )
    lines = [head, *(_line(row, widths) for row in [_HEADINGS, *rows])]
    lines += [f"label: {_label(schema)}"]
    if schema.history:
        lines.append(f"history, computed by the join: {', '.join(schema.history)}")
    lines += [f"note: {note}" for note in schema.notes]
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        cell.rjust(width) if heading in ("size", "missing") else cell.ljust(width)
        for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
    ]
    return "  ".join(cells).rstrip()


def _row(schema: Schema, feature: Feature) -> tuple[str, ...]:
    column = feature.main_column
    return (
        feature.name,
        feature.kind_text,
        f"{feature.dense_columns(schema) or schema.id_count(feature.name):,}",
        "" if column is None else f"{schema.missing.get(column, 0.0):.1%}",
        place_text(schema, feature),
    )


def place_text(schema: Schema, feature: Feature) -> str:
    """Return which parts of the model a feature goes to, as text."""
    places = [
        placement
        for placement, names in (
            ("wide", schema.spec.wide_names),
            ("deep", schema.spec.deep_names),
            ("item", schema.spec.item),
            ("extra", schema.spec.extra),
            ("training only", tuple(schema.spec.training_only)),
        )
        if feature.name in names
    ]
    counted = any(f.source_feature == feature.name for f in schema.spec.all_features)
    return " + ".join(places) or ("counted by an indicator" if counted else "part of crosses")


def _label(schema: Schema) -> str:
    parts = []
    for head, column in schema.spec.labels.items():
        if head in schema.classes:
            parts.append(f"{column} ({len(schema.classes[head])} classes)")
        elif head in schema.label_means:
            parts.append(f"{column} (mean {schema.label_means[head]:.4g})")
        else:
            parts.append(column)
    return ", ".join(parts) or "none"
