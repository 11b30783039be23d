"""Feature columns, read from the operations that TensorFlow made of them.

Every operation on the way from a parsed feature to the network is named here. What is not is
refused: a column is carried over as it is, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np

from widedeep.errors import FeatureError
from widedeep.importing.saved_model import GraphReader, Op, SavedModel

ColumnKind = Literal["vocabulary", "hashed", "identity", "bucketized", "crossed"]
Combiner = Literal["sum", "mean", "sqrtn"]
_INTEGERS = (3, 9)  # int32, int64 in types.proto
_STRING = 7
CROSS_KEY = 0xDECAFCAFFE


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedFeature:
    """A feature as a server receives it."""

    key: str
    dtype: int  # Its number in types.proto
    size: int | None  # Values of a dense one; None: any number of them
    default: tuple[Any, ...] | None = None  # Values of a row that lacks a dense one
    drops_empty: bool = False  # "" of a dense text counts as no value

    @property
    def drops_minus_one(self) -> bool:
        """Whether -1 counts as no value, where ids are made of it."""
        return self.is_integer and self.size is not None

    @property
    def is_integer(self) -> bool:
        """Whether its values are whole numbers."""
        return self.dtype in _INTEGERS

    @property
    def is_text(self) -> bool:
        """Whether its values are text."""
        return self.dtype == _STRING


@dataclass(frozen=True, kw_only=True, slots=True)
class IdColumn:
    """A categorical column: how values become ids, numbered as TensorFlow numbers them."""

    kind: ColumnKind
    source: ParsedFeature | None = None  # None for a cross
    values: tuple[str | int, ...] = ()  # A vocabulary's
    # Of a hash or a cross; those for unseen values of a vocabulary; values of an identity column,
    # 0 where its table says how many there are
    buckets: int = 0
    default: int | None = None  # The id of an unseen or out-of-range value
    boundaries: tuple[float, ...] = ()
    parts: tuple[IdColumn | ParsedFeature, ...] = ()
    hash_key: int = CROSS_KEY
    weights: ParsedFeature | None = None

    def count(self, rows: int) -> int:
        """Return the number of ids; an identity column may leave it to its table's rows."""
        if self.kind == "vocabulary":
            return len(self.values) + self.buckets
        if self.kind == "bucketized":
            assert self.source is not None
            return (len(self.boundaries) + 1) * (self.source.size or 1)
        return self.buckets or rows

    @property
    def missing(self) -> int | None:
        """The id of a row that lacks the column: its default's; None where it has no id.

        Raises:
            FeatureError: If no single row stands for it.
        """
        if self.source is None or self.source.default is None:
            return None
        value, *others = self.source.default
        if self.kind == "bucketized" and not others:
            return int(np.searchsorted(np.array(self.boundaries, "f4"), np.float32(value), "right"))
        if value in ("", -1) and not others:  # TensorFlow takes it for no value
            return None
        if self.kind == "vocabulary" and value in self.values and not others:
            return self.values.index(value)
        if self.kind == "vocabulary" and not self.buckets and not others:
            return self.default
        if self.kind == "identity" and not others:
            inside = self.default is None or 0 <= value < self.buckets
            return int(value) if inside else self.default
        raise default_error(self.source)

    def check_part(self) -> None:
        """Refuse a column that is counted or crossed, and has an id for rows that lack it.

        Raises:
            FeatureError: If it has one.
        """
        if self.missing is not None:
            assert self.source is not None
            raise default_error(self.source)


