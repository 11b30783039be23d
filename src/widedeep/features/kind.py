"""What all kinds of features share: their contract and the checks of their options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from widedeep.errors import FeatureError, show_value

Combiner = Literal["sum", "mean", "sqrtn"]


COMBINERS = ("sum", "mean", "sqrtn")


MAX_IDS = 2**48


MAX_COLUMNS = 2**20


def check(condition: bool, name: str, message: str) -> None:
    """Raise a :class:`FeatureError` about feature ``name`` unless ``condition`` holds."""
    if not condition:
        raise FeatureError(f"feature {name!r}: {message}")


def is_name(value: object) -> bool:
    """Tell whether a value can name a feature or a column: text, not empty, in Unicode."""
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def is_word(value: object, words: Sequence[str]) -> bool:
    """Tell whether a value is one of the words that an option takes."""
    return isinstance(value, str) and value in words


def check_text(name: str, option: str, got: object) -> None:
    """Refuse an option that is neither None nor text."""
    check(
        got is None or is_name(got),
        name,
        f"got {option}={show_value(got)}, expected a non-empty string",
    )


def check_at_least(
    name: str, option: str, got: int | None, least: int, most: int = MAX_IDS
) -> None:
    """Refuse an option that is neither None nor an integer in its range."""
    whole = isinstance(got, int) and not isinstance(got, bool)
    upper = f", at most {most:,}" if whole and got is not None and got > most else ""
    check(
        got is None or (whole and least <= got <= most),
        name,
        f"got {option}={show_value(got)}, expected an integer of at least {least}{upper}",
    )


def check_combiner(name: str, combiner: str | None) -> None:
    """Refuse an unknown combiner."""
    check(
        combiner is None or is_word(combiner, COMBINERS),
        name,
        f"got combiner={show_value(combiner)}, expected 'sum', 'mean', 'sqrtn' or None (keep the "
        "sequence)",
    )


def finite_number(value: object) -> float | None:
    """A value as a finite float; None for text, which float() reads too, and all else."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def check_name_and_source(name: str, source: str) -> None:
    """Refuse a feature whose name or column is no text."""
    check(is_name(name), show_value(name), "expected a name: a non-empty string")
    check(
        is_name(source),
        name,
        f"got source={show_value(source)}, expected a non-empty string",
    )


def check_feature_names(names: tuple[str, ...], source: str | None) -> None:
    """Refuse what cannot name features, and one source for several."""
    for name in names:
        if not is_name(name):
            listed = isinstance(name, (list, tuple))
            hint = "; write the names one by one, or a star before the list" if listed else ""
            raise FeatureError(
                f"got {show_value(name)} as a feature's name, expected a non-empty string{hint}"
            )
    if not names:
        raise FeatureError("got no name, expected at least one feature name")
    if source is not None and len(names) > 1:
        raise FeatureError(
            f"got source={show_value(source)} for {len(names)} features {list(names)}; "
            "declare them one by one"
        )
