"""A bundle as one ONNX model, from raw columns to scores, checked against the bundle."""

from __future__ import annotations

import functools
import json
import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep._version import __version__
from widedeep.bundle.bundle import Bundle
from widedeep.bundle.calibration import Calibration, Isotonic, Platt, PriorCorrection
from widedeep.bundle.graph import sequence_shapes, stage_columns, stage_sequences
from widedeep.bundle.layout import GRAPH, BundleHead, BundleSequence, DeepColumn
from widedeep.bundle.onnx_graph import GraphBuilder, ProgramNodes, Value
from widedeep.data.batch import Batch
from widedeep.data.made_up_rows import made_up_rows
from widedeep.data.transform import Transform
from widedeep.errors import BundleError, extra_imports
from widedeep.features import (
    BucketEncoding,
    CountEncoding,
    CrossEncoding,
    Encoding,
    NumberEncoding,
    PiecewiseEncoding,
    ValueEncoding,
)
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.files import atomic_file

NULL_TEXT = "\N{SYMBOL FOR NULL}"
"""What stands for a null in a column of text."""
NULL_INTEGER = -(2**63)
"""What stands for a null in a column of integers; in one of numbers it is NaN."""
TOLERANCE = 1e-5
"""Largest difference of a logit to the bundle's, relative to max(1, |logit|)."""
_MADE_UP_TOLERANCE = 1e-4  # the ends of numbers, where sums in another order differ most
_MISSING_ID = 1
_LARGEST_KEY = 2**62
_SMALLEST_SIGMA = 2.0**-12


@dataclass(frozen=True, slots=True)
class _Ids:
    """A feature's ids in the graph: (B, L), -1 where there is none, and their weights."""

    ids: Value | None
    weights: Value | None = None  # (B, L) float32; None: 1
    constant: NDArray[np.int64] | None = None  # The ids, where they are the same for every row


