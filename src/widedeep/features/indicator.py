"""Indicator features: how often each value of another feature is in a row, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from widedeep.features.encoding import CountEncoding, Encoding
from widedeep.features.id_map import IdMap, no_ids
from widedeep.features.kind import (
    Feature,
    Input,
    Learned,
    SchemaChange,
    register_kind,
)
from widedeep.features.learned import FIRST_KNOWN_ID

MAX_INDICATOR_COLUMNS = 4096
"""Most values that an indicator has columns for."""


@register_kind
@dataclass(frozen=True, kw_only=True, slots=True)
class Indicator(Feature):
    """The counts of another feature's values in a row. Use :func:`indicator` to make one.

    One number per known value in the deep part, as TensorFlow's ``indicator_column`` has: 1 for the
    value of the row and 0 for the others; in a list, how often each is in it; with ``weights``, the
    sum of a value's weights. Unseen and missing values have no column and count nothing; buckets of
    unseen values (``oov_buckets``) have columns of their own.

    Args:
        name: The feature's name.
        source: Name of a categorical, bucketized or crossed feature of the same spec, of at most
            4,096 values.
    """

    source: str

    kind: ClassVar[str] = "indicator"
    order: ClassVar[int] = 4
    wide_by_default: ClassVar[bool] = False
    deep_by_default: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_name_and_source()
        self.require(
            self.source != self.name,
            "got its own name as source, expected that of the feature whose values it counts",
        )

    @property
    def kind_text(self) -> str:
        return f"indicator of {self.source}"

    def inputs(self) -> tuple[Input, ...]:
        return ()

    @property
    def source_feature(self) -> str:
        return self.source

    def refusal_as_part(self) -> str:
        return f"counts values; cross its source {self.source!r} instead"

    @property
    def is_dense(self) -> bool:
        return True

    def dense_columns(self, schema: Learned) -> int:
        return schema.id_count(self.source) - FIRST_KNOWN_ID

    def known_ids(self, schema: Learned) -> int:
        return self.dense_columns(schema)

    def check_fit(self, schema: Learned) -> None:
        self.check_columns(self.dense_columns(schema))

    def check_columns(self, columns: int) -> None:
        """Refuse a source of too many values."""
        self.require(
            columns <= MAX_INDICATOR_COLUMNS,
            f"its source {self.source!r} has {columns:,} values, expected at most "
            f"{MAX_INDICATOR_COLUMNS:,}, for each is a column of the first layer; embed the "
            "source in the deep part instead, or give it max_size= or min_count=",
        )

    def encoding(self, schema: Learned) -> Encoding:
        return CountEncoding(source=self.source, width=self.dense_columns(schema))

    def describe(self, schema: Learned, position: int) -> str:
        return schema.describe_id(self.source, FIRST_KNOWN_ID + position)

    def map_ids(self, older: Indicator, change: SchemaChange) -> IdMap:
        if self.source != older.source:
            size = change.new.id_count(self.name)
            return no_ids(size, f"counts {self.source!r}, before {older.source!r}")
        ids = change.map_ids(self.source)
        has_any = bool(np.any(ids.old_of_N[FIRST_KNOWN_ID:] >= 0))
        return ids if not has_any else IdMap(old_of_N=ids.old_of_N)


def indicator(name: str, *, source: str) -> Indicator:
    """Declare the counts of another feature's values, as numbers of the deep part.

    Where a spec does not list its deep part, an indicator takes the place of its source's embedding
    there; list both in ``deep=[...]`` to have both. In the wide part the source itself has a weight
    per value.

    Args:
        name: The feature's name.
        source: Name of a categorical, bucketized or crossed feature of the same spec, of at most
            4,096 values.

    Returns:
        The feature.

    Raises:
        FeatureError: If a name is none, or both are the same.

    Example:
        >>> import widedeep as wd
        >>> spec = wd.FeatureSpec(
        ...     features=[
        ...         wd.categorical("education"),
        ...         wd.indicator("education_counts", source="education"),
        ...     ]
        ... )
        >>> spec.wide_names, spec.deep_names
        (('education',), ('education_counts',))
        >>> wd.fit_schema(spec, "train.parquet").n_dense
        16
    """
    return Indicator(name=name, source=source)
