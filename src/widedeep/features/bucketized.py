"""Bucketized features: a number cut into buckets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import FeatureError, show_value
from widedeep.features.embedding import EmbeddingOptions, embedding_options
from widedeep.features.id_map import IdMap, match_buckets
from widedeep.features.kind import (
    MAX_COLUMNS,
    Feature,
    Input,
    NumberInput,
    SchemaChange,
    check,
    check_at_least,
    check_feature_names,
    check_name_and_source,
    finite_number,
    register_kind,
)
from widedeep.features.learned import ColumnType
from widedeep.features.numbers import NumberSummary, bin_cuts, quantile_cuts


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
        embedding_dim: Width of the embedding if the feature is placed in the deep part.
        embedding: How its rows start and are trained: see
            :class:`widedeep.features.EmbeddingOptions`.
    """

    source: str
    boundaries: tuple[float, ...] | None = None
    quantiles: int | None = None
    bins: int | None = None
    embedding_dim: int | None = None
    embedding: EmbeddingOptions | None = None

    kind: ClassVar[str] = "bucketized"
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_name_and_source(self.name, self.source)
        ways = {"boundaries": self.boundaries, "quantiles": self.quantiles, "bins": self.bins}
        options = [way for way, value in ways.items() if value is not None]
        check(
            len(options) == 1,
            self.name,
            f"got {' and '.join(options) or 'no way to cut it'}, expected one of boundaries=[...], "
            "quantiles=n and bins=n",
        )
        for option in ("quantiles", "bins"):
            check_at_least(self.name, option, getattr(self, option), 2, MAX_COLUMNS)
        check_at_least(self.name, "embedding_dim", self.embedding_dim, 1, 2**31 - 1)
        self._set_embedding(self.embedding, by_value=False)
        if self.boundaries is not None:
            check(
                isinstance(self.boundaries, tuple)
                and len(self.boundaries) > 0
                and all(finite_number(value) is not None for value in self.boundaries)
                and all(a < b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)),
                self.name,
                f"got boundaries={show_value(self.boundaries)}, "
                "expected strictly increasing finite numbers",
            )

    @property
    def kind_text(self) -> str:
        if self.boundaries is not None:
            return "bucketized"
        return "bucketized, " + ("quantiles" if self.bins is None else "bins")

    def inputs(self) -> tuple[Input, ...]:
        return (NumberInput(column=self.source, sample=self.boundaries is None),)

    def fit_boundaries(self, summary: NumberSummary, column: ColumnType) -> NDArray[np.float64]:
        if self.boundaries is not None:
            return column.round(np.array(self.boundaries, np.float64))
        if self.bins is not None:
            return bin_cuts(summary.sample, self.bins)
        assert self.quantiles is not None
        return quantile_cuts(summary.sample, self.quantiles)

    def map_ids(self, older: Bucketized, change: SchemaChange) -> IdMap:
        return match_buckets(*(s.boundaries[self.name] for s in (change.new, change.old)))

    @classmethod
    def declare(cls, name: str, options: Mapping[str, Any]) -> Bucketized:
        return bucketized(name, **options)


def bucketized(
    name: str,
    *,
    source: str,
    boundaries: Sequence[float] | None = None,
    quantiles: int | None = None,
    bins: int | None = None,
    embedding_dim: int | None = None,
    embedding: EmbeddingOptions | Mapping[str, Any] | None = None,
) -> Bucketized:
    """Declare a number cut into buckets.

    Args:
        name: The feature's name.
        source: The numeric column.
        boundaries: Strictly increasing cut points; buckets are closed on the left.
        quantiles: Learn this many buckets of equal mass instead.
        bins: Learn at most this many buckets by value instead, see :class:`Bucketized`; 255 suits
            most columns.
        embedding_dim: Width of the embedding if placed in the deep part.
        embedding: How its rows start and are trained, as a table of the options of
            :class:`widedeep.features.EmbeddingOptions`.

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
    """
    check_feature_names((name,), None)
    cuts = None if boundaries is None else _plain_boundaries(name, boundaries)
    return Bucketized(
        name=name,
        source=source,
        boundaries=cuts,
        quantiles=quantiles,
        bins=bins,
        embedding_dim=embedding_dim,
        embedding=embedding_options(name, embedding),
    )


def _plain_boundaries(name: str, boundaries: Sequence[float]) -> tuple[float, ...]:
    listed = isinstance(boundaries, Iterable) and not isinstance(boundaries, (str, bytes, Set))
    numbers = [finite_number(value) for value in boundaries] if listed else [None]
    if None in numbers:
        raise FeatureError(
            f"feature {name!r}: got boundaries={show_value(boundaries)}, "
            "expected a list of strictly increasing finite numbers"
        )
    return tuple(number for number in numbers if number is not None)
