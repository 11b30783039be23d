"""Event times and durations, as whole microseconds: the one place that says how a time is read."""

from __future__ import annotations

import datetime
import re
from fractions import Fraction

import numpy as np

from widedeep.errors import ConfigError, DataError

MICROSECONDS = 1_000_000
LARGEST_US = 4 * 10**18
"""Times and windows stay below this, so that no sum of two of them leaves 64 bits."""
_LONGEST_US = 10**17
_UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": MICROSECONDS,
    "m": 60 * MICROSECONDS,
    "h": 3_600 * MICROSECONDS,
    "d": 86_400 * MICROSECONDS,
    "w": 7 * 86_400 * MICROSECONDS,
}
# Epoch numbers from September 2001 to November 2286 (nanoseconds: to April 2262, where int64 ends),
# a decade of digits for each unit: no number is plausible in two units.
_PLAUSIBLE = (
    ("s", 10**9, 10**10),
    ("ms", 10**12, 10**13),
    ("us", 10**15, 10**16),
    ("ns", 10**18, 2**63),
)
PLAUSIBLE_US = _PLAUSIBLE[2][1:]
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DURATION = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d|w)\s*")
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")

# Regular expressions that Python, DuckDB and Spark read alike: no backslash, no lookahead.
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?)?"
_NUMERIC_ZONE = "[+-](0[0-9]|1[0-4])(:?[0-5][0-9])?"
_ZONE = f"(Z| UTC|{_NUMERIC_ZONE})"
TIME_TEXT = f"^{_DATE}([T ]{_CLOCK}{_ZONE}?)?$"
"""ISO 8601: a date, perhaps with a time of day, perhaps with a zone."""
ZONED_TEXT = f"^{_DATE}[T ]{_CLOCK}{_ZONE}$"
_OFFSET_TEXT = f":[0-9.]+({_NUMERIC_ZONE})$"
"""Finds the offset of a text that matches :data:`TIME_TEXT`."""
FINER_TEXT = "[.][0-9]{6}0*[1-9]"
"""Finds digits below a microsecond."""


