"""A join resolved against its inputs: columns, types, partitions, times, random order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from widedeep.join.config import History, JoinConfig
from widedeep.join.times import duration_us

PRIME = 2**31 - 1
_FACTOR = 1_103_515_245


def id_as_integer(column: str, is_text: bool) -> str:
    """Return SQL for an id as an integer: itself, or 60 bits of the MD5 of its text."""
    return f"WD_MD5_60({column})" if is_text else column


def _fifth_power(x: str) -> str:
    square = f"(({x}) * ({x}) % {PRIME})"
    return f"(({square} * {square} % {PRIME}) * ({x}) % {PRIME})"


def _steps(names: list[str], salt: int) -> list[tuple[str, str]]:
    steps: list[tuple[str, str]] = []
    # A small literal would be 32 bits wide, and so would its products.
    previous = f"CAST({(salt * 2_654_435_761 + 12_345) % PRIME} AS BIGINT)"
    for name in names:
        for half, bits in enumerate((f"{name} & {PRIME}", f"({name} >> 31) & {PRIME}")):
            total = f"({previous} * {_FACTOR} + (({bits}) % {PRIME}) + 1) % {PRIME}"
            steps.append((f"{name}_s{half}", total))
            steps.append((f"{name}_m{half}", _fifth_power(f"{name}_s{half}")))
            previous = f"{name}_m{half}"
    return steps


def sql_hash(table: str, integers: list[str], salt: int, name: str) -> str:
    """Return SQL that selects everything of ``table`` and the hash of ``integers`` as ``name``."""
    ids = [f"wd_i{salt}_{number}" for number in range(len(integers))]
    parts = ", ".join(
        f"CAST({sql} AS BIGINT) AS {key}" for key, sql in zip(ids, integers, strict=True)
    )
    source = f"SELECT *, {parts} FROM {table}"
    steps = _steps(ids, salt)
    for index, (step, sql) in enumerate(steps):
        alias = name if index == len(steps) - 1 else step
        source = f"SELECT *, {sql} AS {alias} FROM ({source}) AS wd_t"
    return source


def quoted(name: str) -> str:
    """Return a column's name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def double(value: float) -> str:
    """Return a number as an SQL literal that every engine reads to the bit."""
    return f"CAST({value:.17e} AS DOUBLE)"


def in_partition(partition: int | None, column: str = "wd_part") -> str:
    """Return the condition that a row is of a partition; of any if ``part`` is None."""
    return "TRUE" if partition is None else f"{column} = {partition}"


@dataclass(frozen=True, kw_only=True)
class PassThroughColumn:
    """A column that passes through the join under an internal name."""

    name: str  # In the input and the output
    inner: str  # In between
    sql: str  # Its value in terms of the input's columns
    type: str  # Its SQL type


@dataclass(frozen=True, kw_only=True)
class SqlInput:
    """An input's columns as SQL expressions over its view."""

    view: str  # The relation in the engine
    # SQL of each key by its inner name (``wd_user``, ``wd_item``, ``wd_time``, ...)
    key: dict[str, str]
    pass_through: tuple[PassThroughColumn, ...] = ()  # The columns that pass through
    rows: int = 0  # Rows in the input


LIMB_BITS = 40
"""Sums of fewer than 2**23 limbs fit 64 bits; a sum that does not is an error of the engine."""


@dataclass(frozen=True, kw_only=True)
class ValueScale:
    """How the actions' values become integers: limbs of 40 bits, the greatest first."""

    shift: int  # A value times 2**shift is below 2**40
    limbs: int  # How many hold every bit of every value

    @property
    def columns(self) -> list[str]:
        """The limbs' columns."""
        return [f"wd_v{number}" for number in range(self.limbs)]

    def unit(self, number: int) -> float:
        """Return what 1 of a limb is worth."""
        return 2.0 ** -(self.shift + number * LIMB_BITS)


@dataclass(frozen=True, kw_only=True)
class JoinPlan:
    """A join with nothing left to find out."""

    config: JoinConfig  # The configuration
    actions: SqlInput  # The actions log
    impressions: SqlInput | None  # The impressions log, or None
    user_attributes: SqlInput | None  # Versions of users' attributes, or None
    item_attributes: SqlInput | None  # Versions of items' attributes, or None
    text: dict[str, bool]  # For ``"user"``, ``"item"`` and ``"request"``, whether the id is text
    log_end_us: int  # When the log ends
    value_scale: ValueScale | None = None  # How values are added up, if a label has values
    partitions: int = 1  # Parts of the users; examples are in order of these, then of time
    # True if one statement takes all partitions, False if there is a pass for each
    at_once: bool = False
    # Times at which valid and test begin; None where time does not split
    boundaries_us: tuple[int, int] | None = None

    @property
    def scans(self) -> Sequence[int | None]:
        """The partition of each pass; None is all of them."""
        return (None,) if self.at_once else range(self.partitions)

    @property
    def context(self) -> tuple[PassThroughColumn, ...]:
        """The columns of the impressions log that pass through."""
        return self.impressions.pass_through if self.impressions else ()

    @property
    def delay_us(self) -> dict[str, int]:
        """The availability delay of each log in microseconds."""
        impressions = self.config.impressions
        return {
            "actions": duration_us(self.config.actions.availability_delay),
            "impressions": duration_us(impressions.availability_delay) if impressions else 0,
        }

    @property
    def window_us(self) -> int:
        """The longest window of a label."""
        return max(label.window_us for label in self.config.labels)

    @property
    def has_position(self) -> bool:
        """True if positions were logged."""
        return self.impressions is not None and "wd_position" in self.impressions.key

    def id_type(self, of: str) -> str:
        """Return the SQL type of an id."""
        return "VARCHAR" if self.text[of] else "BIGINT"

    def id_integer(self, of: str) -> str:
        """Return SQL for the id in the column ``wd_<of>`` as an integer."""
        return id_as_integer(f"wd_{of}", self.text[of])

    def history_by(self, scope: str) -> Sequence[tuple[str, History]]:
        """Return (inner name, definition) of the history features of a scope."""
        numbered = enumerate(self.config.history)
        return [(f"h{number}", feature) for number, feature in numbered if feature.by == scope]

    def history_type(self, feature: History) -> str:
        """Return the SQL type of a history feature."""
        if feature.feature == "last":
            return f"{self.id_type('item')}[]"
        return "BIGINT" if feature.feature == "count" else "DOUBLE"
