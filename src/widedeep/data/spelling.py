"""Texts that a person would take for one value, or for numbers or dates."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

_MARKED_NUMBER = re.compile(
    r"[+-]?[$\u20ac\u00a3\u00a5]?\s?[+-]?"
    r"(\d{1,3}([,.'\u00a0\u202f ]\d{3})+([.,]\d+)?|\d+([.,]\d+)?)"
    r"\s?[%$\u20ac\u00a3\u00a5]?"
)
_DATE = re.compile(
    r"\d{1,2}[/.-]\d{1,2}[/.-](\d{4}|\d\d)( \d{1,2}:\d\d(:\d\d)?)?|\d{4}/\d{1,2}/\d{1,2}"
)


class Alike(NamedTuple):
    """Two texts that look like one, and how many of all do."""

    one: str
    other: str
    n_alike: int  # Texts that are spelt as another in all but case, blanks and Unicode form


def spelt_alike(texts: Iterable[str], *, numbers: bool = False) -> Alike | None:
    """Return two texts that differ in case, blanks or Unicode form alone, as literals.

    With ``numbers``, those of one number too, such as 1 and 1.0.
    """
    first: dict[str, str] = {}
    pair: tuple[str, str] | None = None
    count = 0
    for text in texts:
        key = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        if numbers:
            key = _number_key(key)
        other = first.setdefault(key, text)
        if other != text:
            count += 1
            pair = pair or (other, text)
    if pair is None:
        return None
    looks_same = unicodedata.normalize("NFC", pair[0]) == unicodedata.normalize("NFC", pair[1])
    one, other = (ascii(text) if looks_same else repr(text) for text in pair)
    return Alike(one, other, count)


def _number_key(text: str) -> str:
    try:
        return repr(float(text))
    except ValueError:
        return text


def looks_like(texts: Iterable[str]) -> str:
    """Return what all texts stand for to a person: "numbers" with marks, or "dates"; else ""."""
    texts = list(texts)
    if texts and all(_DATE.fullmatch(text.strip()) for text in texts):
        return "dates"
    are_numbers = texts and all(_MARKED_NUMBER.fullmatch(text.strip()) for text in texts)
    marked = any(not set(text.strip()) <= set("0123456789.+-") for text in texts)
    return "numbers" if are_numbers and marked else ""