def duration_us(duration: str | float | datetime.timedelta, name: str = "duration") -> int:
    """Return a duration in microseconds."""
    if isinstance(duration, datetime.timedelta):
        return _checked(Fraction(duration // datetime.timedelta(microseconds=1)), duration, name)
    if isinstance(duration, str):
        match = _DURATION.fullmatch(duration)
        if match is None:
            raise ConfigError(
                f"{name}: got {duration!r}, expected a number with a unit "
                "(us, ms, s, m, h, d, w) such as '30m' or '7d'"
            )
        return _checked(Fraction(match[1]) * _UNITS_US[match[2]], duration, name)
    value: object = duration  # whatever a caller passes
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or value != value:
        raise ConfigError(f"{name}: got {duration!r}, expected a duration such as '7d'")
    if duration > _LONGEST_US:
        raise ConfigError(f"{name}: got {duration!r}, expected at most 1,000,000 days")
    # The shortest decimal that is this float: what was typed.
    return _checked(Fraction(repr(float(duration))) * MICROSECONDS, duration, name)


def _checked(microseconds: Fraction, duration: object, name: str) -> int:
    if microseconds < 0:
        raise ConfigError(f"{name}: got {duration!r}, a negative duration; expected 0 or more")
    if microseconds.denominator != 1:
        raise ConfigError(
            f"{name}: got {duration!r}, which is {float(microseconds):g} microseconds; expected a "
            "whole number of them"
        )
    if microseconds > _LONGEST_US:
        raise ConfigError(f"{name}: got {duration!r}, expected at most 1,000,000 days")
    return int(microseconds)


def moment_us(moment: str | datetime.date, name: str = "time") -> int:
    """Return a point in time as microseconds since 1970 in UTC."""
    if isinstance(moment, str):
        return _text_us(moment, name)
    if not isinstance(moment, datetime.date):
        raise ConfigError(f"{name}: got {moment!r}, expected a date such as '2026-01-31'")
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime(moment.year, moment.month, moment.day)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def _text_us(text: str, name: str) -> int:
    expected = (
        "expected a date or time such as '2026-01-31', '2026-01-31T12:00:00Z' or "
        "'2026-01-31T12:00:00+02:00'"
    )
    if re.search(TIME_TEXT, text) is None or text.endswith("\n"):
        raise ConfigError(f"{name}: got {text!r}, {expected}")
    if re.search(FINER_TEXT, text):
        raise ConfigError(f"{name}: got {text!r}, expected whole microseconds")
    clock, _, fraction = text[11:].partition(".")
    seconds = clock[6:8] if clock[5:6] == ":" else "00"
    digits = re.match("[0-9]*", fraction)
    assert digits is not None
    try:
        naive = datetime.datetime.fromisoformat(
            f"{text[:10]}T{clock[:5] or '00:00'}:{seconds}.{digits[0][:6]:0<6}+00:00"
        )
    except ValueError as error:
        raise ConfigError(f"{name}: got {text!r} ({error}), {expected}") from error
    offset = re.search(_OFFSET_TEXT, text)
    ahead = offset_us(f"{offset[1]}00" if len(offset[1]) == 3 else offset[1]) if offset else 0
    return (naive - _EPOCH) // datetime.timedelta(microseconds=1) - ahead


def names_zone(moment: str | datetime.date) -> bool:
    """Tell whether a moment of a setting names its zone."""
    if isinstance(moment, str):
        return re.search(ZONED_TEXT, moment) is not None
    return isinstance(moment, datetime.datetime) and moment.tzinfo is not None


def moment_text(microseconds: int) -> str:
    """Return microseconds since 1970 as text, in UTC."""
    try:
        return (_EPOCH + datetime.timedelta(microseconds=microseconds)).isoformat()
    except OverflowError:
        return f"{microseconds} us"


def offset_us(timezone: str, name: str = "timezone") -> int:
    """Return how far a fixed zone is ahead of UTC, in microseconds."""
    if timezone.upper() in ("UTC", "Z"):
        return 0
    match = _OFFSET.fullmatch(timezone)
    if match is None or int(match[2]) > 14 or int(match[3]) > 59:
        raise ConfigError(
            f"{name}: got {timezone!r}, expected 'UTC' or a fixed offset such as '+02:00'; convert "
            "local times with daylight saving to UTC first"
        )
    minutes = int(match[2]) * 60 + int(match[3])
    return (minutes if match[1] == "+" else -minutes) * _UNITS_US["m"]


def unit_of_epochs(smallest: int, largest: int, where: str) -> str:
    """Return the unit of a column of epoch numbers, from its range."""
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
        "milliseconds, microseconds or nanoseconds since 1970 (2001 to 2286); correct the rows, or "
        "set time_unit = 's', 'ms', 'us' or 'ns' if they are meant"
    )


def check_unit(unit: str, smallest: int, largest: int, where: str) -> None:
    """Refuse a unit that was named if a number is plausible in another, or too large in this."""
    others = {_plausible_unit(number) for number in (smallest, largest)} - {None, unit}
    if others:
        likely = " and ".join(sorted(map(str, others)))
        raise DataError(
            f"{where}: got time_unit = {unit!r}, but {smallest} to {largest} are plausible as "
            f"{likely} since 1970; leave time_unit out, or correct the rows"
        )
    if unit != "ns" and max(-smallest, largest) * _UNITS_US[unit] > LARGEST_US:
        raise DataError(
            f"{where}: got {smallest} to {largest}, which in {unit} lie beyond all times that can "
            "be reckoned with; correct the rows or time_unit"
        )


def _plausible_unit(number: int) -> str | None:
    return next((unit for unit, low, high in _PLAUSIBLE if low <= number < high), None)
