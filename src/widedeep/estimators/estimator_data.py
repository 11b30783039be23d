"""Tables, targets and weights, as people give them to an estimator, as Arrow and NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.arrow_types import readable_table
from widedeep.data.sources import pandas_table
from widedeep.errors import DataError, show_value
from widedeep.features import categorical, numeric

LABEL, WEIGHT = "__label__", "__weight__"

FEW_EXAMPLES = 5_000
"""Rows up to which a whole weight is that many rows, and their order does not matter."""


class CellTypeError(DataError, TypeError):
    """A cell of an array holds what is neither text nor a number."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows to learn: the features, the column ``LABEL``, and ``WEIGHT`` where rows have weights."""

    table: pa.Table  # The rows, each of a weight above 0
    weighted: bool  # Whether the table has weights
    features: pa.Table  # The features of all rows, in the order in which they were given

    @property
    def labels(self) -> NDArray[Any]:
        """The labels, (rows,)."""
        labels: NDArray[Any] = self.table.column(LABEL).to_numpy()
        return labels

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """The weights, (rows,), or None."""
        return self.table.column(WEIGHT).to_numpy() if self.weighted else None

    def with_labels(self, labels: NDArray[Any]) -> Examples:
        """Return the examples with other labels."""
        index = self.table.column_names.index(LABEL)
        table = self.table.set_column(index, LABEL, pa.array(labels))
        return replace(self, table=table)


def read_examples(
    X: object, y: NDArray[Any], weights: NDArray[np.float64] | None = None
) -> Examples:
    """Return the rows of a weight above 0 with their labels and weights.

    Of few rows, a whole weight is as many rows, and the rows are sorted: a model of few rows does
    not depend on their order, and a weight of 2 is the row given twice.
    """
    table = features = as_table(X)
    _check_length("y", y, table)
    if not table.num_rows:
        raise DataError(f"got 0 rows of {table.num_columns} columns in X, expected at least one")
    for name, what in ((LABEL, "label"), (WEIGHT, "weight")):
        if name in table.column_names:
            raise DataError(f"X: its column {name!r} is the {what}'s own name; rename it")
    table = table.append_column(LABEL, pa.array(y))
    if weights is not None:
        _check_length("sample_weight", weights, table)
        if not weights.any():
            raise DataError(
                "sample_weight: got 0 in every row; give at least one weight that is not zero"
            )
        table, weights = table.filter(pa.array(weights > 0)), weights[weights > 0]
        if weights.sum() <= FEW_EXAMPLES and (weights == np.floor(weights)).all():
            table = table.take(np.repeat(np.arange(len(weights)), weights.astype(np.int64)))
            weights = None
        else:
            table = table.append_column(WEIGHT, pa.array(weights))
    if table.num_rows <= FEW_EXAMPLES:
        table = _in_order(table)
    return Examples(table=table, weighted=weights is not None, features=features)


def _in_order(table: pa.Table) -> pa.Table:
    """Return the rows sorted by all columns of plain values."""
    keys = {}
    for column in table.schema:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        # Arrow sorts no half floats, and long texts by 64 bits alone.
        kind = {pa.string(): pa.large_string(), pa.float16(): pa.float32()}.get(kind, kind)
        tests = ("boolean", "large_string", "integer", "floating", "date", "time", "timestamp")
        if any(getattr(pa.types, f"is_{test}")(kind) for test in tests):
            keys[column.name] = table.column(column.name).cast(kind)
    order = pc.sort_indices(pa.table(keys), sort_keys=[(name, "ascending") for name in keys])
    return table.take(order)


def has_names(X: object) -> bool:
    """False for arrays and for DataFrames whose columns are numbered: they go by their place."""
    columns = getattr(X, "columns", None)
    if _is_pandas(X):
        return columns is not None and any(isinstance(name, str) for name in columns)
    return hasattr(X, "__arrow_c_stream__")


def _is_pandas(X: object) -> bool:
    return type(X).__module__.startswith("pandas")


def as_table(X: object) -> pa.Table:
    """Return a DataFrame, Arrow table or 2-D array (columns ``x0``, ``x1``, ...) as Arrow."""
    if isinstance(X, pa.Table):
        table = X
    elif _is_pandas(X) and hasattr(X, "columns"):
        # Not through the Arrow interface, which makes a column of the index of a shuffled frame.
        table = pandas_table(X, None, "X")
        if not has_names(X):
            table = table.rename_columns([f"x{i}" for i in range(table.num_columns)])
    elif has_names(X):
        try:
            table = pa.table(X)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise _no_table(X) from error
    elif isinstance(X, list | tuple) or (hasattr(X, "__array__") and not hasattr(X, "to_frame")):
        table = _array_table(_untyped_array("X", X))
    else:
        raise _no_table(X)
    if not table.num_columns:
        rows = len(X) if isinstance(X, Sized) else 0
        raise DataError(
            f"X: got 0 feature(s) (shape=({rows}, 0)) while a minimum of 1 is required."
        )
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise DataError(f"X: two columns are named {name!r}; rename or drop one of them")
    return readable_table(table, takes=True)


def _array_table(array: NDArray[Any]) -> pa.Table:
    if array.ndim != 2:
        raise DataError(
            f"got an array of {array.ndim} dimension(s), expected 2: (rows, columns). Reshape your "
            "data: reshape(-1, 1) is one column, reshape(1, -1) one row"
        )
    if array.dtype.kind == "c":
        raise DataError("X: got complex numbers. Complex data not supported; give their parts")
    return pa.table({f"x{i}": _array(f"x{i}", array[:, i]) for i in range(array.shape[1])})


