"""Tensors of the Open Inference Protocol: JSON or bytes to columns of values, and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import RequestError, nearest
from widedeep.schema import ColumnType

DATATYPES: dict[str, str] = {
    "BOOL": "?",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BYTES": "O",
}
"""NumPy's type for each of the protocol's."""

_BY_KIND = {"string": "BYTES", "int": "INT64", "float": "FP64", "bool": "BOOL"}
_LENGTH = struct.Struct("<I")


def datatype_of(kind: ColumnType) -> str:
    """Return the protocol's type that holds a column."""
    if kind.storage in ("float16", "float32"):
        return f"FP{kind.storage[5:]}"
    return _BY_KIND[kind.kind]


def check_tensor(name: str, datatype: str, shape: Sequence[int]) -> int:
    """Return how many values a tensor has."""
    if datatype not in DATATYPES:
        raise RequestError("datatype", f"got {datatype!r}; {nearest(datatype, DATATYPES)}")
    if not shape or any(size < 0 for size in shape):
        raise RequestError(
            "shape", f"input {name!r}: got {list(shape)}, expected [rows], or [rows, values a row]"
        )
    return math.prod(shape)


def from_bytes(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> list[Any]:
    r"""Return the values of a tensor that came as bytes, one after the other."""
    n = check_tensor(name, datatype, shape)
    if datatype == "BYTES":
        values = list(_texts(name, raw, n))
        if len(values) != n:
            raise RequestError(
                "data", f"input {name!r}: got {len(values)} values, the shape says {n}"
            )
        return values
    dtype = np.dtype(DATATYPES[datatype])
    if len(raw) != n * dtype.itemsize:
        raise RequestError(
            "data",
            f"input {name!r}: got {len(raw)} bytes, expected {n * dtype.itemsize}: "
            f"{n} values of {datatype}",
        )
    found: list[Any] = np.frombuffer(raw, dtype).tolist()
    return found


def _texts(name: str, raw: memoryview, most: int) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        start = at + _LENGTH.size
        if start > len(raw):
            raise RequestError("data", f"input {name!r}: got a length cut off at byte {at}")
        at = start + _LENGTH.unpack_from(raw, at)[0]
        if at > len(raw):
            raise RequestError(
                "data", f"input {name!r}: got a text of {at - start} bytes that ends after the data"
            )
        yield bytes(raw[start:at])


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> list[Any]:
    """Return the values of a tensor that came as JSON, one after the other."""
    n = check_tensor(name, datatype, shape)
    values = list(_flat(data))
    if len(values) != n:
        raise RequestError(
            "data", f"input {name!r}: got {len(values)} values, the shape {list(shape)} says {n}"
        )
    allowed: tuple[type, ...] = {"BOOL": (bool,), "BYTES": (str, bytes)}.get(datatype, (int, float))
    if datatype.startswith(("INT", "UINT")):
        allowed = (int,)
    for at, value in enumerate(values):
        plain = type(value) is not bool or datatype == "BOOL"
        if value is not None and not (isinstance(value, allowed) and plain):
            raise RequestError(
                f"data[{at}]",
                f"input {name!r}: got {str(value)[:80]!r} ({type(value).__name__}), expected "
                f"{datatype} or null",
            )
        if isinstance(value, int | float) and datatype != "BOOL":
            values[at] = _in_range(name, datatype, at, value)
    return values


def _in_range(name: str, datatype: str, at: int, value: float) -> float:
    """Return a number as its tensor's bytes would hold it; one beyond the type is refused."""
    dtype, held = np.dtype(DATATYPES[datatype]), math.inf
    if dtype.kind == "f":
        with np.errstate(over="ignore"), suppress(OverflowError):
            held = float(dtype.type(value))
    elif np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        held = value
    if math.isinf(held) and not (isinstance(value, float) and math.isinf(value)):
        raise RequestError(
            f"data[{at}]",
            f"input {name!r}: got {str(value)[:80]}, expected a number within {datatype} or null",
        )
    return held


def _flat(data: object) -> Iterator[Any]:
    # Without recursion: a body may nest as deep as the decoder lets it.
    stack = [iter([data])]
    while stack:
        value = next(stack[-1], stack)
        if value is stack:
            stack.pop()
        elif isinstance(value, list):
            stack.append(iter(value))
        else:
            yield value


def column_of(
    name: str, kind: ColumnType | None, shape: Sequence[int], values: list[Any]
) -> list[Any]:
    """Return a value, or a list of values, for each row."""
    width = math.prod(shape[1:])
    if kind is not None and kind.nested:
        return [values[at * width : (at + 1) * width] for at in range(shape[0])]
    if width != 1:
        raise RequestError(
            "shape",
            f"input {name!r}: got {list(shape)}, expected [rows] or [rows, 1]: one value a row",
        )
    return values


def to_bytes(values: NDArray[Any]) -> bytes:
    """Return scores as the protocol's bytes: FP64, little-endian."""
    return np.ascontiguousarray(values, "<f8").tobytes()
