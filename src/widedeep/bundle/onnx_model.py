"""A bundle as one ONNX model, from raw columns to scores, checked against the bundle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep._version import __version__
from widedeep.bundle.bundle import Bundle, by_head
from widedeep.bundle.calibration import Calibration, Isotonic, Platt, PriorCorrection
from widedeep.bundle.graph import sequence_shapes, stage_columns, stage_sequences
from widedeep.bundle.layout import GRAPH, BundleHead, BundleSequence
from widedeep.bundle.onnx_graph import GraphBuilder, ProgramNodes
from widedeep.data.batch import Batch
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
_MISSING_ID = 1
_LARGEST_KEY = 2**62
_SMALLEST_SIGMA = 2.0**-12


@dataclass(frozen=True, slots=True)
class _Ids:
    """A feature's ids in the graph: (B, L), -1 where there is none, and their weights."""

    ids: str
    weights: str | None = None  # (B, L) float32; None: 1
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
    """Hold the model's logits and scores against the bundle's, on its stored rows."""
    rows = bundle.warmup.rows
    if not rows:
        raise BundleError(
            f"{bundle.path}: got a bundle without stored rows to check an ONNX model on; export it "
            "with warmup=True"
        )
    batch = bundle.encode(rows)
    names = [entry.name for entry in session.get_outputs()]
    results = dict(zip(names, session.run(None, onnx_inputs(bundle, rows)), strict=True))
    logits_BC = bundle.logits(batch)
    expected: dict[str, NDArray[Any]] = {"logits": logits_BC}
    scores = by_head(bundle.model, bundle.scores_of(logits_BC))
    expected |= {_score_name(head, bundle): array for head, array in scores.items()}
    for name, array in expected.items():
        errors = np.abs(results[name] - array) / np.maximum(1.0, np.abs(array))
        if not (errors <= TOLERANCE).all():
            row = int(np.nan_to_num(errors, nan=np.inf).reshape(len(rows), -1).max(axis=1).argmax())
            raise BundleError(
                f"{bundle.path}: not written: the ONNX model's {name} of stored row {row} are "
                f"{results[name][row]}, the bundle's {array[row]}; more than {TOLERANCE:g} apart"
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
        self._cells: dict[str, _Ids] = {}
        self._numbers: dict[str, str] = {}
        self._declare()
        logits_BC = graph.add([*self._wide(), *self._deep(), self._bias()])
        graph.output("logits", logits_BC, np.float32, "B", self.model.n_logits)
        for head in self.model.heads:
            scores = self._scores(head, logits_BC)
            shape = ("B", head.stop - head.start) if head.by_class else ("B",)
            graph.output(_score_name(head.name, self.bundle), scores, np.float64, *shape)
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
            graph.input(column, dtypes[role], "B", *((width,) if width else ()))
            self.roles[column] = role
        ids, numbers = self._needed()
        for name in ids:
            places: int | str | None = self._places(name)
            shape = ("B", f"L/{name}" if places is None else places)
            source = graph.input(f"{name}/ids", np.int64, *shape)
            weights = None
            self.roles[source] = "ids"
            if self._is_weighed(name):
                weights = graph.input(f"{name}/weights", np.float32, *shape)
                self.roles[weights] = "weights"
            self._cells[name] = _Ids(source, weights)
        layout = self.schema.dense_layout
        for name in numbers:
            width = layout[name].stop - layout[name].start
            self._numbers[name] = graph.input(f"{name}/numbers", np.float32, "B", width)
            self.roles[f"{name}/numbers"] = "numbers"

    def _bias(self) -> str:
        return self.graph.constant(self.bundle.weights["bias"][None], np.float32)

    def _wide(self) -> list[str]:
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

    def _pooled(self, cells: _Ids, table: NDArray[np.float32], combiner: str) -> str:
        """Return the weighted sum, or mean, of a feature's rows of a table, (B, D)."""
        graph = self.graph
        if cells.constant is not None:  # of numbers: their weights times a few rows
            assert cells.weights is not None
            rows = graph.constant(table[cells.constant], np.float32)
            pooled, weights_BL = graph.node("MatMul", cells.weights, rows), cells.weights
        else:
            known_BL, weights_BL = self._known(cells)
            rows_BLD = graph.node("Gather", graph.constant(table, np.float32), known_BL)
            weights_B1L = graph.node("Unsqueeze", weights_BL, graph.constant([1], np.int64))
            pooled = graph.node(
                "Squeeze",
                graph.node("MatMul", weights_B1L, rows_BLD),
                graph.constant([1], np.int64),
            )
        if combiner == "sum":
            return pooled
        squares = graph.node("Mul", weights_BL, weights_BL) if combiner == "sqrtn" else weights_BL
        divisor_B = graph.sum_over(squares, 1)
        if combiner == "sqrtn":
            divisor_B = graph.node("Sqrt", divisor_B)
        zero, one = (graph.constant(number, np.float32) for number in (0.0, 1.0))
        nothing_B = graph.node("Equal", divisor_B, zero)
        divisor_B = graph.node("Where", nothing_B, one, divisor_B)
        scale_B = graph.node("Where", nothing_B, zero, graph.node("Div", one, divisor_B))
        return graph.node("Mul", pooled, graph.reshape(scale_B, -1, 1))

    def _known(self, cells: _Ids) -> tuple[str, str]:
        """Return ids with 0 for none, and weights with 0 there, (B, L)."""
        graph, zero = self.graph, self.graph.constant(0, np.int64)
        is_known = graph.cast(graph.node("GreaterOrEqual", cells.ids, zero), np.float32)
        if cells.weights is not None:
            is_known = graph.node("Mul", is_known, cells.weights)
        return graph.node("Max", cells.ids, zero), is_known

    # ---- ids -------------------------------------------------------------------------------------

    def cells(self, name: str) -> _Ids:
        """Return the ids of a feature, or of a raw column."""
        if name not in self._cells:
            self._cells[name] = self._encode(name)
        return self._cells[name]

    def _encode(self, name: str) -> _Ids:
        graph, encoding = self.graph, self.encoding_of(name)
        if isinstance(encoding, NumberEncoding):
            layout = self.schema.dense_layout[name]
            ids = FIRST_KNOWN_ID + np.arange(layout.stop - layout.start)
            return _Ids("", self.numbers(name), ids)
        if isinstance(encoding, BucketEncoding) and encoding.size > 1:
            return _Ids(self._vector_buckets(encoding))
        if isinstance(encoding, PiecewiseEncoding):
            return self._piecewise(encoding)
        if isinstance(encoding, CrossEncoding):
            ids_B = self._cross(name, encoding)
        elif isinstance(encoding, BucketEncoding):
            value_B = self._number(encoding.column)
            bucket_B = graph.count_at_least(value_B, encoding.boundaries)
            first = graph.constant(FIRST_KNOWN_ID, np.int64)
            ids_B = self._or_missing(value_B, graph.node("Add", bucket_B, first))
        else:
            assert isinstance(encoding, ValueEncoding)
            ids_B = self._value(encoding)
        return _Ids(graph.reshape(ids_B, -1, 1))

    def _or_missing(self, value_B: str, ids_B: str) -> str:
        graph = self.graph
        missing = graph.constant(_MISSING_ID, np.int64)
        return graph.node("Where", graph.node("IsNaN", value_B), missing, ids_B)

    def _value(self, encoding: ValueEncoding) -> str:
        """Return the id of each value of a column, (B,)."""
        default = 0 if encoding.default is None else FIRST_KNOWN_ID + encoding.default
        if encoding.default is None and encoding.drop_unseen:
            default = -1
        graph = self.graph
        if encoding.num_buckets:
            low, high = (graph.constant(n, np.int64) for n in (0, encoding.num_buckets))
            column = encoding.column
            inside = graph.node(
                "And",
                graph.node("GreaterOrEqual", column, low),
                graph.node("Less", column, high),
            )
            first, other, missing, null = (
                graph.constant(n, np.int64)
                for n in (FIRST_KNOWN_ID, default, _MISSING_ID, NULL_INTEGER)
            )
            ids_B = graph.node("Where", inside, graph.node("Add", column, first), other)
            return graph.node("Where", graph.node("Equal", column, null), missing, ids_B)
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
        return graph.look_up(encoding.column, list(ids), list(ids.values()), default)

    def _cross(self, name: str, encoding: CrossEncoding) -> str:
        """Return the id of the combination of the parts' ids; -1 where one is null or has none."""
        graph = self.graph
        sizes = self._key_sizes(encoding)
        assert sizes is not None
        strides = [
            int(np.prod(np.array([1, *sizes[i + 1 :]], dtype=object))) for i in range(len(sizes))
        ]
        missing, none = graph.constant(_MISSING_ID, np.int64), graph.constant(-1, np.int64)
        terms, absent = [], []
        for part_name, stride in zip(encoding.parts, strides, strict=True):
            ids_B = graph.reshape(self.cells(part_name).ids, -1)
            terms.append(graph.node("Mul", ids_B, graph.constant(stride, np.int64)))
            absent.append(graph.node("Equal", ids_B, missing))
            absent.append(graph.node("Less", ids_B, graph.constant(0, np.int64)))
        is_absent = absent[0]
        for flag in absent[1:]:
            is_absent = graph.node("Or", is_absent, flag)
        combinations = np.asarray(self.schema.vocabularies[name].values)
        keys = combinations @ np.array(strides, np.int64)
        ids = range(FIRST_KNOWN_ID, FIRST_KNOWN_ID + len(keys))
        # An encoder of integers needs a key; no combination has a negative one.
        ids_B = graph.look_up(graph.add(terms), [-1, *keys.tolist()], [0, *ids], 0)
        return graph.node("Where", is_absent, none, ids_B)

    def _vector_buckets(self, encoding: BucketEncoding) -> str:
        graph, cuts = self.graph, encoding.boundaries
        value_BS = self._number(encoding.column)
        reaches = graph.node(
            "GreaterOrEqual",
            graph.reshape(value_BS, -1, encoding.size, 1),
            graph.constant(cuts[None, None], np.float64),
        )
        bucket_BS = graph.sum_over(graph.cast(reaches, np.int64), 2)
        firsts = FIRST_KNOWN_ID + np.arange(encoding.size) * (len(cuts) + 1)
        ids_BS = graph.node("Add", bucket_BS, graph.constant(firsts[None], np.int64))
        null_BS = graph.node("IsNaN", value_BS)
        ids_BS = graph.node("Where", null_BS, graph.constant(-1, np.int64), ids_BS)
        # A row of nulls alone has the id of a missing value.
        nulls_B = graph.sum_over(graph.cast(null_BS, np.int64), 1)
        all_null = graph.node("Equal", nulls_B, graph.constant(encoding.size, np.int64))
        missing, none = (graph.constant(n, np.int64) for n in (_MISSING_ID, -1))
        ids_B1 = graph.reshape(graph.node("Where", all_null, missing, none), -1, 1)
        return graph.node("Concat", ids_BS, ids_B1, axis=1)

    def _piecewise(self, encoding: PiecewiseEncoding) -> _Ids:
        graph, cuts = self.graph, encoding.cuts
        value_B = self._number(encoding.column)
        low, high = (graph.constant(end, np.float64) for end in (cuts[0], cuts[-1]))
        is_null = graph.node("IsNaN", value_B)
        known_B = graph.node("Where", is_null, low, value_B)
        inside_B = graph.node("Min", graph.node("Max", known_B, low), high)
        place_B, fraction_B = graph.between(inside_B, cuts)
        second_B = graph.cast(fraction_B, np.float32)
        rest_B = graph.node("Sub", graph.constant(1.0, np.float64), fraction_B)
        one = graph.constant(FIRST_KNOWN_ID, np.int64)
        lower_B = graph.node("Add", place_B, one)
        upper_B = graph.node("Add", lower_B, graph.constant(1, np.int64))
        lower_B = graph.node("Where", is_null, graph.constant(_MISSING_ID, np.int64), lower_B)
        columns = [graph.reshape(value, -1, 1) for value in (lower_B, upper_B)]
        weights = [
            graph.reshape(value, -1, 1) for value in (graph.cast(rest_B, np.float32), second_B)
        ]
        ids_B2 = graph.node("Concat", *columns, axis=1)
        return _Ids(ids_B2, graph.node("Concat", *weights, axis=1))

    # ---- numbers ---------------------------------------------------------------------------------

    def _number(self, column: str) -> str:
        """Return a column as float64, NaN for nulls, rounded to how it was stored."""
        graph, name = self.graph, column
        if self._role(column) == "integers":
            null = graph.node("Equal", column, graph.constant(NULL_INTEGER, np.int64))
            nan = graph.constant(np.nan, np.float64)
            return graph.node("Where", null, nan, graph.cast(column, np.float64))
        storage = self.schema.columns[column].storage
        if storage in ("float16", "float32"):
            name = graph.cast(graph.cast(name, np.dtype(storage)), np.float64)
        return name

    def numbers(self, name: str) -> str:
        """Return the dense columns of a feature, (B, n) float32."""
        if name not in self._numbers:
            encoding = self.encodings[name]
            if isinstance(encoding, CountEncoding):
                self._numbers[name] = self._counts(encoding)
            else:
                assert isinstance(encoding, NumberEncoding)
                self._numbers[name] = self._scaled(encoding)
        return self._numbers[name]

    def _scaled(self, encoding: NumberEncoding) -> str:
        graph, fit = self.graph, encoding.fit
        size = len(fit.shift)
        value_BS = self._number(encoding.column)
        if not self._width(encoding.column):
            value_BS = graph.reshape(value_BS, -1, 1)
        null_BS = graph.node("IsNaN", value_BS)
        known_BS = graph.node("Where", null_BS, graph.constant(0.0, np.float64), value_BS)
        if encoding.transform == "quantile":
            columns = []
            for component, cuts in enumerate(fit.boundaries):
                picked = graph.node("Gather", known_BS, graph.constant(component, np.int64), axis=1)
                points = cuts if len(cuts) > 1 else np.zeros(1)
                steps = np.linspace(0.0, 1.0, len(points)) if len(cuts) > 1 else np.zeros(1)
                columns.append(graph.reshape(graph.interpolate(picked, points, steps), -1, 1))
            scaled_BS = columns[0] if size == 1 else graph.node("Concat", *columns, axis=1)
        elif encoding.transform == "none":
            scaled_BS = known_BS
        else:
            if encoding.transform == "log1p":
                one = graph.constant(1.0, np.float64)
                log = graph.node("Log", graph.node("Add", graph.node("Abs", known_BS), one))
                known_BS = graph.node("Mul", graph.node("Sign", known_BS), log)
            shifted = graph.node("Sub", known_BS, graph.constant(fit.shift[None], np.float64))
            scaled_BS = graph.node("Mul", shifted, graph.constant(fit.scale[None], np.float64))
        fill = graph.constant(fit.fill[None], np.float32)
        numbers_BS = graph.node("Where", null_BS, fill, graph.cast(scaled_BS, np.float32))
        if not encoding.indicator:
            return numbers_BS
        return graph.node("Concat", numbers_BS, graph.cast(null_BS, np.float32), axis=1)

    def _counts(self, encoding: CountEncoding) -> str:
        graph, cells = self.graph, self.cells(encoding.source)
        ids = np.arange(FIRST_KNOWN_ID, FIRST_KNOWN_ID + encoding.width)
        two = graph.constant([2], np.int64)
        ids_BL1 = graph.node("Unsqueeze", cells.ids, two)
        hits = graph.cast(
            graph.node("Equal", ids_BL1, graph.constant(ids[None, None], np.int64)), np.float32
        )
        if cells.weights is not None:
            hits = graph.node("Mul", hits, graph.node("Unsqueeze", cells.weights, two))
        return graph.sum_over(hits, 1)

    # ---- towers ----------------------------------------------------------------------------------

    def _deep(self) -> list[str]:
        """Return the towers' part of the logits, (B, C); nothing without towers."""
        bundle, model, graph = self.bundle, self.model, self.graph
        if bundle.program is not None:
            stages = [
                self._flat([self._column(c.name, c.combiner, c.source) for c in columns], sequences)
                for columns, sequences in zip(
                    stage_columns(self.schema, model),
                    stage_sequences(self.schema, model),
                    strict=True,
                )
            ]
            return [ProgramNodes(graph, bundle.program.program, bundle.weights).add(stages)]
        if not model.deep:
            return []
        pieces = [self._column(c.name, c.combiner, c.source) for c in model.deep]
        concat_BX = graph.node("Concat", *pieces, axis=1) if len(pieces) > 1 else pieces[0]
        if bundle.manifest.engine == "onnx":
            inputs = {"concat_BX": concat_BX}
            inputs |= {f"extra/{name}": self.numbers(name) for name in self.schema.spec.extra}
            for sequence in model.sequences:
                inputs |= self._sequence(sequence)
            return [graph.merge((bundle.path / GRAPH).read_bytes(), inputs, "logits_BC")]
        hidden = concat_BX
        for layer in range(len(model.hidden_units)):
            weight, bias = (
                bundle.weights[f"mlp/{layer}/{part_name}"] for part_name in ("weight", "bias")
            )
            product = graph.node("MatMul", hidden, graph.constant(weight.T, np.float32))
            total = graph.node("Add", product, graph.constant(bias, np.float32))
            hidden = graph.activation(total, model.activation)
        head = graph.constant(bundle.weights["head/weight"].T, np.float32)
        return [graph.node("MatMul", hidden, head)]

    def _column(self, name: str, combiner: str | None, source: str) -> str:
        """Return a feature's columns of the deep input, (B, n)."""
        if source == "dense":
            return self.numbers(name)
        return self._pooled(self.cells(name), self._table(name), combiner or "sum")

    def _table(self, name: str) -> NDArray[np.float32]:
        table = next(slot.table for slot in self.schema.slots if slot.name == name)
        return self.bundle.weights[f"table/{table}"]

    def _sequence(self, sequence: BundleSequence) -> dict[str, str]:
        """Return a sequence's embeddings (B, T, D), mask and weights (B, T)."""
        graph, cells = self.graph, self.cells(sequence.name)
        known_BT, weights_BT = self._known(cells)
        zero = graph.constant(0, np.int64)
        mask_BT = graph.node("GreaterOrEqual", cells.ids, zero)
        table = graph.constant(self._table(sequence.name), np.float32)
        factor_BT1 = graph.node(
            "Unsqueeze", graph.cast(mask_BT, np.float32), graph.constant([2], np.int64)
        )
        values = graph.node("Mul", graph.node("Gather", table, known_BT), factor_BT1)
        return dict(zip(sequence_shapes(sequence), (values, mask_BT, weights_BT), strict=True))

    def _flat(self, columns: list[str], sequences: Sequence[BundleSequence]) -> str:
        """Return the columns and sequences of a program's stage side by side, (B, n)."""
        graph, pieces = self.graph, list(columns)
        for sequence in sequences:
            values, mask, weights = self._sequence(sequence).values()
            pieces.append(graph.reshape(values, -1, sequence.maxlen * sequence.width))
            pieces += [graph.cast(mask, np.float32), weights]
        if not pieces:
            return ""  # No operation reads it
        return graph.node("Concat", *pieces, axis=1)

    # ---- scores ----------------------------------------------------------------------------------

    def _scores(self, head: BundleHead, logits_BC: str) -> str:
        """Return the scores of a head, float64."""
        graph = self.graph
        wide = graph.cast(logits_BC, np.float64)

        def column(index: int) -> str:
            return graph.node("Gather", wide, graph.constant(index, np.int64), axis=1)

        curve = self.bundle.calibration.get(head.name)
        if curve is not None:
            return self._calibrated(curve, column(head.start))
        if head.by_class:
            places = graph.constant(np.arange(head.start, head.stop))
            own = graph.node("Gather", wide, places, axis=1)
            return (
                graph.node("Softmax", own, axis=1) if head.link == "softmax" else graph.sigmoid(own)
            )
        logit = column(head.start)
        if head.link == "sigmoid":
            scores = graph.sigmoid(logit)
            if head.through is not None:
                scores = graph.node("Mul", scores, graph.sigmoid(column(head.through)))
            return scores
        if head.link == "ziln":
            smallest = graph.constant(_SMALLEST_SIGMA, np.float64)
            sigma = graph.node("Max", graph.softplus(column(head.start + 2)), smallest)
            half = graph.constant(0.5, np.float64)
            spread = graph.node("Mul", half, graph.node("Mul", sigma, sigma))
            amount = graph.node("Exp", graph.node("Add", column(head.start + 1), spread))
            return graph.node("Mul", amount, graph.sigmoid(logit))
        if head.link == "exp":
            return graph.node("Exp", logit)
        if head.link == "expm1":
            return graph.node("Sub", graph.node("Exp", logit), graph.constant(1.0, np.float64))
        return graph.softplus(logit) if head.link == "softplus" else logit

    def _calibrated(self, curve: Calibration, logit_B: str) -> str:
        graph = self.graph
        if isinstance(curve, PriorCorrection):
            curve = Platt(slope=1.0, intercept=float(np.log(curve.rate)))
        if isinstance(curve, Platt):
            slope, intercept = (
                graph.constant(number, np.float64) for number in (curve.slope, curve.intercept)
            )
            return graph.sigmoid(graph.node("Add", graph.node("Mul", logit_B, slope), intercept))
        assert isinstance(curve, Isotonic)
        x, y = np.array(curve.logits), np.array(curve.values)
        if curve.slope is None:
            return graph.interpolate(logit_B, x, y)
        middle = graph.interpolate(logit_B, x, np.log(y / (1.0 - y)))
        zero, first, last, slope = (
            graph.constant(number, np.float64) for number in (0.0, x[0], x[-1], curve.slope)
        )
        below = graph.node("Min", graph.node("Sub", logit_B, first), zero)
        above = graph.node("Max", graph.node("Sub", logit_B, last), zero)
        beyond = graph.node("Mul", graph.node("Add", below, above), slope)
        return graph.sigmoid(graph.node("Add", middle, beyond))


def _is_null(value: object) -> bool:
    return value is None or value != value


def _text(value: object) -> str:
    if _is_null(value):
        return NULL_TEXT
    return value.decode() if isinstance(value, bytes) else str(value)
