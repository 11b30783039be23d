"""Runs of ties: sorted rows with equal keys, merged into one, across the borders of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from widedeep.metrics.rows import Rows


def changes(*columns: NDArray[np.generic]) -> NDArray[np.intp]:
    """Return where each new value begins in columns that are sorted together; the first is 0."""
    new = np.ones(len(columns[0]), dtype=np.bool_)
    new[1:] = False
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def tie_runs(
    blocks: Iterable[Rows], as_runs: Callable[[Rows], Rows], keys: tuple[str, ...]
) -> Iterator[Rows]:
    """Merge neighbouring rows with equal keys and sum their other fields."""
    held: Rows | None = None
    for block in blocks:
        runs = as_runs(block)
        if held is not None:
            runs = np.concatenate([held, runs])
        runs = _merge_equal(runs, keys)
        held = runs[-1:].copy()
        if len(runs) > 1:
            yield runs[:-1]
    if held is not None:
        yield held


def _merge_equal(runs: Rows, keys: tuple[str, ...]) -> Rows:
    starts = changes(*(runs[key] for key in keys))
    if len(starts) == len(runs):
        return runs
    merged: Rows = np.empty(len(starts), dtype=runs.dtype)
    for name in runs.dtype.names or ():
        merged[name] = runs[name][starts] if name in keys else np.add.reduceat(runs[name], starts)
    return merged
