"""Keys of a row that look like a column that the row lacks."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable

# What is compared, so that the time does not depend on the size of a request. The native server
# (native/rank_request.cpp) leaves to Python each request for which this finds something; its limits
# are these.
MOST_KEYS = 8
MOST_COLUMNS = 64
LONGEST_NAME = 40
_FEWEST_LETTERS = 4
_LEAST_SUFFIX = 5
_LETTERS_AN_ERROR = 5
_SPACERS = b"_-. "


def misspelt_keys(
    keys: Iterable[str], absent: Iterable[str], known: Container[str]
) -> dict[str, str]:
    """Return the keys that look like columns that were not given, with that column."""
    columns = list(itertools.islice(absent, MOST_COLUMNS))
    if not columns:
        return {}
    unknown = itertools.islice((key for key in keys if key not in known), MOST_KEYS)
    pairs = ((key, next((c for c in columns if is_misspelt(key, c)), None)) for key in unknown)
    return {key: column for key, column in pairs if column is not None}


def is_misspelt(key: str, column: str) -> bool:
    """Tell whether a key looks like the name of a column."""
    a, b = (_plain(name) for name in (key, column))
    if not (a and b) or max(len(a), len(b)) > LONGEST_NAME:
        return False
    if a == b:
        return True
    short, long = sorted((a, b), key=len)
    if len(short) >= _LEAST_SUFFIX and 2 * len(short) >= len(long) and long.endswith(short):
        return True
    if len(long) < _FEWEST_LETTERS or _digits(a) != _digits(b):
        return False
    most = max(1, len(long) // _LETTERS_AN_ERROR)
    ends_alike = a[0] == b[0] or a[-1] == b[-1]
    return ends_alike and len(long) - len(short) <= most and _distance(a, b) <= most


def _plain(name: str) -> bytes:
    """The bytes of a name, of ASCII letters the small ones, without spacers."""
    return name.encode("utf-8", "surrogatepass").lower().translate(None, _SPACERS)


def _digits(name: bytes) -> bytes:
    return bytes(byte for byte in name if 0x30 <= byte <= 0x39)


def _distance(a: bytes, b: bytes) -> int:
    """Edits from one to the other, two neighbours that change places being one."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i in range(1, len(a) + 1):
        older, before, row = before, row, [i]
        for j in range(1, len(b) + 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]