def export_onnx(bundle: Bundle, path: str | os.PathLike[str]) -> dict[str, str]:
    """Write a bundle as one ONNX file, once its scores were found to be the bundle's.

    The file holds the whole model: vocabularies, buckets, scaling, learned crosses, tables, towers,
    links and calibration. Inputs are raw columns, ``(B,)`` of text, int64 or float64, ``(B, n)``
    for vectors; see :func:`onnx_inputs` for how a null is written. What ONNX has no operation for
    (hashes, lists, weights of values) comes in as ids, ``NAME/ids`` (B, L) with -1 for no id,
    ``NAME/weights`` (B, L), or ``NAME/numbers`` (B, n), which :func:`onnx_inputs` makes.

    Outputs: ``logits`` (B, C) float32, and ``scores`` (or a head's name, where there are several),
    float64, (B,) or (B, classes), as :meth:`widedeep.Bundle.score` returns them.

    Args:
        bundle: The bundle; its warm-up rows are scored by ONNX Runtime before the file is written.
        path: The file.

    Returns:
        Each input with what goes in: ``"text"``, ``"integers"``, ``"numbers"``, ``"ids"`` or
        ``"weights"``.

    Raises:
        BundleError: If the scores differ by more than 1e-5, or the model has no form in ONNX.
        MissingPackageError: If ``onnx`` or ``onnxruntime`` is not installed (``widedeep[onnx]``).

    Example:
        >>> import onnxruntime
        >>> import widedeep as wd
        >>> from widedeep.bundle import export_onnx, onnx_inputs
        >>> rows = [{"job": "ab"[i % 2], "age": i, "y": i % 2} for i in range(64)]
        >>> spec = wd.FeatureSpec(label="y", features=[wd.categorical("job"), wd.numeric("age")])
        >>> trainer = wd.Trainer(wd.WideDeep(wd.fit_schema(spec, rows)), progress=False)
        >>> _ = trainer.fit(rows)
        >>> bundle = trainer.export("ages")
        >>> export_onnx(bundle, "ages.onnx")
        {'age': 'numbers', 'job': 'text'}
        >>> session = onnxruntime.InferenceSession("ages.onnx")
        >>> (scores,) = session.run(["scores"], onnx_inputs(bundle, rows))
        >>> bool(abs(scores - bundle.score(rows)).max() < 1e-5)
        True
    """
    with extra_imports():
        import onnx  # noqa: F401
        import onnxruntime
    exporter = _Exporter(bundle)
    try:
        content = exporter.build()
    except BundleError as error:
        raise BundleError(f"{bundle.path}: no ONNX model of it: {error}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    _check(bundle, session)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return exporter.roles


def onnx_inputs(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """Return rows as the inputs of the bundle's ONNX model.

    A null, or an absent key, is the text ``"␀"`` (U+2400), the integer -2**63, or NaN. Ids and
    weights of what ONNX cannot encode are those of :meth:`widedeep.Bundle.encode`.

    Args:
        bundle: The bundle that was exported.
        rows: One mapping a row, from column to value.

    Returns:
        Arrays by the name of the input, for ``onnxruntime.InferenceSession.run``.

    Raises:
        FeatureError: If a value does not fit its feature.
    """
    return _Exporter(bundle).feed(rows, bundle.encode(rows))


def _check(bundle: Bundle, session: Any) -> None:
    """Hold the model's logits and scores against the bundle's, on stored rows and made-up ones."""
    if not bundle.warmup.rows:
        raise BundleError(
            f"{bundle.path}: got a bundle without stored rows to check an ONNX model on; export it "
            "with warmup=True"
        )
    _check_rows(bundle, session, bundle.warmup.rows, "stored row", TOLERANCE)
    made_up = made_up_rows(Transform(bundle.schema))
    if made_up:
        _check_rows(bundle, session, made_up, "row made up from the schema", _MADE_UP_TOLERANCE)


def _check_rows(
    bundle: Bundle, session: Any, rows: Sequence[Mapping[str, Any]], what: str, tolerance: float
) -> None:
    names = [entry.name for entry in session.get_outputs()]
    results = dict(zip(names, session.run(None, onnx_inputs(bundle, rows)), strict=True))
    logits_BC = bundle.logits(bundle.encode(rows))
    expected: dict[str, NDArray[Any]] = {"logits": logits_BC}
    scores = bundle.scores_by_head(logits_BC)
    expected |= {_score_name(head, bundle): array for head, array in scores.items()}
    for name, array in expected.items():
        errors = np.abs(results[name] - array) / np.maximum(1.0, np.abs(array))
        if not (errors <= tolerance).all():
            row = int(np.nan_to_num(errors, nan=np.inf).reshape(len(rows), -1).max(axis=1).argmax())
            raise BundleError(
                f"{bundle.path}: not written: the ONNX model's {name} of {what} {row} are "
                f"{results[name][row]}, the bundle's {array[row]}; more than {tolerance:g} apart"
            )


def _score_name(head: str, bundle: Bundle) -> str:
    return head if len(bundle.model.heads) > 1 else "scores"


class _Exporter:
    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.schema, self.model = bundle, bundle.schema, bundle.model
        self.encodings = {f.name: f.encoding(self.schema) for f in self.schema.spec.all_features}
        self.slots = [slot.name for slot in self.schema.slots]
        self.roles: dict[str, str] = {}
        self.fixed = self._fixed()

    # ---- which features ONNX can encode ----------------------------------------------------------

    def _fixed(self) -> set[str]:
        """Return the columns whose features have a fixed value when they are scored."""
        by_name = self.schema.spec.by_name
        return {by_name[name].input_columns[0] for name in self.schema.spec.training_only}

    def expressible(self, name: str) -> bool:
        """Tell whether a feature's (or raw column's) value is computed in the graph."""
        encoding = self.encoding_of(name)
        if isinstance(encoding, CountEncoding):
            return self.expressible(encoding.source) or encoding.source in self.slots
        if isinstance(encoding, CrossEncoding):
            if encoding.hash_buckets or name not in self.schema.vocabularies:
                return False
            return self._key_sizes(encoding) is not None and all(
                isinstance(self.encoding_of(part_name), ValueEncoding | BucketEncoding)
                and getattr(self.encoding_of(part_name), "size", 1) == 1
                and self.expressible(part_name)
                for part_name in encoding.parts
            )
        column = self.schema.columns[encoding.column]
        is_time = column.is_time or (column.storage or "").startswith("decimal")
        if is_time or encoding.column in self.fixed or name in self.schema.spec.parallel_names:
            return False
        if isinstance(encoding, ValueEncoding):
            return not column.nested and self._expressible_value(encoding)
        if column.kind == "string":
            return False
        if isinstance(encoding, NumberEncoding):
            return not encoding.events
        if isinstance(encoding, PiecewiseEncoding):
            return not column.nested and len(encoding.cuts) > 1
        return encoding.size > 1 or not column.nested

    def _expressible_value(self, encoding: ValueEncoding) -> bool:
        kind = self.schema.columns[encoding.column].kind
        if encoding.weights or encoding.parallel or encoding.oov_buckets or encoding.hash_buckets:
            return False
        if encoding.num_buckets:
            return kind == "int"
        values = self.schema.vocabularies[encoding.vocabulary or ""].values
        if isinstance(values, np.ndarray):
            return kind in ("int", "bool") and NULL_INTEGER not in values
        if kind != "string":
            return False
        try:
            return NULL_TEXT not in {value.decode() for value in values.to_pylist()}
        except UnicodeDecodeError:
            return False

    def encoding_of(self, name: str) -> Encoding:
        """Return the encoding of a feature, or of a raw column that a cross reads."""
        return self.encodings.get(name) or ValueEncoding(column=name, vocabulary=name)

    def _key_sizes(self, encoding: CrossEncoding) -> list[int] | None:
        """Return how many ids each part of a cross has; None if a key of 64 bits is too small."""
        sizes = []
        for part_name in encoding.parts:
            if part_name in self.encodings:
                sizes.append(self.schema.id_count(part_name))
            elif part_name in self.schema.vocabularies:
                sizes.append(FIRST_KNOWN_ID + len(self.schema.vocabularies[part_name]))
            else:
                return None
        return sizes if math.prod(sizes) < _LARGEST_KEY else None

    # ---- inputs ----------------------------------------------------------------------------------

    def _needed(self) -> tuple[list[str], list[str]]:
        """Return the features that come in as ids, and those that come in as numbers."""
        names = {*self.model.wide, *(s.name for s in self.model.sequences)}
        names |= {column.name for column in self.model.deep if column.source == "table"}
        dense = {column.name for column in self.model.deep if column.source == "dense"}
        dense |= set(self.schema.spec.extra)
        for name in dense:
            encoding = self.encodings[name]
            if isinstance(encoding, CountEncoding) and self.expressible(name):
                names.add(encoding.source)
        numbers = [n for n in self.schema.dense_layout if n in dense and not self.expressible(n)]
        return [n for n in self.slots if n in names and not self.expressible(n)], numbers

    def _raw_columns(self) -> list[str]:
        """Return the raw columns that the graph reads."""
        used: set[str] = set()

        def visit(name: str) -> None:
            encoding = self.encoding_of(name)
            if not self.expressible(name):
                return
            if isinstance(encoding, CountEncoding):
                visit(encoding.source)
            elif isinstance(encoding, CrossEncoding):
                for part_name in encoding.parts:
                    visit(part_name)
            else:
                used.add(encoding.column)

        names = [*self.model.wide, *(column.name for column in self.model.deep)]
        for name in [*names, *self.schema.spec.extra]:
            visit(name)
        return [column for column in self.bundle.input_columns if column in used]

    def _role(self, column: str) -> str:
        """Return how a raw column comes in: as text, integers or numbers."""
        if self.schema.columns[column].kind == "string":
            return "text"
        by_value = any(
            isinstance(encoding, ValueEncoding) and encoding.column == column
            for encoding in [*self.encodings.values(), *map(self.encoding_of, self._raw_parts())]
        )
        return "integers" if by_value else "numbers"

    def _raw_parts(self) -> set[str]:
        crosses = [e for e in self.encodings.values() if isinstance(e, CrossEncoding)]
        return {p for cross in crosses for p in cross.parts if p not in self.encodings}

    def _width(self, column: str) -> int:
        """Return the length of a column's vectors; 0 for single numbers."""
        for encoding in self.encodings.values():
            if isinstance(encoding, NumberEncoding) and encoding.column == column:
                size = len(encoding.fit.shift)
            elif isinstance(encoding, BucketEncoding) and encoding.column == column:
                size = encoding.size
            else:
                continue
            if size > 1 or self.schema.columns[column].nested:
                return size
        return 0

    def feed(self, rows: Sequence[Mapping[str, Any]], batch: Batch) -> dict[str, NDArray[Any]]:
        """Return the inputs of the model for rows and the batch that they make."""
        feed: dict[str, NDArray[Any]] = {}
        for column in self._raw_columns():
            role, width = self._role(column), self._width(column)
            values = [row.get(column) for row in rows]
            if role == "text":
                texts = [_text(value) for value in values]
                feed[column] = np.array(texts, dtype=object)
            elif role == "integers":
                integers = [NULL_INTEGER if _is_null(v) else int(v or 0) for v in values]
                feed[column] = np.array(integers, np.int64)
            else:
                none = [None] * width if width else None
                numbers = [none if _is_null(value) else value for value in values]
                feed[column] = np.array(numbers, np.float64)
        ids, dense = self._needed()
        for name in ids:
            slot = self.slots.index(name)
            cells = batch.cells(slot)
            places = self._places(name)
            count = cells.longest if places is None else places
            padded = np.full((len(batch), count), -1, np.int64)
            padded.reshape(-1)[cells.places(count)] = cells.ids_N
            feed[f"{name}/ids"] = padded
            if self._is_weighed(name):
                weights = np.zeros((len(batch), count), np.float32)
                weights.reshape(-1)[cells.places(count)] = (
                    1.0 if cells.values_N is None else cells.values_N
                )
                feed[f"{name}/weights"] = weights
        layout = self.schema.dense_layout
        feed |= {f"{name}/numbers": batch.dense_BK[:, layout[name]] for name in dense}
        return feed

    def _places(self, name: str) -> int | None:
        """Return the length that a sequence is padded to; None: any."""
        return next((s.maxlen for s in self.model.sequences if s.name == name), None)

    def _is_weighed(self, name: str) -> bool:
        encoding = self.encodings[name]
        weighed = isinstance(encoding, ValueEncoding) and encoding.weights is not None
        return weighed or isinstance(encoding, NumberEncoding | PiecewiseEncoding)

    # ---- the graph -------------------------------------------------------------------------------

    def build(self) -> bytes:
        """Return the model as bytes."""
        self.graph = graph = GraphBuilder()
        self._columns: dict[str, Value] = {}
        self._cells: dict[str, _Ids] = {}
        self._numbers: dict[str, Value] = {}
        self._declare()
        bias = graph.constant(self.bundle.weights["bias"][None], np.float32)
        logits_BC = functools.reduce(operator.add, [*self._wide(), *self._deep(), bias])
        graph.output("logits", logits_BC, "B", self.model.n_logits)
        for head in self.model.heads:
            shape = ("B", head.stop - head.start) if head.by_class else ("B",)
            name = _score_name(head.name, self.bundle)
            graph.output(name, self._scores(head, logits_BC.cast(np.float64)), *shape)
        metadata = {
            "widedeep.schema": self.schema.fingerprint,
            "widedeep.inputs": json.dumps(self.roles),
            "widedeep.null_text": NULL_TEXT,
            "widedeep.null_integer": str(NULL_INTEGER),
        }
        return graph.model(metadata, __version__)

    def _declare(self) -> None:
        graph, dtypes = self.graph, {"text": str, "integers": np.int64, "numbers": np.float64}
        for column in self._raw_columns():
            role, width = self._role(column), self._width(column)
            shape = ("B", width) if width else ("B",)
            self._columns[column] = graph.input(column, dtypes[role], *shape)
            self.roles[column] = role
        ids, numbers = self._needed()
        for name in ids:
            places: int | str | None = self._places(name)
            places = f"L/{name}" if places is None else places
            source, weights = graph.input(f"{name}/ids", np.int64, "B", places), None
            self.roles[source.name] = "ids"
            if self._is_weighed(name):
                weights = graph.input(f"{name}/weights", np.float32, "B", places)
                self.roles[weights.name] = "weights"
            self._cells[name] = _Ids(source, weights)
        layout = self.schema.dense_layout
        for name in numbers:
            width = layout[name].stop - layout[name].start
            self._numbers[name] = graph.input(f"{name}/numbers", np.float32, "B", width)
            self.roles[f"{name}/numbers"] = "numbers"

    def _wide(self) -> list[Value]:
        """Return what each feature adds to the logits, (B, C)."""
        by_name = {slot.name: slot for slot in self.schema.slots}
        return [
            self._pooled(
                self.cells(name),
                self.bundle.weights[f"wide/{name}"],
                by_name[name].wide_combiner(self.model.wide_combiner),
            )
            for name in self.model.wide
        ]

    def _pooled(self, cells: _Ids, table: NDArray[np.float32], combiner: str) -> Value:
        """Return a feature's rows of a table summed, averaged, or their maximum, (B, D)."""
        if cells.constant is not None:  # of numbers: their weights times a few rows
            assert cells.weights is not None
            pooled, weights_BL = cells.weights @ table[cells.constant], cells.weights
        else:
            known_BL, weights_BL = self._known(cells)
            rows_BLD = self.graph.constant(table, np.float32).take(known_BL)
            if combiner == "max":
                return self._largest(weights_BL, rows_BLD)
            product_B1D = weights_BL.unsqueeze(1) @ rows_BLD
            pooled = product_B1D.node("Squeeze", self.graph.constant([1], np.int64))
        if combiner == "sum":
            return pooled
        if combiner == "sqrtn":
            divisor_B = (weights_BL * weights_BL).sum(1).node("Sqrt")
        else:
            divisor_B = weights_BL.sum(1)
        nothing_B = divisor_B.equals(0.0)
        scale_B = nothing_B.where(0.0, 1.0 / nothing_B.where(1.0, divisor_B))
        return pooled * scale_B.reshape(-1, 1)

    def _largest(self, weights_BL: Value, rows_BLD: Value) -> Value:
        """Return the elementwise maximum of the rows that are there, 0 without one, (B, D)."""
        lowest = float(np.finfo(np.float32).min)
        listed_BLD = weights_BL.unsqueeze(2).equals(0.0).where(lowest, rows_BLD)
        largest_BD = listed_BLD.node("ReduceMax", axes=[1], keepdims=0)
        return weights_BL.sum(1).equals(0.0).reshape(-1, 1).where(0.0, largest_BD)

    def _known(self, cells: _Ids) -> tuple[Value, Value]:
        """Return ids with 0 for none, and weights with 0 there, (B, L)."""
        assert cells.ids is not None
        is_known = (cells.ids >= 0).cast(np.float32)
        if cells.weights is not None:
            is_known = is_known * cells.weights
        return cells.ids.node("Max", 0), is_known

    # ---- ids -------------------------------------------------------------------------------------

    def cells(self, name: str) -> _Ids:
        """Return the ids of a feature, or of a raw column."""
        if name not in self._cells:
            self._cells[name] = self._encode(name)
        return self._cells[name]

    def ids(self, name: str) -> Value:
        """Return the ids of a feature, or of a raw column, that is no number."""
        ids = self.cells(name).ids
        assert ids is not None
        return ids

    def _encode(self, name: str) -> _Ids:
        encoding = self.encoding_of(name)
        if isinstance(encoding, NumberEncoding):
            layout = self.schema.dense_layout[name]
            ids = FIRST_KNOWN_ID + np.arange(layout.stop - layout.start)
            return _Ids(None, self.numbers(name), ids)
        if isinstance(encoding, BucketEncoding) and encoding.size > 1:
            return _Ids(self._vector_buckets(encoding))
        if isinstance(encoding, PiecewiseEncoding):
            return self._piecewise(encoding)
        if isinstance(encoding, CrossEncoding):
            ids_B = self._cross(name, encoding)
        elif isinstance(encoding, BucketEncoding):
            value_B = self._number(encoding.column)
            bucket_B = value_B.count_at_least(encoding.boundaries)
            ids_B = value_B.is_nan().where(_MISSING_ID, bucket_B + FIRST_KNOWN_ID)
        else:
            assert isinstance(encoding, ValueEncoding)
            ids_B = self._value(encoding)
        return _Ids(ids_B.reshape(-1, 1))

    def _value(self, encoding: ValueEncoding) -> Value:
        """Return the id of each value of a column, (B,)."""
        default = 0 if encoding.default is None else FIRST_KNOWN_ID + encoding.default
        if encoding.default is None and encoding.drop_unseen:
            default = -1
        column = self._columns[encoding.column]
        if encoding.num_buckets:
            inside = (column >= 0) & (column < encoding.num_buckets)
            ids_B = inside.where(column + FIRST_KNOWN_ID, default)
            return column.equals(NULL_INTEGER).where(_MISSING_ID, ids_B)
        values = self.schema.vocabularies[encoding.vocabulary or ""].values
        keys: list[Any]
        nulls: list[Any]
        if isinstance(values, np.ndarray):
            keys, nulls = values.tolist(), [NULL_INTEGER]
        else:
            keys, nulls = [value.decode() for value in values.to_pylist()], [NULL_TEXT]
            nulls += [""] if encoding.empty_as_null else []
        ids = dict(zip(keys, range(FIRST_KNOWN_ID, FIRST_KNOWN_ID + len(keys)), strict=True))
        ids |= dict.fromkeys(nulls, _MISSING_ID)
        return column.look_up(list(ids), list(ids.values()), default)

    def _cross(self, name: str, encoding: CrossEncoding) -> Value:
        """Return the id of the combination of the parts' ids; -1 where one is null or has none."""
        sizes = self._key_sizes(encoding)
        assert sizes is not None
        strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
        parts = [self.ids(part_name).reshape(-1) for part_name in encoding.parts]
        key_B = functools.reduce(operator.add, map(operator.mul, parts, strides))
        absent = [ids_B.equals(_MISSING_ID) | (ids_B < 0) for ids_B in parts]
        is_absent = functools.reduce(operator.or_, absent)
        combinations = np.asarray(self.schema.vocabularies[name].values)
        keys = combinations @ np.array(strides, np.int64)
        ids = range(FIRST_KNOWN_ID, FIRST_KNOWN_ID + len(keys))
        # An encoder of integers needs a key; no combination has a negative one.
        return is_absent.where(-1, key_B.look_up([-1, *keys.tolist()], [0, *ids], 0))

    def _vector_buckets(self, encoding: BucketEncoding) -> Value:
        cuts, size = encoding.boundaries, encoding.size
        value_BS = self._number(encoding.column)
        bucket_BS = (value_BS.reshape(-1, size, 1) >= cuts[None, None]).cast(np.int64).sum(2)
        firsts = FIRST_KNOWN_ID + np.arange(size) * (len(cuts) + 1)
        null_BS = value_BS.is_nan()
        ids_BS = null_BS.where(-1, bucket_BS + firsts[None])
        # A row of nulls alone has the id of a missing value.
        all_null = null_BS.cast(np.int64).sum(1).equals(size)
        ids_B = all_null.where(self.graph.constant(_MISSING_ID, np.int64), -1)
        return self.graph.concat([ids_BS, ids_B.reshape(-1, 1)])

    def _piecewise(self, encoding: PiecewiseEncoding) -> _Ids:
        graph, cuts = self.graph, encoding.cuts
        value_B = self._number(encoding.column)
        is_null = value_B.is_nan()
        inside_B = is_null.where(cuts[0], value_B).clip(cuts[0], cuts[-1])
        place_B, fraction_B = inside_B.between(cuts)
        lower_B = place_B + FIRST_KNOWN_ID
        ids_B2 = graph.columns([is_null.where(_MISSING_ID, lower_B), lower_B + 1])
        return _Ids(ids_B2, graph.columns([1.0 - fraction_B, fraction_B]).cast(np.float32))

    # ---- numbers ---------------------------------------------------------------------------------

    def _number(self, name: str) -> Value:
        """Return a column as float64, NaN for nulls, rounded to how it was stored."""
        column = self._columns[name]
        if self._role(name) == "integers":
            return column.equals(NULL_INTEGER).where(np.nan, column.cast(np.float64))
        storage = self.schema.columns[name].storage
        if storage in ("float16", "float32"):
            return column.cast(np.dtype(storage)).cast(np.float64)
        return column

    def numbers(self, name: str) -> Value:
        """Return the dense columns of a feature, (B, n) float32."""
        if name not in self._numbers:
            encoding = self.encodings[name]
            if isinstance(encoding, CountEncoding):
                self._numbers[name] = self._counts(encoding)
            else:
                assert isinstance(encoding, NumberEncoding)
                self._numbers[name] = self._scaled(encoding)
        return self._numbers[name]

    def _scaled(self, encoding: NumberEncoding) -> Value:
        fit = encoding.fit
        value_BS = self._number(encoding.column)
        if not self._width(encoding.column):
            value_BS = value_BS.reshape(-1, 1)
        null_BS = value_BS.is_nan()
        scaled_BS = null_BS.where(0.0, value_BS)
        if encoding.transform == "quantile":
            columns = []
            for component, cuts in enumerate(fit.boundaries):
                points = cuts if len(cuts) > 1 else np.zeros(1)
                picked = scaled_BS.take(component, axis=1)
                columns.append(picked.interpolate(points, np.linspace(0.0, 1.0, len(points))))
            scaled_BS = self.graph.columns(columns)
        elif encoding.transform != "none":
            if encoding.transform == "log1p":
                logarithm = (scaled_BS.node("Abs") + 1.0).node("Log")
                scaled_BS = scaled_BS.node("Sign") * logarithm
            scaled_BS = (scaled_BS - fit.shift[None]) * fit.scale[None]
        numbers_BS = null_BS.where(fit.fill[None], scaled_BS.cast(np.float32))
        if not encoding.indicator:
            return numbers_BS
        return self.graph.concat([numbers_BS, null_BS.cast(np.float32)])

    def _counts(self, encoding: CountEncoding) -> Value:
        ids = np.arange(FIRST_KNOWN_ID, FIRST_KNOWN_ID + encoding.width)
        hits = self.ids(encoding.source).unsqueeze(2).equals(ids[None, None]).cast(np.float32)
        weights = self.cells(encoding.source).weights
        return (hits if weights is None else hits * weights.unsqueeze(2)).sum(1)

    # ---- towers ----------------------------------------------------------------------------------

    def _deep(self) -> list[Value]:
        """Return the towers' part of the logits, (B, C); nothing without towers."""
        bundle, model, graph = self.bundle, self.model, self.graph
        if bundle.program is not None:
            columns_of = stage_columns(self.schema, model)
            sequences_of = stage_sequences(self.schema, model)
            stages = [self._flat(*each) for each in zip(columns_of, sequences_of, strict=True)]
            return [ProgramNodes(graph, bundle.program.program, bundle.weights).add(stages)]
        if not model.deep:
            return []
        hidden = graph.concat([self._column(column) for column in model.deep])
        if bundle.manifest.engine == "onnx":
            inputs = {"concat_BX": hidden}
            inputs |= {f"extra/{name}": self.numbers(name) for name in self.schema.spec.extra}
            for sequence in model.sequences:
                inputs |= self._sequence(sequence)
            return [graph.merge((bundle.path / GRAPH).read_bytes(), inputs, "logits_BC")]
        weights = bundle.weights
        for layer in range(len(model.hidden_units)):
            total = hidden @ weights[f"mlp/{layer}/weight"].T + weights[f"mlp/{layer}/bias"]
            hidden = total.activation(model.activation)
        return [hidden @ weights["head/weight"].T]

    def _column(self, column: DeepColumn) -> Value:
        """Return a feature's columns of the deep input, (B, n)."""
        if column.source == "dense":
            return self.numbers(column.name)
        return self._pooled(
            self.cells(column.name), self._table(column.name), column.combiner or "sum"
        )

    def _table(self, name: str) -> NDArray[np.float32]:
        table = next(slot.table for slot in self.schema.slots if slot.name == name)
        return self.bundle.weights[f"table/{table}"]

    def _sequence(self, sequence: BundleSequence) -> dict[str, Value]:
        """Return a sequence's embeddings (B, T, D), mask and weights (B, T)."""
        known_BT, weights_BT = self._known(self.cells(sequence.name))
        mask_BT = self.ids(sequence.name) >= 0
        rows_BTD = self.graph.constant(self._table(sequence.name), np.float32).take(known_BT)
        values_BTD = rows_BTD * mask_BT.cast(np.float32).unsqueeze(2)
        names = sequence_shapes(sequence)
        return dict(zip(names, (values_BTD, mask_BT, weights_BT), strict=True))

    def _flat(
        self, columns: Sequence[DeepColumn], sequences: Sequence[BundleSequence]
    ) -> Value | None:
        """Return the columns and sequences of a program's stage side by side, (B, n)."""
        pieces = [self._column(column) for column in columns]
        for sequence in sequences:
            values, mask, weights = self._sequence(sequence).values()
            pieces.append(values.reshape(-1, sequence.maxlen * sequence.width))
            pieces += [mask.cast(np.float32), weights]
        return self.graph.concat(pieces) if pieces else None

    # ---- scores ----------------------------------------------------------------------------------

    def _scores(self, head: BundleHead, logits_BC: Value) -> Value:
        """Return the scores of a head, float64."""
        logit = logits_BC.take(head.start, axis=1)
        curve = self.bundle.calibration.get(head.name)
        if curve is not None:
            return _calibrated(curve, logit)
        if head.by_class:
            own = logits_BC.take(np.arange(head.start, head.stop), axis=1)
            return own.node("Softmax", axis=1) if head.link == "softmax" else own.sigmoid()
        if head.link == "sigmoid":
            if head.through is None:
                return logit.sigmoid()
            return logit.sigmoid() * logits_BC.take(head.through, axis=1).sigmoid()
        if head.link == "ziln":
            sigma = logits_BC.take(head.start + 2, axis=1).softplus().node("Max", _SMALLEST_SIGMA)
            mean = logits_BC.take(head.start + 1, axis=1) + sigma * sigma * 0.5
            return mean.node("Exp") * logit.sigmoid()
        if head.link in ("exp", "expm1"):
            power = logit.node("Exp")
            return power if head.link == "exp" else power - 1.0
        return logit.softplus() if head.link == "softplus" else logit


def _calibrated(curve: Calibration, logit_B: Value) -> Value:
    """Return the probabilities that a curve gives for logits."""
    if isinstance(curve, PriorCorrection):
        curve = Platt(slope=1.0, intercept=float(np.log(curve.rate)))
    if isinstance(curve, Platt):
        return (logit_B * curve.slope + curve.intercept).sigmoid()
    assert isinstance(curve, Isotonic)
    x, y = np.array(curve.logits), np.array(curve.values)
    if curve.slope is None:
        return logit_B.interpolate(x, y)
    middle = logit_B.interpolate(x, np.log(y / (1.0 - y)))
    below, above = logit_B - float(x[0]), logit_B - float(x[-1])
    beyond = below.node("Min", 0.0) + above.node("Max", 0.0)
    return (middle + beyond * curve.slope).sigmoid()


def _is_null(value: object) -> bool:
    return value is None or value != value


def _text(value: object) -> str:
    if _is_null(value):
        return NULL_TEXT
    return value.decode() if isinstance(value, bytes) else str(value)