def _untyped_array(name: str, values: object) -> NDArray[Any]:
    """Return an array of values as they are: NumPy makes text of numbers beside text."""
    try:
        array = np.asarray(values)
        if array.dtype.kind in "US" and isinstance(values, Sequence):
            array = np.asarray(values, dtype=object)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: got values of no one shape ({error})") from error
    return array


def _no_table(X: object) -> DataError:
    hint = "; sparse input is not supported, call toarray() first" if hasattr(X, "toarray") else ""
    hint = "; make it a table: to_frame()" if hasattr(X, "to_frame") else hint
    return DataError(
        f"got {type(X).__name__}, expected a DataFrame, an Arrow table or a 2-D array{hint}"
    )


def _array(name: str, values: NDArray[Any]) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        for row, value in enumerate(values.tolist()):
            if isinstance(value, dict | set):
                raise CellTypeError(
                    f"X: column {name!r} (row {row}): got {show_value(value)}, but a cell's "
                    "argument must be a string or a number"
                ) from error
        raise DataError(
            f"X: column {name!r} has no single type ({error}); convert its values to text or to "
            "numbers"
        ) from error


def _column(name: str, values: object) -> NDArray[Any]:
    """Return the values of a target or of weights, (rows,) for (rows,) or (rows, 1)."""
    if values is None:
        raise DataError(
            f"{name}: got None, expected one value a row; fit requires y to be passed, but the "
            "target y is None"
        )
    if hasattr(values, "toarray"):
        raise DataError(f"{name}: got a sparse matrix, expected (rows,); call toarray() first")
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.to_pylist()
    array = _untyped_array(name, values)
    if array.ndim == 2 and array.shape[1] == 1:
        if name == "y":
            from sklearn.exceptions import DataConversionWarning

            warnings.warn(
                "A column-vector y was passed when a 1d array was expected; give y.ravel()",
                DataConversionWarning,
                stacklevel=4,
            )
        return array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"{name}: got an array of shape {array.shape}, expected (rows,): {name} should be a 1d "
            "array; fit an estimator for each column"
        )
    return array


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return bool(value != value) if isinstance(value, float | np.generic) else False


def read_classes(y: object) -> NDArray[Any]:
    """Return the classes of a target: values of one kind, none of them missing."""
    labels = _column("y", y)
    whole = labels.dtype.kind == "f" and bool(
        (np.isfinite(labels) & (np.floor(labels) == labels)).all()
    )
    if labels.dtype.kind not in "biuU" and not whole:
        for row, label in enumerate(labels.tolist() if labels.dtype.kind != "M" else labels):
            if _is_missing(label):
                raise DataError(f"y (row {row}): got {label}, expected a class; drop the row")
            if isinstance(label, float) and not label.is_integer():
                raise DataError(
                    f"y (row {row}): got {label}, expected classes: integers, text or booleans; "
                    "use WideDeepRegressor for numbers (Unknown label type: continuous)"
                )
    if labels.dtype.kind != "O":
        return labels
    kinds: dict[type, int] = {}
    for row, label in enumerate(labels):
        kind = bool if isinstance(label, bool | np.bool_) else type(label)
        kinds.setdefault(
            float if isinstance(label, int | float | np.number) and kind is not bool else kind, row
        )
    if len(kinds) > 1 or not set(kinds) <= {bool, float, str, bytes}:
        examples = ", ".join(f"{show_value(labels[row])} in row {row}" for row in kinds.values())
        raise DataError(f"y: got {examples}; expected numbers alone, text alone or booleans alone")
    # An object array of one plain kind stays what scikit-learn makes of it.
    return labels.astype(bool) if set(kinds) == {bool} else labels


def read_numbers(name: str, values: object, least: float = -np.inf) -> NDArray[np.float64]:
    """Return a target or weights as finite numbers of at least ``least``."""
    column = _column(name, values)
    allowed = "a finite number" if least == -np.inf else f"a finite number of at least {least:g}"
    if column.dtype.kind == "c":
        raise DataError(
            f"{name}: got complex numbers. Complex data not supported; give their parts"
        )
    try:
        if column.dtype.kind in "SUMm":
            raise TypeError
        numbers = column.astype(np.float64)
    except (OverflowError, TypeError, ValueError):
        row = next((r for r, v in enumerate(column.tolist()) if not _is_finite(v)), 0)
        raise DataError(
            f"{name} (row {row}): got {show_value(column[row])}, expected {allowed}; drop the row"
        ) from None
    bad = ~(np.isfinite(numbers) & (numbers >= least))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{name} (row {row}): got {numbers[row]}, expected {allowed}; drop the row")
    return numbers


def read_weights(sample_weight: object) -> NDArray[np.float64] | None:
    """Return the weight of each row, at least 0, (rows,); None for None."""
    if sample_weight is None:
        return None
    return read_numbers("sample_weight", sample_weight, least=0.0)


def _is_finite(value: object) -> bool:
    try:
        return bool(np.isfinite(float(value))) and not isinstance(value, str)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return False


def _check_length(name: str, values: NDArray[Any], table: pa.Table) -> None:
    if len(values) != table.num_rows:
        raise DataError(
            f"got {table.num_rows} rows in X and {len(values)} in {name}; expected equally many"
        )


def infer_features(table: pa.Table) -> list[object]:
    """Return numeric features for number columns and categorical ones for all others."""
    features: list[object] = []
    for column in table.schema:
        kind = column.type
        plain_number = (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        )
        features.append(numeric(column.name) if plain_number else categorical(column.name))
    return features
