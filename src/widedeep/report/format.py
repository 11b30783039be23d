"""How figures read on the report's page."""

from __future__ import annotations

import math

_SPACE = "\N{NO-BREAK SPACE}"


def figure(value: float | None) -> str:
    """Return a number with four decimals, or a whole one with separators; nothing for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return f"{value}"
    if value == round(value) and (isinstance(value, int) or abs(value) >= 100):
        return f"{value:,.0f}"
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def percent(fraction: float | None, digits: int = 1) -> str:
    r"""Return a share in percent; a small one that is not 0 does not read as 0."""
    if fraction is None:
        return ""
    if fraction == 0:
        return f"0{_SPACE}%"
    least = 10.0**-digits
    return (
        f"{100 * fraction:.{digits}f}{_SPACE}%"
        if 100 * abs(fraction) >= least
        else f"<{_SPACE}{least:g}{_SPACE}%"
    )


def bytes_text(size: float | None) -> str:
    """Return a size in the unit in which it is short."""
    if size is None:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size:.0f} B"


def count_text(number: int) -> str:
    """Return a large count in few characters."""
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}"


def moment(text: str | None) -> str:
    """Return the day and minute of an ISO 8601 time."""
    return "" if text is None else text[:16].replace("T", " ")


def rows_text(count: int) -> str:
    """Return ``"1 row"``, ``"2 rows"``."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
