"""What stands behind a hash bucket: the values of the rows at hand that fall into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.data.batch import Batch
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.schema import Schema

_ROWS_OF_A_CHUNK = 2_000


class HashBucketValues:
    """Counts the values that fall into a few buckets, so that these can be called by them."""

    def __init__(self, schema: Schema, buckets: Mapping[str, Collection[int]]) -> None:
        self._schema = schema
        self._slots = {slot.name: index for index, slot in enumerate(schema.slots)}
        self._wanted = {name: np.array(sorted(ids)) for name, ids in buckets.items() if ids}
        self._seen: dict[tuple[str, int], Counter[str]] = {}

    def add(self, chunk: pa.Table, batch: Batch) -> None:
        """Count rows."""
        offsets_BF = batch.offsets_BF
        for feature, buckets in self._wanted.items():
            slot = self._slots[feature]
            starts_B = offsets_BF[:-1].reshape(len(batch), -1)[:, slot]
            alone_B = offsets_BF[1:].reshape(len(batch), -1)[:, slot] - starts_B == 1
            rows = np.flatnonzero(alone_B)
            ids = batch.ids_N[starts_B[rows]]
            matches = np.flatnonzero(np.isin(ids, buckets))[:_ROWS_OF_A_CHUNK]
            texts = self._texts(feature, chunk, rows[matches])
            for id_, text in zip(ids[matches].tolist(), texts, strict=True):
                self._seen.setdefault((feature, id_), Counter())[text] += 1

    def name(self, feature: str, id_: int) -> str | None:
        """Return the most frequent value of a bucket, and how many others fell into it."""
        seen = self._seen.get((feature, id_))
        if seen is None:
            return None
        text = min(seen, key=lambda value: (-seen[value], value))
        others = f" or {len(seen) - 1:,} more" if len(seen) > 1 else ""
        return f"{text}{others}, bucket {id_ - FIRST_KNOWN_ID:,}"

    def _texts(self, feature: str, chunk: pa.Table, rows: NDArray[np.int64]) -> list[str]:
        declared = self._schema.spec.by_name[feature]
        if not declared.part_names:
            return self._values(feature, chunk, rows)
        names = declared.part_names
        parts = [self._values(column, chunk, rows) for column in names]
        return [
            " & ".join(f"{column}={value}" for column, value in zip(names, row, strict=True))
            for row in zip(*parts, strict=True)
        ]

    def _values(self, name: str, chunk: pa.Table, rows: NDArray[np.int64]) -> list[str]:
        """Of a feature, or of a column that a cross reads; a bucket by its bounds."""
        feature = self._schema.spec.by_name.get(name)
        source = name if feature is None else feature.input_columns[0]
        values = [_only(value) for value in chunk.column(source).take(pa.array(rows)).to_pylist()]
        if name not in self._schema.boundaries:
            return [str(value) for value in values]
        numbers = self._schema.columns[source].round(np.array(values, float))
        places = np.searchsorted(self._schema.boundaries[name], numbers, "right")
        return [self._schema.describe_id(name, FIRST_KNOWN_ID + int(index)) for index in places]


def _only(value: object) -> object:
    """A list's one value, nulls aside; text of bytes."""
    if isinstance(value, list):
        value = next((entry for entry in value if entry is not None), None)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