def default_error(source: ParsedFeature) -> FeatureError:
    """Return what to say where a missing value cannot stand for a default."""
    default = list(source.default or ())
    return FeatureError(
        f"column {source.key!r}: a row without it has the default {default} in TensorFlow, and no "
        "value here, where it is hashed, counted or crossed; fill it in before the model, and "
        "export the model with a column and a parsing specification without default_value"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberColumn:
    """Numbers, as (x - shift) * scale."""

    source: ParsedFeature
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    @property
    def is_plain(self) -> bool:
        """Whether the numbers enter as they are."""
        return self.shift == (0.0,) and self.scale == (1.0,)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumn:
    """Rows of a table, combined by row of the batch."""

    column: IdColumn
    variable: str  # The operation that holds the table
    combiner: Combiner
    max_norm: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CountColumn:
    """How often each id occurs: an indicator."""

    column: IdColumn
    width: int


DenseColumn = NumberColumn | TableColumn | CountColumn


class ColumnReader(GraphReader):
    """Reads columns from a graph's tensors.

    Args:
        model: The SavedModel.
        inputs: Features that are fed as they are, by their tensors.
    """

    def __init__(self, model: SavedModel, inputs: Mapping[str, str]) -> None:
        super().__init__(model)
        self._inputs = {self.graph.op(tensor).name: key for key, tensor in inputs.items()}
        self._name = ""
        self.notes: dict[str, None] = {}  # What is otherwise here than one may expect, in order
        self._rules: dict[str, Callable[[Op, int], IdColumn | ParsedFeature]] = {
            "GatherV2": self._pruned,
            "GatherNd": self._without_empty,
            "SparseFillEmptyRows": lambda op, _: self._ids(op.inputs[1]),
            "Unique": lambda op, _: self._ids(op.inputs[0]),
            "Reshape": lambda op, _: self._ids(op.inputs[0]),
            "Cast": lambda op, _: self._ids(op.inputs[0]),
            "LookupTableFindV2": self._vocabulary,
            "StringToHashBucketFast": self._hashed,
            "SelectV2": self._chosen,
            "Select": self._chosen,
            "Bucketize": self._bucketized,
            "AddV2": self._vector_buckets,
            "SparseCross": self._crossed,
            "ParseExampleV2": self._parsed,
            "ParseExample": self._parsed,
            "Placeholder": self._fed,
        }

    # ---- what a column gives --------------------------------------------------------------------

    def dense(self, tensor: str, name: str) -> DenseColumn:
        """Return the column that gives a part of the deep network's input."""
        self._name = name
        op = self._past(tensor, "Reshape")
        if op.kind in ("Sum", "OneHot"):
            return self._counts(op)
        if op.kind == "ScatterNd":
            return self._weighted_counts(op)
        if self._is_pooled(op):
            return self._pooled(op)
        return self._number(tensor)

    def _is_pooled(self, op: Op) -> bool:
        pools = ("SparseSegmentMean", "SparseSegmentSum", "SparseSegmentSqrtN", "SegmentSum")
        if op.kind == "Select":
            return self.graph.source(op.inputs[1])[0].kind == "ZerosLike"
        if op.kind in ("DivNoNan", "RealDiv"):
            return self.graph.source(op.inputs[0])[0].kind == "SegmentSum"
        return op.kind in pools

    def _pooled(self, op: Op) -> TableColumn:
        """Read ``safe_embedding_lookup_sparse``: rows without ids are zeros."""
        if op.kind == "Select":
            op, _ = self.graph.source(op.inputs[2])
        plain: dict[str, Combiner] = {
            "SparseSegmentSum": "sum",
            "SparseSegmentMean": "mean",
            "SparseSegmentSqrtN": "sqrtn",
        }
        if op.kind in plain:
            return self._rows(op.inputs[0], plain[op.kind])
        combiner: Combiner = "sum"
        if op.kind in ("DivNoNan", "RealDiv"):
            divisor, _ = self.graph.source(op.inputs[1])
            combiner = "sqrtn" if divisor.kind == "Sqrt" else "mean"
            self._expect(divisor, "Sqrt" if combiner == "sqrtn" else "SegmentSum")
            op, _ = self.graph.source(op.inputs[0])
        self._expect(op, "SegmentSum")
        product = self._op(op.inputs[0], "Mul")
        occurrences = self._op(product.inputs[0], "GatherV2")
        weights = self._weights(product.inputs[1])
        table = self._rows(occurrences.inputs[0], combiner)
        return replace(table, column=replace(table.column, weights=weights))

    def _rows(self, tensor: str, combiner: Combiner) -> TableColumn:
        """Read a look-up of rows, cut back to a norm or not."""
        op, _ = self.graph.source(tensor)
        max_norm = None
        if op.kind == "RealDiv":  # clip_by_norm
            longer = self._op(op.inputs[1], "Maximum")
            limit = self.graph.constant(longer.inputs[1])
            scaled = self._op(op.inputs[0], "Mul")
            if limit is None or limit.size != 1:
                self._refuse(longer)
            max_norm = float(limit.reshape(()))
            self.notes[
                f"feature column {self._name!r}: TensorFlow cuts rows back to max_norm when it "
                "reads them, here they are when they are written: scores are equal, further steps "
                "nearly"
            ] = None
            tensor = scaled.inputs[0]
        op = self._past(tensor, "Reshape")
        if op.kind in ("DynamicStitch", "ParallelDynamicStitch"):
            return self._partitioned(op, combiner, max_norm)
        self._expect(op, "ResourceGather", "GatherV2")
        variable, _ = self.graph.source(op.inputs[0])
        column = self._id_column(op.inputs[1])
        return TableColumn(
            column=column, variable=variable.name, combiner=combiner, max_norm=max_norm
        )

    def _partitioned(self, op: Op, combiner: Combiner, max_norm: float | None) -> TableColumn:
        """Read look-ups in the parts of a table that is cut into even runs of rows."""
        n_parts = len(op.inputs) // 2
        gathers = [self.graph.source(tensor)[0] for tensor in op.inputs[n_parts:]]
        while all(gather.kind == "Reshape" for gather in gathers):
            gathers = [self.graph.source(gather.inputs[0])[0] for gather in gathers]
        names = set()
        for gather in gathers:
            self._expect(gather, "ResourceGather", "GatherV2")
            variable = self.graph.source(gather.inputs[0])[0].name
            names.add(self.model.names.get(variable, (variable, ""))[0])
        if len(names) != 1:
            self._refuse(op)
        split = self._op(gathers[0].inputs[1], "DynamicPartition")
        # partition_strategy="div"; "mod" deals rows in turn
        self._expect(self._past(split.inputs[1], "Cast", "Reshape"), "Maximum")
        unique = next((o for o in self.graph.above(split.inputs[0]) if o.kind == "Unique"), None)
        if unique is None:
            self._refuse(split)
        column = self._id_column(unique.inputs[0])
        first = self.graph.source(gathers[0].inputs[0])[0].name
        return TableColumn(column=column, variable=first, combiner=combiner, max_norm=max_norm)

    def _counts(self, op: Op) -> CountColumn:
        """Read an indicator, or buckets as columns of their own."""
        if op.kind == "Sum":
            op, _ = self.graph.source(op.inputs[0])
        self._expect(op, "OneHot")
        depth = self.graph.constant(op.inputs[1])
        ones = [self.graph.constant(tensor) for tensor in op.inputs[2:4]]
        if depth is None or any(value is None for value in ones) or ones != [1.0, 0.0]:
            self._refuse(op)
        ids, _ = self.graph.source(op.inputs[0])
        if ids.kind == "SparseToDense":
            column = self._id_column(ids.inputs[2])
            return CountColumn(column=column, width=int(depth))
        column = self._id_column(op.inputs[0])
        if column.kind != "bucketized" or column.source is None:
            self._refuse(ids)
        return CountColumn(column=column, width=int(depth) * (column.source.size or 1))

    def _weighted_counts(self, op: Op) -> CountColumn:
        """Read the indicator of ids with weights: a sparse matrix of rows and ids, made dense."""
        matrix = self._op(self._op(op.inputs[0], "SparseSlice").inputs[0], "SparseReorder")
        indices, shape = (self._op(matrix.inputs[i], "ConcatV2") for i in (0, 2))
        ids = self._op(indices.inputs[1], "ExpandDims")
        size = self._past(shape.inputs[1], "Pack", "Cast")
        column = replace(self._id_column(ids.inputs[0]), weights=self._weights(matrix.inputs[1]))
        return CountColumn(column=column, width=self._number_of(size.name, size))

    def _number(self, tensor: str) -> NumberColumn:
        """Read a number with a normaliser made of sums and products by constants."""
        steps: list[tuple[str, np.ndarray[Any, Any]]] = []
        for _ in range(len(self.graph.ops) + 1):  # no more, where a damaged graph has a circle
            op, output = self.graph.source(tensor)
            types = [op.type_number(name) in _INTEGERS for name in ("SrcT", "DstT")]
            if op.kind == "Cast" and types == [False, True]:
                raise self._error("its normalizer_fn cuts off what follows the point")
            if op.kind in ("Reshape", "Cast"):
                tensor = op.inputs[0]
                continue
            if op.kind not in ("Sub", "Mul", "RealDiv", "AddV2", "Add", "Div"):
                break
            values = [self.graph.constant(tensor) for tensor in op.inputs[:2]]
            if (values[0] is None) == (values[1] is None):
                self._refuse(op)
            right = values[1] is not None
            if op.kind in ("RealDiv", "Div") and not right:
                self._refuse(op)
            number = np.asarray(values[1] if right else values[0], np.float64)
            steps.append((op.kind if right or op.kind != "Sub" else "From", number))
            tensor = op.inputs[0 if right else 1]
        self._expect(op, "ParseExampleV2", "ParseExample", "Placeholder")
        source = self._features(op, output)
        if source.size is None or source.is_text:
            raise self._error(f"reads {source.key!r}, which is no number of fixed length")
        return self._scaled(source, steps[::-1])

    def _scaled(
        self, source: ParsedFeature, steps: list[tuple[str, np.ndarray[Any, Any]]]
    ) -> NumberColumn:
        shift, scale = np.zeros(1), np.ones(1)
        for kind, number in steps:
            value = number.reshape(-1)
            if value.size not in (1, source.size) or not np.isfinite(value).all():
                raise self._error(f"its normalizer_fn has a constant of shape {number.shape}")
            if kind in ("Sub", "From"):
                shift = shift + value / scale
            elif kind in ("Add", "AddV2"):
                shift = shift - value / scale
            if kind in ("Mul", "From"):
                scale = scale * (-1.0 if kind == "From" else value)
            elif kind in ("RealDiv", "Div"):
                scale = scale / value
            if not (scale != 0).all() or not np.isfinite(scale).all():
                raise self._error("its normalizer_fn multiplies by 0, or divides by it")
        return NumberColumn(source=source, shift=_numbers(shift), scale=_numbers(scale))

    # ---- ids ------------------------------------------------------------------------------------

    def _id_column(self, tensor: str) -> IdColumn:
        ids = self._ids(tensor)
        if isinstance(ids, IdColumn):
            return ids
        if not ids.is_integer:
            raise self._error(
                f"its ids are the feature {ids.key!r}, which is no column of integers"
            )
        return IdColumn(kind="identity", source=ids)

    def _ids(self, tensor: str) -> IdColumn | ParsedFeature:
        op, output = self.graph.source(tensor)
        rule = self._rules.get(op.kind)
        if rule is None:
            self._refuse(op)
        return rule(op, output)

    def _weights(self, tensor: str) -> ParsedFeature:
        """Read the weights of ids: a feature, reshaped and pruned as the ids are."""
        op, output = self.graph.source(tensor)
        while op.kind in ("Reshape", "Cast", "SparseFillEmptyRows", "GatherV2"):
            op, output = self.graph.source(op.inputs[op.kind == "SparseFillEmptyRows"])
        self._expect(op, "ParseExampleV2", "ParseExample", "Placeholder")
        return self._features(op, output)

    def _features(self, op: Op, output: int) -> ParsedFeature:
        return self._fed(op, output) if op.kind == "Placeholder" else self._parsed(op, output)

    def _pruned(self, op: Op, _: int) -> IdColumn | ParsedFeature:
        """Read ids without those below 0, or without weight."""
        index = self._past(op.inputs[1], "Reshape")
        self._expect(index, "Where")
        self._op(index.inputs[0], "GreaterEqual", "Greater", "LogicalAnd")
        return self._ids(op.inputs[0])

    def _without_empty(self, op: Op, _: int) -> IdColumn | ParsedFeature:
        """Read a dense feature as a sparse one: "" and -1 stand for no value."""
        self._op(self._op(op.inputs[1], "Where").inputs[0], "NotEqual")
        ids = self._ids(op.inputs[0])
        if not isinstance(ids, ParsedFeature):
            self._refuse(op)
        return replace(ids, drops_empty=ids.is_text)

    def _vocabulary(self, op: Op, _: int) -> IdColumn:
        source = self._source(op.inputs[1])
        table, _ = self.graph.source(op.inputs[0])
        unseen = self._number_of(op.inputs[2], op)
        return IdColumn(
            kind="vocabulary",
            source=source,
            values=self._table_values(table, source),
            default=None if unseen < 0 else unseen,
        )

    def _table_values(self, table: Op, source: ParsedFeature) -> tuple[str | int, ...]:
        fills = [
            op
            for op in self.graph.consumers.get(table.name, [])
            if op.kind in ("LookupTableImportV2", "InitializeTableFromTextFileV2")
        ]
        if len(fills) != 1:
            self._refuse(table)
        fill = fills[0]
        if fill.kind == "LookupTableImportV2":
            keys = self.graph.constant(self.graph.uncast(fill.inputs[1]).name)
            if keys is None or not self._counts_up(fill.inputs[2], len(keys)):
                self._refuse(fill)
            values = keys.tolist()
        else:
            values = self._file_lines(fill)
        return tuple(_text_value(value, source) for value in values)

    def _counts_up(self, tensor: str, n: int) -> bool:
        """Tell whether a tensor is 0, 1, ..., n - 1."""
        op = self.graph.uncast(tensor)
        if op.kind == "Const":
            values = self.graph.constant(op.name)
            return values is not None and np.array_equal(values, np.arange(n))
        if op.kind != "Range":
            return False
        ends = [self.graph.constant(tensor) for tensor in op.inputs]
        return all(
            end is not None and int(end) == n for end, n in zip(ends, (0, n, 1), strict=True)
        )

    def _file_lines(self, fill: Op) -> list[bytes]:
        whole_line, line_number = -2, -1  # key_index, value_index
        indices = (fill.integer("key_index"), fill.integer("value_index"))
        path = self.model.asset(fill.inputs[1])
        if indices != (whole_line, line_number) or fill.integer("offset") or path is None:
            self._refuse(fill)
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise self._error(
                f"its vocabulary file {path} cannot be read ({error.strerror}); copy the whole "
                "folder of the SavedModel"
            ) from error
        lines = lines[:-1] if lines and not lines[-1] else lines
        size = fill.integer("vocab_size", -1)
        return [line.rstrip(b"\r") for line in (lines if size < 0 else lines[:size])]

    def _hashed(self, op: Op, _: int) -> IdColumn:
        text, _ = self.graph.source(op.inputs[0])
        tensor = text.inputs[0] if text.kind == "AsString" else op.inputs[0]
        buckets = op.integer("num_buckets")
        return IdColumn(kind="hashed", source=self._source(tensor), buckets=buckets)

    def _chosen(self, op: Op, _: int) -> IdColumn:
        """Read ids with buckets for unseen values, or with a default for those out of range."""
        condition, _ = self.graph.source(op.inputs[0])
        if condition.kind == "NotEqual":
            vocabulary = self._id_column(op.inputs[1])
            add = self._op(op.inputs[2], "AddV2", "Add")
            hashed = self._id_column(add.inputs[0])
            offset = self.graph.uncast(add.inputs[1])
            size = self.graph.constant(offset.name)
            fits = offset.kind == "LookupTableSizeV2" or (
                size is not None and int(size) == len(vocabulary.values)
            )
            if vocabulary.kind != "vocabulary" or hashed.kind != "hashed" or not fits:
                self._refuse(op)
            return replace(vocabulary, buckets=hashed.buckets, default=None)
        self._expect(condition, "LogicalOr")
        fill = self._op(op.inputs[1], "Fill")
        default = self._number_of(self.graph.uncast(fill.inputs[1]).name, fill)
        column = self._id_column(op.inputs[2])
        return replace(column, buckets=self._range(condition), default=default)

    def _range(self, outside: Op) -> int:
        """Return the number of values from 0 on, of what says that a value lies outside."""
        bound = self.graph.uncast(self._op(outside.inputs[1], "GreaterEqual").inputs[1])
        return self._number_of(bound.name, bound)

    def _bucketized(self, op: Op, _: int) -> IdColumn:
        number = self._number(op.inputs[0])
        if not number.is_plain:
            raise self._error(
                "its number has a normalizer_fn before it is cut into buckets; export the model "
                "with the boundaries of the number itself"
            )
        return IdColumn(
            kind="bucketized", source=number.source, boundaries=tuple(op.reals("boundaries"))
        )

    def _vector_buckets(self, op: Op, _: int) -> IdColumn:
        """Read the buckets of a vector: those of component i follow those of i - 1."""
        column = self._id_column(op.inputs[0])
        product = self._op(op.inputs[1], "Mul")
        step = self.graph.constant(product.inputs[0])
        if column.kind != "bucketized" or step is None or int(step) != len(column.boundaries) + 1:
            self._refuse(op)
        return column

    def _crossed(self, op: Op, _: int) -> IdColumn:
        n_sparse = op.integer("N")
        n_dense = len(op.types("dense_types"))
        values = op.inputs[n_sparse : 2 * n_sparse] + op.inputs[3 * n_sparse :]
        if not op.flag("hashed_output") or len(values) != n_sparse + n_dense:
            self._refuse(op)
        parts = tuple(self._ids(tensor) for tensor in values)
        if n_dense and n_sparse:
            self.notes[
                f"feature column {self._name!r}: TensorFlow hashes the parts that arrive dense "
                "behind the others, and so does the cross here; a model that was trained on sparse "
                "inputs and is served dense ones has other ids in TensorFlow too"
            ] = None
        return IdColumn(
            kind="crossed",
            parts=parts,
            buckets=op.integer("num_buckets"),
            hash_key=op.integer("hash_key", CROSS_KEY) & (2**64 - 1),
        )

    # ---- features -------------------------------------------------------------------------------

    def _source(self, tensor: str) -> ParsedFeature:
        source = self._ids(tensor)
        if not isinstance(source, ParsedFeature):
            self._refuse(self.graph.source(tensor)[0])
        return source

    def _parsed(self, op: Op, output: int) -> ParsedFeature:
        if op.kind == "ParseExampleV2":
            n_sparse, tail = op.integer("num_sparse"), 5
            keys = [self._keys(op.inputs[i]) for i in (2, 3)]
        else:
            n_sparse, n_dense = op.integer("Nsparse"), op.integer("Ndense")
            tail = 2 + n_sparse + n_dense
            listed = [self._keys(tensor)[0] for tensor in op.inputs[2:tail]]
            keys = [listed[:n_sparse], listed[n_sparse:]]
        if n_sparse <= output < 2 * n_sparse:
            i = output - n_sparse
            dtype = op.types("sparse_types")[i]
            return ParsedFeature(key=keys[0][i], dtype=dtype, size=None)
        i = output - 3 * n_sparse
        if not 0 <= i < len(keys[1]):
            self._refuse(op)
        tensor = op.inputs[tail + i]
        while self.graph.source(tensor)[0].kind == "Reshape":
            tensor = self.graph.source(tensor)[0].inputs[0]
        default = self.graph.constant(tensor)
        dtype, shape = op.types("Tdense")[i], op.shapes("dense_shapes")[i]
        values = None
        if default is None:
            self._refuse(self.graph.op(tensor))
        if default.size:
            raw: list[Any] = default.reshape(-1).tolist()
            values = tuple(v.decode() if isinstance(v, bytes) else v for v in raw)
        size = int(np.prod(shape, dtype=np.int64))
        return ParsedFeature(key=keys[1][i], dtype=dtype, size=size, default=values)

    def _keys(self, tensor: str) -> list[str]:
        values = self.graph.constant(tensor)
        if values is None:
            self._refuse(self.graph.op(tensor))
        return [bytes(key).decode() for key in values.reshape(-1)]

    def _fed(self, op: Op, _: int) -> ParsedFeature:
        if op.name not in self._inputs:
            self._refuse(op)
        size = int(np.prod(op.shape("shape")[1:], dtype=np.int64))
        if size < 0:
            raise self._error(f"is fed by {op.name!r}, whose rows have no fixed length")
        return ParsedFeature(key=self._inputs[op.name], dtype=op.type_number("dtype"), size=size)

    # ---- errors ---------------------------------------------------------------------------------

    def _past(self, tensor: str, *kinds: str) -> Op:
        """Return the operation that gives a tensor, past those of some kinds."""
        op = self.graph.source(tensor)[0]
        while op.kind in kinds:
            op = self.graph.source(op.inputs[0])[0]
        return op

    def _number_of(self, tensor: str, op: Op) -> int:
        """Return a constant integer; refuse ``op`` where it is none."""
        value = self.graph.constant(tensor)
        if value is None:
            self._refuse(op)
        return int(value.reshape(()))

    def _refuse(self, op: Op) -> NoReturn:
        raise self._error(
            f"is computed by {op.kind} (operation {op.name!r}), which this reader does not know"
        )

    def _error(self, problem: str) -> FeatureError:
        return FeatureError(
            f"feature column {self._name!r}: {problem}; it cannot be carried over: compute it "
            "before the model, as a column of the data, and train the model with that column, or "
            "leave the column out"
        )


def _numbers(values: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """One number where all components have the same."""
    numbers = tuple(float(value) for value in values)
    return numbers[:1] if len(set(numbers)) == 1 else numbers


def _text_value(value: bytes | int, source: ParsedFeature) -> str | int:
    if isinstance(value, bytes):
        return int(value) if source.is_integer else value.decode("utf-8", "surrogateescape")
    return int(value)
