"""The transform of columns into ids: plans and programs of the native code, and its hash.

A :class:`TransformPlan` holds what a schema says about each column; a :class:`TransformProgram`
computes some of it from record batches (through the Arrow C data interface) or from dicts. What
they mean is documented in :class:`widedeep.data.transform.Transform`, which builds and runs them.
"""

from __future__ import annotations

from widedeep._native import fingerprint64 as _fingerprint64
from widedeep._native import is_misspelt as _is_misspelt


def fingerprint64(text: str | bytes) -> int:
    """Return FarmHash's Fingerprint64 of a text (Google 2014), the hash behind ``hash_buckets``.

    Args:
        text: Bytes, or text that is taken as UTF-8.

    Example:
        >>> fingerprint64("Bachelors")
        16203445660475879456
    """
    return _fingerprint64(text.encode() if isinstance(text, str) else text)


def is_misspelt(key: str, column: str) -> bool:
    """Tell whether a key looks like the name of a column.

    Args:
        key: A key of a request.
        column: A column that the request lacks.

    Example:
        >>> is_misspelt("ctiy", "city")
        True
    """
    return _is_misspelt(*(name.encode("utf-8", "surrogatepass") for name in (key, column)))
