"""What peers are given that have no encoder of their own: codes, buckets, and crosses as text.

Text is coded by a dictionary of the training values, and the crosses are columns made by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shared_task as task
from sklearn.preprocessing import QuantileTransformer

Inputs = dict[str, np.ndarray[Any, Any]]


BUCKETS = 20


def texts(table: pa.Table, crosses: list[tuple[str, str]]) -> dict[str, pa.Array]:
    """Return the text columns and the crosses."""
    found = {name: table[name].combine_chunks() for name in task.WORDS}
    for one, other in crosses:
        found[f"{one}x{other}"] = pc.binary_join_element_wise(found[one], found[other], "_")
    return found


class Buckets:
    """Numbers as words: the bucket between the training rows' quantiles, as in our wide part."""

    def __init__(self, train: pa.Table) -> None:
        shares = np.linspace(0, 1, BUCKETS + 1)[1:-1]
        self.edges = np.nanquantile(task.numbers_of(train), shares, axis=0).T

    def __call__(self, table: pa.Table) -> list[list[str]]:
        """Return a column of words for each number; the last bucket is that of missing ones."""
        columns = []
        numbers = task.numbers_of(table).T
        for name, own, values in zip(task.NUMBERS, self.edges, numbers, strict=True):
            places = np.where(np.isnan(values), BUCKETS, np.searchsorted(own, values))
            words = [f"{name}={bucket}" for bucket in range(BUCKETS + 1)]
            columns.append([words[place] for place in places])
        return columns


def tokens(
    table: pa.Table, crosses: list[tuple[str, str]], buckets: Buckets
) -> list[tuple[str, ...]]:
    """Return each row as words that name their column too."""
    columns = [
        [f"{name}={value}" for value in column.to_pylist()]
        for name, column in texts(table, crosses).items()
    ]
    return list(zip(*columns, *buckets(table), strict=True))


class Encoder:
    """Codes text by the training values, numbers by their quantiles."""

    def __init__(self, train: pa.Table, crosses: list[tuple[str, str]]) -> None:
        self.crosses = crosses
        self.known = {
            name: pc.unique(column).drop_null() for name, column in texts(train, crosses).items()
        }
        self.quantiles = QuantileTransformer(n_quantiles=256, random_state=0).fit(
            task.numbers_of(train)
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Codes of each column, 0 included, which stands for the unseen."""
        return {name: len(values) + 1 for name, values in self.known.items()}

    def __call__(self, table: pa.Table) -> Inputs:
        """Return one array a feature; code 0 is the unseen."""
        found: Inputs = {}
        for name, column in texts(table, self.crosses).items():
            codes = pc.fill_null(pc.index_in(column, self.known[name]), -1)
            found[name] = codes.to_numpy(zero_copy_only=False).astype(np.int64) + 1
        scaled = np.nan_to_num(self.quantiles.transform(task.numbers_of(table)), nan=0.5)
        for place, name in enumerate(task.NUMBERS):
            found[name] = scaled[:, place].astype(np.float32)
        return found
