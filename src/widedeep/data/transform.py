"""Transform: columns and a schema to a Batch. Training, evaluation and serving run this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.data.fragments import origin_of
from widedeep.data.misspelt import misspelt_keys
from widedeep.data.transform_plan import CompiledPlan, compile_plan, plain_value
from widedeep.errors import DataError, SchemaError, nearest
from widedeep.kernels.transform import TransformProgram, make_program
from widedeep.schema import Schema

if TYPE_CHECKING:
    from widedeep.kernels.transform import Encoded

PartIds: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]

_ROWS_WITH_KEYS = 8
"""Rows of a request whose keys are compared with absent columns."""


class Transform:
    """Turns rows into a :class:`~widedeep.data.batch.Batch` by a schema."""

    def __init__(self, schema: Schema, *, threads: int = 1) -> None:
        self.schema = schema
        self.threads = threads
        self.absent: dict[str, int] = {}
        self._plan = compile_plan(schema)
        self._part_programs: dict[str, TransformProgram] = {}
        if not self._plan.unlearned:
            slots = [self._plan.places[slot.name] for slot in schema.slots]
            self._training = make_program(
                self._plan.native, slots, dense=True, targets=True, fixed=False
            )
            self._scoring = make_program(
                self._plan.native, slots, dense=True, targets=False, fixed=True
            )

    def __reduce__(self) -> tuple[type[Transform], tuple[Schema], dict[str, Any]]:
        """Pickle the schema alone: the look-up tables are made of it again."""
        return Transform, (self.schema,), {"threads": self.threads, "absent": self.absent}

    def __copy__(self) -> Transform:
        """Share the look-up tables, which nobody changes: making them again takes milliseconds."""
        made = object.__new__(Transform)
        made.__dict__.update(self.__dict__)
        return made

    @property
    def plan(self) -> CompiledPlan:
        """The native plan, for code that runs other parts of it than whole rows."""
        return self._plan

    def check_values(self, total: int) -> None:
        """Raise if a request that is encoded in pieces comes to more values than it may."""
        self._plan.native.check_values(total)

    def columns(self, targets: bool = True) -> list[str]:
        """Return the input columns that are read."""
        return self._program(targets).columns

    def __call__(
        self,
        table: pa.Table | pa.RecordBatch,
        *,
        targets: bool = True,
        origin: str = "",
        first_row: int = 0,
    ) -> Batch:
        """Encode a table; its columns may come in any order, and others are ignored."""
        program = self._program(targets)
        return self._batch(self._encode(program, table, origin, first_row), targets)

    def rows(
        self,
        rows: Sequence[Mapping[str, object]],
        *,
        strict: bool = False,
        origin: str = "",
        first_row: int = 0,
    ) -> Batch:
        """Encode rows given as dicts, to be scored."""
        program = self._program(False)
        dicts = [row if type(row) is dict else _as_dict(row, i) for i, row in enumerate(rows)]
        encoded, absent = program.encode_rows(dicts, plain_value, origin, first_row, self.threads)
        for column, count in zip(program.columns, absent, strict=True):
            if not count:
                continue
            if strict:
                raise _absent_key(dicts, column, origin, first_row)
            self.absent[column] = self.absent.get(column, 0) + count
        return self._batch(encoded, False)

    def misspelt(self, rows: Sequence[Mapping[str, object]]) -> dict[str, str]:
        """Return keys of rows that look like a column that their row lacks, with it."""
        columns = self._program(False).columns
        known, result = frozenset(columns), {}
        for row in rows[:_ROWS_WITH_KEYS]:
            absent = (column for column in columns if column not in row)
            result.update(misspelt_keys(map(str, row), absent, known))
        return result

    def part_ids(
        self,
        table: pa.Table | pa.RecordBatch,
        names: Sequence[str],
        *,
        origin: str = "",
        first_row: int = 0,
    ) -> list[PartIds]:
        """Encode parts of crosses on their own, whether or not they are placed in the model."""
        return [
            self._encode(self._part_program(name), table, origin, first_row)[:2] for name in names
        ]

    def _program(self, targets: bool) -> TransformProgram:
        if self._plan.unlearned:
            raise SchemaError(
                f"cross {self._plan.unlearned[0]!r}: the schema holds no combinations for it; "
                "fit the schema again"
            )
        return self._training if targets else self._scoring

    def _part_program(self, name: str) -> TransformProgram:
        if name not in self._part_programs:
            place = self._plan.places.get(name)
            if place is None or place[0] != "part":
                known = [part for part, (kind, _) in self._plan.places.items() if kind == "part"]
                raise SchemaError(
                    f"got {name!r}, which is no part of a cross; {nearest(name, known)}"
                )
            self._part_programs[name] = make_program(
                self._plan.native, [place], dense=False, targets=False, fixed=False
            )
        return self._part_programs[name]

    def _encode(
        self,
        program: TransformProgram,
        table: pa.Table | pa.RecordBatch,
        origin: str,
        first_row: int,
    ) -> Encoded:
        columns = program.columns
        if not origin:
            origin, first_row = origin_of(table) or ("", first_row)
        _check_columns(table.schema.names, columns, origin)
        chosen = table.select(columns)
        batches = [chosen] if isinstance(chosen, pa.RecordBatch) else chosen.to_batches()
        capsules = [batch.__arrow_c_array__() for batch in batches]
        return program.encode(capsules, origin, first_row, self.threads)

    def _batch(self, encoded: Encoded, targets: bool) -> Batch:
        ids, offsets, dense, values, labels, weight, group = encoded
        return Batch(
            ids_N=ids,
            offsets_BF=offsets,
            dense_BK=dense,
            values_N=values,
            labels_BL=labels if targets and self.schema.spec.labels else None,
            weight_B=weight,
            group_B=group,
        )


def _check_columns(names: list[str], wanted: list[str], origin: str) -> None:
    place = origin or "the table"
    found = set(names)
    for column in wanted:
        if column not in found:
            raise DataError(f"{place}: got no column {column!r}; {nearest(column, names)}")
    if len(found) == len(names):
        return
    for column in wanted:
        count = names.count(column)
        if count > 1:
            raise DataError(
                f"{place}: got {count} columns named {column!r}, expected one; rename the others"
            )


def _as_dict(row: object, position: int) -> dict[str, object]:
    if isinstance(row, Mapping):
        return dict(row)
    raise DataError(
        f"row {position}: got {row!r} ({type(row).__name__}), expected a dict from column to value"
    )


def _absent_key(
    rows: list[dict[str, object]], column: str, origin: str, first_row: int
) -> DataError:
    position, row = next((i, row) for i, row in enumerate(rows) if column not in row)
    place = f"row {first_row + position}" + (f" of {origin}" if origin else "")
    return DataError(
        f"{place}: got no key {column!r}, expected it since strict=True (give None for a missing "
        f"value); {nearest(column, map(str, row))}"
    )
