"""Pretrained vectors of values: read from files or memory, matched with a vocabulary by value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import is_list
from widedeep.errors import DataError, show_value
from widedeep.features import Feature
from widedeep.files import map_tensors
from widedeep.schema import Schema

_COLUMNS = ("value", "vector")
_FORMS = "a .parquet, .arrow, .feather, .npz or .safetensors file"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Vectors:
    """Values and their vectors, one row each."""

    origin: str  # The file, or what was given
    values: pa.Array  # large_binary (text) or int64, without nulls, each once
    vectors_MD: NDArray[np.float32]

    def show(self, row: int) -> str:
        """Return a row and its value, as errors name them."""
        return _show_row(self.origin, self.values, row)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PretrainedRows:
    """The rows of one embedding table that start with pretrained vectors."""

    origin: str
    ids_M: NDArray[np.int64]
    vectors_MD: NDArray[np.float32]
    known: int  # Values of the vocabulary
    unused: int  # Values of the file that are not in the vocabulary

    def __str__(self) -> str:
        """Say how many values were found."""
        missing = self.known - len(self.ids_M)
        return (
            f"{len(self.ids_M):,} of {self.known:,} values found in {self.origin}; "
            f"{missing:,} start as others do, {self.unused:,} of the file are not in the vocabulary"
        )


def read_vectors(source: object) -> Vectors:
    """Read values and their vectors, and check them.

    Args:
        source: A Parquet or Arrow (IPC) file, or a table in memory, with a column of values (text
            or integers) and a column of lists of numbers, named ``value`` and ``vector`` if there
            are others; a ``.npz`` file with the arrays ``values`` and ``vectors``; a
            ``.safetensors`` file with the tensor ``vectors`` and either an integer tensor
            ``values`` or, beside it, a UTF-8 text file of its name (``items.txt``) with one value a
            line; a dict of vectors by value; or a pair of arrays.

    Raises:
        DataError: If it cannot be read; if a value is missing or comes twice; if vectors are
            missing, of unequal width, or hold what is no finite number. It names file, row and
            value.

    Example:
        >>> read_vectors({"cook": [1.0, 0.0], "nurse": [0.0, 1.0]}).vectors_MD.shape
        (2, 2)
    """
    if isinstance(source, (str, os.PathLike)):
        origin = os.fspath(source)
        values, vectors = _read_file(Path(origin))
    elif isinstance(source, Mapping):
        origin = "the dict of vectors"
        values, vectors = list(source), list(source.values())
    elif isinstance(source, tuple) and len(source) == 2:
        origin = "the arrays of vectors"
        values, vectors = source
    else:
        origin = "the table of vectors"
        values, vectors = _columns(_as_table(source, origin), origin)
    values = _plain_values(values, origin)
    vectors_MD = _matrix(vectors, values, origin)
    checked = Vectors(origin=origin, values=values, vectors_MD=vectors_MD)
    _check_rows(checked)
    return checked


def match_rows(
    schema: Schema, feature: Feature, source: object, dim: int, *, copies: int = 1
) -> PretrainedRows:
    """Return the rows of a feature's table that pretrained vectors belong to, by value.

    Raises:
        DataError: If the vectors are damaged, of another width, or of another type than the values.
    """
    where = f"feature {feature.name!r}: its pretrained embeddings"
    vectors = read_vectors(source)
    width = vectors.vectors_MD.shape[1]
    if width != dim:
        raise DataError(
            f"{where} ({vectors.origin}): got vectors of width {width}, but the embedding's width "
            f"is {dim}; give the feature embedding_dim = {width}"
        )
    key = feature.vocabulary_key
    buckets: int | None = getattr(feature, "num_buckets", None)
    size = schema.id_count(feature.name)
    if key is None and buckets is None:
        raise DataError(
            f"{where}: got a feature of the kind {feature.kind_text!r}, expected one with a "
            "vocabulary or num_buckets, whose ids stand for one value each"
        )
    vocabulary = np.arange(buckets or 0) if key is None else schema.vocabularies[key].values
    values = pa.array(vocabulary) if isinstance(vocabulary, np.ndarray) else vocabulary
    if values.type != vectors.values.type and len(values):
        kinds = {pa.int64(): "integers", pa.large_binary(): "text"}
        raise DataError(
            f"{where} ({vectors.origin}): got values that are {kinds[vectors.values.type]}, but "
            f"the feature's values are {kinds[values.type]}; write them as column "
            f"{feature.main_column!r} holds them"
        )
    matches = pc.index_in(vectors.values, value_set=values) if len(values) else pa.nulls(0)
    rows = np.flatnonzero(np.asarray(matches.is_valid()))
    positions = np.asarray(matches.drop_null(), np.int64)
    return PretrainedRows(
        origin=vectors.origin,
        ids_M=positions + (size - len(values)),
        vectors_MD=np.tile(vectors.vectors_MD[rows], (1, copies)),
        known=len(values),
        unused=len(vectors.values) - len(rows),
    )


# ---- reading -------------------------------------------------------------------------------------


def _read_file(path: Path) -> tuple[Any, Any]:
    readers = {
        ".parquet": _read_parquet,
        ".arrow": _read_ipc,
        ".feather": _read_ipc,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: got pretrained vectors in no form that is read; give {_FORMS}")
    try:
        return reader(path)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot read the pretrained vectors ({error})") from error


def _read_parquet(path: Path) -> tuple[Any, Any]:
    import pyarrow.parquet as pq

    return _columns(pq.read_table(path), str(path))


def _read_ipc(path: Path) -> tuple[Any, Any]:
    with pa.memory_map(str(path)) as file:
        return _columns(pa.ipc.open_file(file).read_all(), str(path))


def _read_npz(path: Path) -> tuple[Any, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return _entry(arrays, "values", path), _entry(arrays, "vectors", path)


def _read_safetensors(path: Path) -> tuple[Any, Any]:
    tensors = map_tensors(path)
    vectors = _entry(tensors, "vectors", path)
    if "values" in tensors:
        return tensors["values"], vectors
    lines = path.with_suffix(".txt")
    if not lines.exists():
        raise DataError(
            f"{path}: got vectors without values; add an integer tensor 'values', or write {lines} "
            "with one value a line"
        )
    with lines.open(encoding="utf-8-sig", newline="\n") as file:
        return [line.rstrip("\r\n") for line in file], vectors


def _entry(arrays: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in arrays:
        raise DataError(f"{path}: got the arrays {sorted(arrays)}, expected one named {name!r}")
    return arrays[name]


def _as_table(source: object, origin: str) -> pa.Table:
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if isinstance(source, pa.Table) or hasattr(source, "__arrow_c_stream__"):
        return pa.table(source)
    raise DataError(
        f"{origin}: got {type(source).__name__}, expected {_FORMS}, an Arrow table, a DataFrame, a "
        "dict of vectors by value, or a pair (values, vectors)"
    )


def _columns(table: pa.Table, origin: str) -> tuple[Any, Any]:
    """Return the columns of values and of vectors: by name, or the only one of its type each."""
    if all(name in table.column_names for name in _COLUMNS):
        return table.column("value"), table.column("vector")
    lists = [field.name for field in table.schema if is_list(field.type)]
    others = [field.name for field in table.schema if not is_list(field.type)]
    if len(lists) != 1 or len(others) != 1:
        raise DataError(
            f"{origin}: got the columns {table.column_names}, expected one with values and one "
            "with lists of numbers; name them 'value' and 'vector'"
        )
    return table.column(others[0]), table.column(lists[0])


# ---- checks --------------------------------------------------------------------------------------


def _plain_values(values: Any, origin: str) -> pa.Array:
    """Return values as vocabularies hold them: large_binary or int64, without nulls."""
    try:
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
        raise DataError(f"{origin}: got values of several types ({error})") from None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not len(array):
        raise DataError(f"{origin}: got no vectors, expected at least one")
    if array.null_count:
        row = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise DataError(f"{origin}, row {row}: got no value, expected one in every row")
    kind = array.type
    try:
        if pa.types.is_integer(kind):
            return array.cast(pa.int64())
        if not (pa.types.is_null(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            return array.cast(pa.large_binary())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{origin}: got values of the type {kind} ({error})") from None
    raise DataError(f"{origin}: got values of the type {kind}, expected text or integers")


def _matrix(vectors: Any, values: pa.Array, origin: str) -> NDArray[np.float32]:
    """Return the vectors as rows of one matrix."""
    if isinstance(vectors, (pa.Array, pa.ChunkedArray)):
        return _matrix_of_lists(vectors, values, origin)
    if isinstance(vectors, (list, tuple)):
        lengths = [len(v) if hasattr(v, "__len__") else -1 for v in vectors]
        _check_widths(np.array(lengths, np.int64), values, origin)
    try:
        matrix = np.asarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"{origin}: got vectors that are no numbers ({error})") from None
    if matrix.ndim != 2 or len(matrix) != len(values):
        raise DataError(
            f"{origin}: got vectors of shape {matrix.shape} for {len(values):,} values, expected "
            f"({len(values)}, width)"
        )
    return matrix


def _matrix_of_lists(
    vectors: pa.Array | pa.ChunkedArray, values: pa.Array, origin: str
) -> NDArray[np.float32]:
    lists = vectors.combine_chunks() if isinstance(vectors, pa.ChunkedArray) else vectors
    if not is_list(lists.type):
        raise DataError(
            f"{origin}: got vectors of the type {lists.type}, expected lists of numbers"
        )
    lengths = pc.fill_null(pc.list_value_length(lists), -1)
    _check_widths(np.asarray(lengths, np.int64), values, origin)
    flat = lists.flatten()
    try:
        numbers = np.asarray(flat.cast(pa.float32()).fill_null(np.nan), np.float32)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{origin}: got vectors that are no numbers ({error})") from None
    return numbers.reshape(len(lists), -1)


def _check_widths(lengths_M: NDArray[np.int64], values: pa.Array, origin: str) -> None:
    """Refuse a vector that is missing (-1), or of another width than the most."""
    widths, counts = np.unique(lengths_M[lengths_M > 0], return_counts=True)
    usual = int(widths[counts.argmax()]) if len(widths) else 1  # no vector has a width
    bad = np.flatnonzero(lengths_M != usual)
    if len(bad):
        width = int(lengths_M[bad[0]])
        got = "no vector" if width < 0 else f"a vector of width {width}"
        raise DataError(
            f"{_show_row(origin, values, int(bad[0]))}: got {got}, expected width {usual} as in "
            "the other rows"
        )


def _check_rows(vectors: Vectors) -> None:
    values, matrix = vectors.values, vectors.vectors_MD
    firsts = np.asarray(pc.index_in(values, value_set=pc.unique(values)), np.int64)
    _, first_rows = np.unique(firsts, return_index=True)
    if len(first_rows) < len(values):
        row = int(np.setdiff1d(np.arange(len(values)), first_rows)[0])
        first = int(np.flatnonzero(firsts == firsts[row])[0])
        raise DataError(
            f"{vectors.show(row)}: got the value again, first in row {first}; keep one of them"
        )
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        row = int(bad[0])
        column = int(np.flatnonzero(~np.isfinite(matrix[row]))[0])
        raise DataError(
            f"{vectors.show(row)}: got {matrix[row, column]} in place {column} of its vector, "
            "expected finite numbers"
        )


def _show_row(origin: str, values: pa.Array, row: int) -> str:
    value = values[row].as_py() if row < len(values) else None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return f"{origin}, row {row} (value {show_value(text)})"
