"""Rows kept apart: a share of a table's rows, chosen by a hash of each row's position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.fragments import Input, Part
from widedeep.errors import ConfigError, DataError

__all__ = ["RowShare", "share_of_inputs", "split_rows"]


@dataclass(frozen=True, kw_only=True)
class RowShare:
    """The rows of ``data`` whose hash lies in [start, stop): data that can be opened as any other.

    The hash is of a row's position over all inputs, so the share of a row does not change when
    files are appended. A row's number in messages counts within the share.

    Args:
        data: A path, a table or whatever else :func:`widedeep.data.sources.open_source` takes.
        start: Lower end, 0 <= start < stop.
        stop: Upper end, at most 1.
        seed: Another seed chooses other rows.

    Example:
        >>> from widedeep.data.sources import open_source
        >>> rows = [{"x": i} for i in range(1000)]
        >>> with open_source(RowShare(data=rows, start=0.0, stop=0.25)) as source:
        ...     source.num_rows
        249
    """

    data: Any
    start: float
    stop: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise ConfigError(
                f"got a share from {self.start} to {self.stop}, expected 0 <= start < stop <= 1"
            )

    def keeps(self, first_row: int, num_rows: int) -> NDArray[np.bool_]:
        """Tell for each of ``num_rows`` rows from position ``first_row`` on whether it belongs."""
        place_B = row_hashes(first_row, num_rows, self.seed)
        kept_B: NDArray[np.bool_] = (place_B >= self.start) & (place_B < self.stop)
        return kept_B


def split_rows(data: Any, valid_fraction: float, *, seed: int = 0) -> tuple[RowShare, RowShare]:
    """Split a table's rows into those to train on and those to validate on.

    Args:
        data: What can be read more than once: a path, a glob, a list of paths, a table.
        valid_fraction: Share of the rows for validation, 0 < share < 1.
        seed: Another seed chooses other rows.

    Returns:
        Training rows and validation rows, for ``fit_schema``, ``Trainer.fit`` and the like.

    Raises:
        ConfigError: If the share is outside its range.
        DataError: If ``data`` can be read only once.

    Example:
        >>> import widedeep as wd
        >>> train, valid = split_rows("train.parquet", 0.1)
        >>> train.start, valid.stop
        (0.1, 0.1)
    """
    if not 0 < valid_fraction < 1:
        raise ConfigError(f"got valid_fraction={valid_fraction}, expected 0 < share < 1")
    if isinstance(data, pa.RecordBatchReader) or hasattr(data, "__next__"):
        raise DataError(
            f"got {type(data).__name__}, which can be read only once, to split into training and "
            "validation rows; write it to a Parquet file, or read it into a table, first"
        )
    train = RowShare(data=data, start=valid_fraction, stop=1.0, seed=seed)
    return train, RowShare(data=data, start=0.0, stop=valid_fraction, seed=seed)


def row_hashes(first_row: int, num_rows: int, seed: int) -> NDArray[np.float64]:
    """Return a hash in [0, 1) of each row position: SplitMix64 (Steele et al. 2014).

    Args:
        first_row: Position of the first row.
        num_rows: Rows from there on.
        seed: 0 <= seed < 2**64.
    """
    rows_B = np.arange(first_row, first_row + num_rows, dtype=np.uint64)
    hashes_B = _mix(rows_B + _mix(np.full(1, seed, np.uint64)))
    return (hashes_B >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Arrays wrap around without a warning, scalars would warn.
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class _SharedPart:
    """The rows of a part that belong to a share."""

    part: Part
    share: RowShare
    first_row: int
    num_rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of the rows that belong."""
        kept_B = self.share.keeps(self.first_row, self.part.num_rows)
        return self.part.read(columns).filter(pa.array(kept_B))


def share_of_inputs(inputs: Iterable[Input], share: RowShare) -> list[Input]:
    """Return inputs that hold only the rows of a share.

    Args:
        inputs: All rows, in order.
        share: Which of them belong.
    """
    found: list[Input] = []
    first_row = 0
    for item in inputs:
        parts = []
        for part in item.parts:
            kept = int(share.keeps(first_row, part.num_rows).sum())
            parts.append(_SharedPart(part, share, first_row, kept))
            first_row += part.num_rows
        record = dict(item.record)
        told = f" (share {share.start:g} to {share.stop:g} of its rows, seed {share.seed})"
        record["name"] = f"{item.record['name']}{told}"
        record["path"] = f"{item.record['path']}{told}"
        record["rows"] = sum(part.num_rows for part in parts)
        found.append(replace(item, record=record, parts=parts))  # type: ignore[arg-type]
    return found
