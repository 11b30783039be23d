"""Crossed features: the cross-product of two or more features."""

from __future__ import annotations

from dataclasses import dataclass

from widedeep.errors import show_value
from widedeep.features.kind import (
    Combiner,
    check,
    check_at_least,
    check_combiner,
    check_feature_names,
    is_name,
)

MAX_COMBINATIONS = 65_536
"""Combinations that the lists of one row may make in a cross."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossed:
    """The cross-product of two or more features. Use :func:`crossed` to make one.

    It is 1 where all its parts are 1 (Cheng et al. 2016, equation 1).
    A part that is multi-valued contributes each of its values; a null part yields no cross.

    Args:
        name: The feature's name.
        parts: Names of categorical or bucketized features, or of raw columns.
        min_count: Combinations seen at least this many times get an id of their own.
        max_size: At most this many, the most frequent first.
        hash_buckets: Hash combinations instead (ids agree with TensorFlow's ``crossed_column``).
        embedding_dim: Width of the embedding if the feature is placed in the deep part.
        combiner: How several combinations become one vector in the deep part.
        max_combinations: A row whose lists make more is refused, in training and serving alike.
    """

    name: str
    parts: tuple[str, ...]
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None
    embedding_dim: int | None = None
    combiner: Combiner = "mean"
    max_combinations: int = MAX_COMBINATIONS

    def __post_init__(self) -> None:
        check(is_name(self.name), show_value(self.name), "expected a name: a non-empty string")
        check(
            isinstance(self.parts, tuple) and all(is_name(part) for part in self.parts),
            self.name,
            f"got parts={show_value(self.parts)}, expected names of features or columns",
        )
        check(
            len(self.parts) >= 2, self.name, f"got {len(self.parts)} part(s), expected two or more"
        )
        check(
            len(set(self.parts)) == len(self.parts),
            self.name,
            f"got a part twice in {list(self.parts)}; a feature crossed with itself adds nothing",
        )
        for option in ("min_count", "max_size", "hash_buckets", "max_combinations"):
            check_at_least(self.name, option, getattr(self, option), 1)
        check_at_least(self.name, "embedding_dim", self.embedding_dim, 1, 2**31 - 1)
        check_combiner(self.name, self.combiner)
        check(
            self.combiner is not None,
            self.name,
            "got combiner=None, and a cross cannot keep a sequence",
        )


def crossed(
    *parts: str,
    name: str | None = None,
    min_count: int = 1,
    max_size: int | None = None,
    hash_buckets: int | None = None,
    embedding_dim: int | None = None,
    combiner: Combiner = "mean",
    max_combinations: int = MAX_COMBINATIONS,
) -> Crossed:
    """Declare the cross-product of two or more features.

    Args:
        *parts: Names of categorical or bucketized features, or of raw columns.
        name: The cross's name; the parts joined by ``_x_`` if not given.
        min_count: Combinations seen at least this many times get an id of their own.
        max_size: At most this many combinations.
        hash_buckets: Hash combinations instead of learning ids.
        embedding_dim: Width of the embedding if placed in the deep part.
        combiner: How several combinations become one vector in the deep part.
        max_combinations: Most combinations of one row, where parts are lists: three lists of 40
            values make 64,000. A row of more is refused, in training and serving alike.

    Returns:
        The feature.

    Raises:
        FeatureError: If fewer than two parts are given or an option is outside its range.

    Example:
        >>> crossed("education", "occupation").name
        'education_x_occupation'
    """
    check_feature_names(parts or ("cross",), None)
    return Crossed(
        name=name or "_x_".join(parts),
        parts=tuple(parts),
        min_count=min_count,
        max_size=max_size,
        hash_buckets=hash_buckets,
        embedding_dim=embedding_dim,
        combiner=combiner,
        max_combinations=max_combinations,
    )
