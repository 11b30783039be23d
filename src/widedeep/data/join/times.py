"""Event times and durations, as whole microseconds."""

from __future__ import annotations

import datetime
import math
import re

from widedeep.errors import ConfigError, DataError

__all__ = [
    "MICROSECONDS",
    "check_unit",
    "duration_us",
    "moment_text",
    "moment_us",
    "offset_us",
    "unit_of_epochs",
]

MICROSECONDS = 1_000_000
_UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": MICROSECONDS,
    "m": 60 * MICROSECONDS,
    "h": 3_600 * MICROSECONDS,
    "d": 86_400 * MICROSECONDS,
    "w": 7 * 86_400 * MICROSECONDS,
}
# Epoch numbers from September 2001 to November 2286, a decade of digits for each unit: no number
# is plausible in two units.
_PLAUSIBLE = (("s", 10**9, 10**10), ("ms", 10**12, 10**13), ("us", 10**15, 10**16))
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DURATION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d|w)\s*")
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")


def duration_us(duration: str | float | datetime.timedelta, name: str = "duration") -> int:
    """Return a duration in microseconds.

    Args:
        duration: Text such as ``"30m"``, ``"12h"``, ``"7d"`` (units us, ms, s, m, h, d, w), a
            number of seconds, or a ``timedelta``.
        name: Of the setting, for errors.

    Raises:
        ConfigError: If it cannot be read, or is negative.

    Example:
        >>> duration_us("1.5h"), duration_us(2)
        (5400000000, 2000000)
    """
    if isinstance(duration, datetime.timedelta):
        microseconds = duration // datetime.timedelta(microseconds=1)
    elif isinstance(duration, str):
        found = _DURATION.fullmatch(duration)
        if found is None:
            raise ConfigError(
                f"{name}: got {duration!r}, expected a number with a unit "
                "(us, ms, s, m, h, d, w) such as '30m' or '7d'"
            )
        microseconds = round(float(found[1]) * _UNITS_US[found[2]])
    elif isinstance(duration, bool) or not math.isfinite(duration):
        raise ConfigError(f"{name}: got {duration!r}, expected a duration such as '7d'")
    else:
        microseconds = round(duration * MICROSECONDS)
    if microseconds < 0:
        raise ConfigError(f"{name}: got {duration!r}, a negative duration; expected 0 or more")
    return microseconds


def moment_us(moment: str | datetime.datetime | datetime.date | int, name: str = "time") -> int:
    """Return a point in time as microseconds since 1970 in UTC.

    Args:
        moment: ISO 8601 text, a datetime or a date (UTC where no zone is given), or microseconds.
        name: Of the setting, for errors.

    Raises:
        ConfigError: If it cannot be read.

    Example:
        >>> moment_us("1970-01-01T00:00:01Z")
        1000000
    """
    if isinstance(moment, bool) or not isinstance(
        moment, (str, int, datetime.datetime, datetime.date)
    ):
        raise ConfigError(f"{name}: got {moment!r}, expected a date such as '2026-01-31'")
    if isinstance(moment, int):
        return moment
    if isinstance(moment, str):
        try:
            moment = datetime.datetime.fromisoformat(moment)
        except ValueError as error:
            raise ConfigError(
                f"{name}: got {moment!r}, expected a date or time such as '2026-01-31' or "
                "'2026-01-31T12:00:00+02:00'"
            ) from error
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime(moment.year, moment.month, moment.day)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def moment_text(microseconds: int) -> str:
    """Return microseconds since 1970 as text, in UTC.

    Example:
        >>> moment_text(1_000_000)
        '1970-01-01T00:00:01+00:00'
    """
    try:
        return (_EPOCH + datetime.timedelta(microseconds=microseconds)).isoformat()
    except OverflowError:
        return f"{microseconds} us"


def offset_us(timezone: str, name: str = "timezone") -> int:
    """Return how far a fixed zone is ahead of UTC, in microseconds.

    Zones with daylight saving are refused: an hour in autumn would be two moments.

    Raises:
        ConfigError: If it is neither ``"UTC"`` nor an offset such as ``"+02:00"``.

    Example:
        >>> offset_us("-01:30")
        -5400000000
    """
    if timezone.upper() in ("UTC", "Z"):
        return 0
    found = _OFFSET.fullmatch(timezone)
    if found is None or int(found[2]) > 14 or int(found[3]) > 59:
        raise ConfigError(
            f"{name}: got {timezone!r}, expected 'UTC' or a fixed offset such as '+02:00'; convert "
            "local times with daylight saving to UTC first"
        )
    minutes = int(found[2]) * 60 + int(found[3])
    return (minutes if found[1] == "+" else -minutes) * _UNITS_US["m"]


def unit_of_epochs(smallest: int, largest: int, where: str) -> str:
    """Return the unit of a column of epoch numbers, from its range.

    Args:
        smallest: The smallest number in the column.
        largest: The largest.
        where: The column, for errors.

    Returns:
        ``"s"``, ``"ms"`` or ``"us"``.

    Raises:
        DataError: If the numbers fit no unit between 2001 and 2286, or more than one.

    Example:
        >>> unit_of_epochs(1_700_000_000_000, 1_700_000_360_000, "column 'ts'")
        'ms'
    """
    for unit, low, high in _PLAUSIBLE:
        if low <= smallest and largest < high:
            return unit
    low_unit, high_unit = _plausible_unit(smallest), _plausible_unit(largest)
    if low_unit and high_unit:
        raise DataError(
            f"{where}: units are mixed: {smallest} is plausible as {low_unit}, {largest} as "
            f"{high_unit} since 1970; write the column in one unit"
        )
    raise DataError(
        f"{where}: got event times from {smallest} to {largest}, which are no plausible seconds, "
        "milliseconds or microseconds since 1970 (2001 to 2286); correct the rows, or set "
        "time_unit = 's', 'ms' or 'us' if they are meant"
    )


def check_unit(unit: str, smallest: int, largest: int, where: str) -> None:
    """Refuse a unit that was named if the numbers are plausible in another and not in this.

    Args:
        unit: ``"s"``, ``"ms"`` or ``"us"``.
        smallest: The smallest number in the column.
        largest: The largest.
        where: The column, for errors.

    Raises:
        DataError: If so. Numbers that are plausible in no unit are what they were said to be.

    Example:
        >>> check_unit("ms", 1_700_000_000, 1_700_000_360, "column 'ts'")
        Traceback (most recent call last):
        ...
        widedeep.errors.DataError: column 'ts': got time_unit = 'ms', but 1700000000 to ...
    """
    units = {_plausible_unit(number) for number in (smallest, largest)} - {None}
    if units and unit not in units:
        likely = " and ".join(sorted(map(str, units)))
        raise DataError(
            f"{where}: got time_unit = {unit!r}, but {smallest} to {largest} are plausible as "
            f"{likely} since 1970; leave time_unit out, or correct the rows"
        )


def _plausible_unit(number: int) -> str | None:
    return next((unit for unit, low, high in _PLAUSIBLE if low <= number < high), None)
