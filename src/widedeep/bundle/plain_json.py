"""Values as JSON holds them: what NumPy, Arrow and Python give, made plain."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from widedeep.data.transform import Moment, plain_value
from widedeep.errors import BundleError


def plain(value: object, where: str) -> Any:
    """Return a value as dicts, lists, strings, numbers, booleans and None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes):
        return _text(value, where)
    return _converted(value, where)


def _converted(value: object, where: str) -> Any:
    """Dates, decimals and scalars of NumPy and Arrow, as the transform reads them."""
    converted = plain_value(value)
    if converted is NotImplemented:
        raise BundleError(
            f"{where}: got {value!r} ({type(value).__name__}), which JSON cannot hold; "
            "give text, numbers, dates, lists or dicts"
        )
    return converted.text() if isinstance(converted, Moment) else plain(converted, where)


def _text(value: bytes, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BundleError(
            f"{where}: got bytes that are no UTF-8 text ({value!r}), which JSON cannot hold; "
            "leave them out"
        ) from error


def write_json(path: Path, value: object, what: str) -> None:
    """Write a value to a file."""
    text = json.dumps(plain(value, what), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_bytes((text + "\n").encode("utf-8", "surrogatepass"))


def read_json(path: Path) -> Any:
    """Read a file that :func:`write_json` wrote."""
    try:
        return json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise BundleError(
            f"{path}: got a damaged file ({error}); export the bundle again"
        ) from error
