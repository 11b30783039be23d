"""Bucketized features: a number cut into buckets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import FeatureError, show_value
from widedeep.features.embedding import EmbeddingOptions
from widedeep.features.encoding import BucketEncoding, Encoding
from widedeep.features.id_map import IdMap, match_buckets, no_ids, reserved_ids
from widedeep.features.kind import (
    COMBINERS,
    MAX_COLUMNS,
    MAX_WIDTH,
    Combiner,
    Feature,
    Input,
    Learned,
    NumberInput,
    SchemaChange,
    bucket_text,
    declare_features,
    finite_number,
    register_kind,
)
from widedeep.features.learned import FIRST_KNOWN_ID, ColumnType
from widedeep.features.numbers import NumberSummary, bin_cuts, quantile_cuts
from widedeep.options import keyword_signature


@register_kind
@dataclass(frozen=True, kw_only=True, slots=True)
class Bucketized(Feature):
    """A number cut into buckets. Use :func:`bucketized` to make one.

    Buckets are closed on the left: boundaries ``[18, 25]`` make ``(-inf, 18)``, ``[18, 25)``,
    ``[25, inf)``.

    Args:
        name: The feature's name.
        source: The numeric column.
        boundaries: Strictly increasing cut points.
        quantiles: Learn this many buckets of equal mass instead (equal boundaries are merged).
        bins: Learn at most this many buckets by value instead, with cuts midway between two values:
            one bucket per distinct value where that suffices, else frequent values alone and the
            rest in buckets of equal mass (after Ke et al. 2017, LightGBM). No bucket holds fewer
            than three rows.
        size: Length of the column's vectors, 1 for a plain number. Each component of a vector has
            buckets of its own, all between the same ``boundaries``, and a row one value per
            component; null components are left out.
        embedding_dim: Width of the embedding if the feature is placed in the deep part.
        combiner: How the components of a vector become one vector in the deep part.
        embedding: How its rows start and are trained: see
            :class:`widedeep.features.EmbeddingOptions`.
    """

    source: str
    boundaries: tuple[float, ...] | None = None
    quantiles: int | None = None
    bins: int | None = None
    size: int = 1
    embedding_dim: int | None = None
    combiner: Combiner = "mean"
    embedding: EmbeddingOptions | None = None

    kind: ClassVar[str] = "bucketized"
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._check_name_and_source()
        ways = {"boundaries": self.boundaries, "quantiles": self.quantiles, "bins": self.bins}
        options = [way for way, value in ways.items() if value is not None]
        self.require(
            len(options) == 1,
            f"got {' and '.join(options) or 'no way to cut it'}, expected one of boundaries=[...], "
            "quantiles=n and bins=n",
        )
        self.require_at_least(2, "quantiles", "bins", most=MAX_COLUMNS)
        self.require_at_least(1, "size", most=MAX_COLUMNS)
        self.require(
            self.size == 1 or self.boundaries is not None,
            f"got size={self.size} and {' and '.join(options)}, expected boundaries=[...] for a "
            "vector; give them, or declare its components as columns of their own",
        )
        self.require_word("combiner", *COMBINERS)
        self.require(self.combiner is not None, "got combiner=None, and buckets are no sequence")
        self.require(
            self.size != 1 or self.combiner == "mean",
            f"got combiner={self.combiner!r}, which has no effect on one number; leave it out",
        )
        self.require_at_least(1, "embedding_dim", most=MAX_WIDTH)
        self._set_embedding(self.embedding, by_value=False)
        if self.boundaries is not None:
            cuts = _plain_boundaries(self.name, self.boundaries)
            object.__setattr__(self, "boundaries", cuts)
            self.require(
                len(cuts) > 0 and all(a < b for a, b in itertools.pairwise(cuts)),
                f"got boundaries={show_value(self.boundaries)}, "
                "expected strictly increasing finite numbers",
            )

    @property
    def kind_text(self) -> str:
        if self.boundaries is not None:
            return "bucketized"
        return "bucketized, " + ("quantiles" if self.bins is None else "bins")

    def inputs(self) -> tuple[Input, ...]:
        return (NumberInput(column=self.source, size=self.size, sample=self.boundaries is None),)

    @property
    def deep_combiner(self) -> Combiner | None:
        return self.combiner if self.size > 1 else "sum"

    def encoding(self, schema: Learned) -> Encoding:
        cuts = schema.boundaries[self.name]
        return BucketEncoding(column=self.source, boundaries=cuts, size=self.size)

    def known_ids(self, schema: Learned) -> int:
        return self.size * (len(schema.boundaries[self.name]) + 1)

    def describe(self, schema: Learned, position: int) -> str:
        cuts = schema.boundaries[self.name]
        component, bucket = divmod(position, len(cuts) + 1)
        text = bucket_text(cuts, bucket)
        return text if self.size == 1 else f"component {component}: {text}"

    def example_values(self, schema: Learned) -> Iterator[Any]:
        # super() without arguments fails under slots
        for value in Feature.example_values(self, schema):
            yield value if self.size == 1 else [value] * self.size

    def fit_boundaries(self, summary: NumberSummary, column: ColumnType) -> NDArray[np.float64]:
        if self.boundaries is not None:
            return column.round(np.array(self.boundaries, np.float64))
        if self.bins is not None:
            return bin_cuts(summary.sample, self.bins)
        assert self.quantiles is not None
        return quantile_cuts(summary.sample, self.quantiles)

    def map_ids(self, older: Bucketized, change: SchemaChange) -> IdMap:
        ids = match_buckets(*(s.boundaries[self.name] for s in (change.new, change.old)))
        if self.size == older.size == 1:
            return ids
        if self.size != older.size:
            size = change.new.id_count(self.name)
            return no_ids(size, f"vectors of {older.size} numbers became {self.size}")
        old_of_N = reserved_ids(change.new.id_count(self.name))
        per_component = ids.old_of_N[FIRST_KNOWN_ID:]
        n_old = len(change.old.boundaries[self.name]) + 1
        starts = np.arange(self.size)[:, None] * n_old  # (size, 1)
        moved = np.where(per_component >= 0, per_component + starts, -1)
        old_of_N[FIRST_KNOWN_ID:] = moved.reshape(-1)
        return IdMap(old_of_N=old_of_N)

    def key_change(self, older: Bucketized, change: SchemaChange) -> str:
        if self.size != older.size:
            return f"vectors of {older.size} numbers became {self.size}"
        return Feature.key_change(self, older, change)


def bucketized(name: str, *, source: str, **options: Any) -> Bucketized:
    """Declare a number cut into buckets.

    Args:
        name: The feature's name.
        source: The numeric column.
        options: Fields of :class:`Bucketized` by keyword: one of ``boundaries``, ``quantiles`` and
            ``bins`` (255 suits most columns), and perhaps others; lists and tables stand for tuples
            and :class:`widedeep.features.EmbeddingOptions`.

    Returns:
        The feature.

    Raises:
        FeatureError: If the boundaries do not increase, or not exactly one of ``boundaries``,
            ``quantiles`` and ``bins`` is given.

    Example:
        >>> bucketized("age_bucket", source="age", boundaries=[18, 65]).boundaries
        (18.0, 65.0)
        >>> bucketized("age_bin", source="age", bins=255).bins
        255
        >>> bucketized("corner", source="corners", boundaries=[0, 1], size=2).size
        2
    """
    return declare_features(Bucketized, (name,), source, options)[0]


bucketized.__signature__ = keyword_signature(bucketized, Bucketized)  # type: ignore[attr-defined]


def _plain_boundaries(name: str, boundaries: Sequence[float]) -> tuple[float, ...]:
    listed = isinstance(boundaries, Iterable) and not isinstance(boundaries, (str, bytes, Set))
    numbers = [finite_number(value) for value in boundaries] if listed else [None]
    if None in numbers:
        raise FeatureError(
            f"feature {name!r}: got boundaries={show_value(boundaries)}, "
            "expected a list of strictly increasing finite numbers"
        )
    return tuple(number for number in numbers if number is not None)
