"""The pass of ``fit_schema`` over a label: its classes, or its mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.data.column_values import Chunk, read_numbers
from widedeep.data.counting import ValueCounter
from widedeep.data.fit_scans import Found, Scan
from widedeep.data.number_fit import NumberSummary
from widedeep.errors import FeatureError
from widedeep.schema import ColumnType

_SHOWN_CLASSES = 10
_NUMBER = re.compile(r"[+-]?[0-9]+([.][0-9]*)?([eE][+-]?[0-9]+)?")

# Its square, summed over a batch, stays within float32.
LARGEST_LABEL = 1e17


def scan_label(
    scan: Scan, head: str, column: str, kind: ColumnType, vocabulary: Sequence[str] | None
) -> Found:
    """Learn the classes of a text label, the mean of any other."""
    name = f"label {column!r}"
    if kind.nested:
        raise FeatureError(
            f"{name}: got a column of lists, expected one value a row; "
            "name a column for each label: label=[...]"
        )
    if kind.kind == "string":
        return _scan_classes(scan, head, column, name, vocabulary)
    return _scan_mean(scan, head, column, name)


def _scan_mean(scan: Scan, head: str, column: str, name: str) -> Found:
    summary = NumberSummary(())
    for chunk in scan.chunks(column):
        values = read_numbers(chunk, name)
        missing = np.isnan(values)
        if missing.any():
            raise _missing_label(chunk, name, int(missing.argmax()))
        beyond = np.abs(values) > LARGEST_LABEL
        if beyond.any():
            row = int(beyond.argmax())
            raise chunk.refuse(
                name,
                row,
                f"got {values[row]:g}, expected a finite number of at most 1e17; correct it or "
                "drop the row",
            )
        summary.add(values)
    notes = []
    if summary.minimum == summary.maximum:
        notes.append(f"{name}: {summary.minimum:g} in every row, so there is nothing to tell apart")
    return Found(nulls={column: 0}, label_means={head: summary.mean}, notes=notes)


def _missing_label(chunk: Chunk, name: str, row: int) -> FeatureError:
    got = chunk.array[row].as_py()
    shown = "null" if got is None else repr(got)
    return chunk.refuse(name, row, f"got {shown}, expected a label in every row; drop the row")


def _scan_classes(
    scan: Scan, head: str, column: str, name: str, vocabulary: Sequence[str] | None
) -> Found:
    known = pa.array(vocabulary, pa.string()) if vocabulary else None
    with ValueCounter("bytes", memory_limit_bytes=scan.counter_bytes) as counter:
        for chunk in scan.chunks(column):
            texts = chunk.array
            if pa.types.is_dictionary(texts.type):
                texts = texts.dictionary_decode()
            if texts.null_count:
                raise _missing_label(chunk, name, int(np.asarray(texts.is_null()).argmax()))
            if known is not None:
                _check_known(chunk, texts, known, name)
            counter.add(texts)
        values, _ = counter.result()
    seen = sorted(value.as_py() for value in values)
    classes = tuple(value.decode("utf-8", "replace") for value in seen)
    if vocabulary is None:
        _check_no_numbers(classes, name)
    found = Found(nulls={column: 0}, classes={head: tuple(vocabulary or classes)})
    if len(classes) == 1:
        found.notes.append(
            f"{name}: {classes[0]!r} in every row, so there is nothing to tell apart"
        )
    absent = sorted(set(vocabulary or ()) - set(classes))
    if absent:
        found.notes.append(f"{name}: no row has {', '.join(map(repr, absent[:_SHOWN_CLASSES]))}")
    return found


def _check_no_numbers(classes: Sequence[str], name: str) -> None:
    """Refuse classes that are numbers but for some: a mark such as NA is no class of its own."""
    numbers = [text for text in classes if _NUMBER.fullmatch(text)]
    if 0 < len(numbers) < len(classes):
        others = [text for text in classes if text not in numbers]
        raise FeatureError(
            f"{name}: got numbers such as {numbers[0]!r}, and {others[0]!r}, which is none; "
            "correct or drop the rows that hold it; if these are names of classes, list them in "
            "label_vocabulary"
        )


def _check_known(chunk: Chunk, texts: pa.Array, known: pa.Array, name: str) -> None:
    unknown = ~np.asarray(pc.is_in(texts.cast(pa.string()), known))
    if unknown.any():
        row = int(unknown.argmax())
        allowed = known.to_pylist()[:_SHOWN_CLASSES]
        raise chunk.refuse(
            name,
            row,
            f"got {texts[row].as_py()!r}, expected one of {allowed}; "
            "add it to label_vocabulary, or drop the row",
        )
