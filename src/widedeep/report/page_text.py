"""How figures read on the report's page."""

from __future__ import annotations

__all__ = ["bytes_text", "count_text", "figure", "moment", "percent", "rows_text"]

_SPACE = "\N{NO-BREAK SPACE}"


def figure(value: float | None) -> str:
    """Return a number with four decimals, or a whole one with separators; nothing for None.

    Example:
        >>> figure(0.91261), figure(16281.0), figure(None)
        ('0.9126', '16,281', '')
    """
    if value is None:
        return ""
    if value == round(value) and (isinstance(value, int) or abs(value) >= 100):
        return f"{value:,.0f}"
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def percent(share: float | None, digits: int = 1) -> str:
    r"""Return a share in percent; a small one that is not 0 does not read as 0.

    Example:
        >>> percent(0.25), percent(0.0001), percent(0.0), percent(None)
        ('25.0\xa0%', '<\xa00.1\xa0%', '0\xa0%', '')
    """
    if share is None:
        return ""
    if share == 0:
        return f"0{_SPACE}%"
    least = 10.0**-digits
    return (
        f"{100 * share:.{digits}f}{_SPACE}%"
        if 100 * abs(share) >= least
        else f"<{_SPACE}{least:g}{_SPACE}%"
    )


def bytes_text(size: float | None) -> str:
    """Return a size in the unit in which it is short.

    Example:
        >>> bytes_text(512), bytes_text(262_400), bytes_text(3_000_000_000)
        ('512 B', '262 kB', '3.0 GB')
    """
    if size is None:
        return ""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size:.0f} B"


def count_text(number: int) -> str:
    """Return a large count in few characters.

    Example:
        >>> count_text(950), count_text(65_536), count_text(5_600_000)
        ('950', '65,536', '5.6M')
    """
    return f"{number / 1e6:.1f}M" if number >= 1e6 else f"{number:,}"


def moment(text: str | None) -> str:
    """Return the day and minute of an ISO 8601 time.

    Example:
        >>> moment("2026-11-26T09:15:31+00:00")
        '2026-11-26 09:15'
    """
    return "" if text is None else text[:16].replace("T", " ")


def rows_text(count: int) -> str:
    """Return ``"1 row"``, ``"2 rows"``."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"
