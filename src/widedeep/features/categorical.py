"""Categorical features: a value of a set, or a list of such values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from widedeep.errors import show_value
from widedeep.features.kind import (
    Combiner,
    check,
    check_at_least,
    check_combiner,
    check_feature_names,
    check_name_and_source,
    check_text,
    is_name,
    is_word,
)

OOV_POLICIES = ("id", "drop")


_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, kw_only=True, slots=True)
class Categorical:
    """A value of a set, or a list of such values. Use :func:`categorical` to make one.

    Exactly one way to turn values into ids is used: a vocabulary (learned, given or in a file),
    ``hash_buckets``, or ``num_buckets``. Id 0 is out-of-vocabulary and id 1 missing; known values
    follow.

    Args:
        name: The feature's name.
        source: The column it is read from. A list column makes the feature multi-valued.
        vocabulary: The known values, in order of their ids. Learned from the data if not given.
        vocabulary_file: A UTF-8 file with one value a line, instead of ``vocabulary``.
        min_count: A learned vocabulary keeps values seen at least this many times.
        max_size: A learned vocabulary keeps at most this many, the most frequent first.
        hash_buckets: Hash values (Fingerprint64 modulo this number) instead of learning a
            vocabulary.
        num_buckets: The values are integers 0 <= v < ``num_buckets`` and are used as they are.
        oov_buckets: Spread unseen values over this many ids by hash, instead of sharing id 0.
        oov: ``"id"`` keeps an unseen value as id 0 (or an OOV bucket), ``"drop"`` leaves it out.
        empty_as_null: Read ``""`` as a null, as TensorFlow does.
        weights: A column with one number a value (list columns: of the same lengths).
        embedding_dim: Width of the embedding. The model's default if not given.
        combiner: How several values become one vector; None keeps the sequence for a tower.
        table: Name of the embedding table. Features that name the same table share it and its
            vocabulary.
    """

    name: str
    source: str
    vocabulary: tuple[str, ...] | tuple[int, ...] | None = None
    vocabulary_file: str | None = None
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None
    num_buckets: int | None = None
    oov_buckets: int = 0
    oov: Literal["id", "drop"] = "id"
    empty_as_null: bool = False
    weights: str | None = None
    embedding_dim: int | None = None
    combiner: Combiner | None = "mean"
    table: str | None = None

    def __post_init__(self) -> None:
        check_name_and_source(self.name, self.source)
        for option in ("vocabulary_file", "weights", "table"):
            check_text(self.name, option, getattr(self, option))
        ways = {
            "vocabulary": self.vocabulary,
            "vocabulary_file": self.vocabulary_file,
            "hash_buckets": self.hash_buckets,
            "num_buckets": self.num_buckets,
        }
        given = [way for way, value in ways.items() if value is not None]
        check(len(given) <= 1, self.name, f"got {' and '.join(given)}; give at most one of them")
        for option, least in (("min_count", 1), ("oov_buckets", 0)):
            check_at_least(self.name, option, getattr(self, option), least)
        for option in ("max_size", "hash_buckets", "num_buckets"):
            check_at_least(self.name, option, getattr(self, option), 1)
        check_at_least(self.name, "embedding_dim", self.embedding_dim, 1, 2**31 - 1)
        check_combiner(self.name, self.combiner)
        check(
            is_word(self.oov, OOV_POLICIES),
            self.name,
            f"got oov={show_value(self.oov)}, expected 'id' or 'drop'",
        )
        check(
            not (self.oov_buckets and (self.hash_buckets or self.num_buckets)),
            self.name,
            "oov_buckets needs a vocabulary; drop it, or drop hash_buckets/num_buckets",
        )
        check(
            isinstance(self.empty_as_null, bool),
            self.name,
            f"got empty_as_null={show_value(self.empty_as_null)}, expected true or false",
        )
        _check_vocabulary(self.name, self.vocabulary)


def categorical(
    *names: str,
    source: str | None = None,
    vocabulary: Sequence[str] | Sequence[int] | None = None,
    vocabulary_file: str | None = None,
    min_count: int = 1,
    max_size: int | None = None,
    hash_buckets: int | None = None,
    num_buckets: int | None = None,
    oov_buckets: int = 0,
    oov: Literal["id", "drop"] = "id",
    empty_as_null: bool = False,
    weights: str | None = None,
    embedding_dim: int | None = None,
    combiner: Combiner | None = "mean",
    table: str | None = None,
) -> list[Categorical]:
    """Declare categorical features, one for each name.

    Args:
        *names: Names of the features, which are also their columns.
        source: The column, if it has another name (one feature only).
        vocabulary: See :class:`Categorical`, also for the options that follow.
        vocabulary_file: One value a line.
        min_count: Least number of times a value of a learned vocabulary was seen.
        max_size: Most values of a learned vocabulary.
        hash_buckets: Hash instead of learning a vocabulary.
        num_buckets: The values are ids already.
        oov_buckets: Ids for unseen values.
        oov: ``"id"`` or ``"drop"``.
        empty_as_null: Read ``""`` as a null.
        weights: Column with one weight a value.
        embedding_dim: Width of the embedding.
        combiner: ``"mean"``, ``"sum"``, ``"sqrtn"``, or None to keep the sequence.
        table: Name of a shared embedding table.

    Returns:
        A list, to be unpacked into ``features=[...]`` or given as it is.

    Raises:
        FeatureError: If an option is outside its range, or two ways to make ids are given.

    Example:
        >>> categorical("country", hash_buckets=1000)[0].hash_buckets
        1000
    """
    check_feature_names(names, source)
    return [
        Categorical(
            name=name,
            source=name if source is None else source,
            vocabulary=None if vocabulary is None else _plain_values(name, vocabulary),
            vocabulary_file=vocabulary_file,
            min_count=min_count,
            max_size=max_size,
            hash_buckets=hash_buckets,
            num_buckets=num_buckets,
            oov_buckets=oov_buckets,
            oov=oov,
            empty_as_null=empty_as_null,
            weights=weights,
            embedding_dim=embedding_dim,
            combiner=combiner,
            table=table,
        )
        for name in names
    ]


def _plain_values(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    check(
        not isinstance(values, (str, bytes)),
        name,
        f"got vocabulary={show_value(values)}, expected a list of values: "
        f"vocabulary=[{show_value(values)}]",
    )
    check(
        isinstance(values, Iterable) and not isinstance(values, (Set, Mapping)),
        name,
        f"got vocabulary={show_value(values)} ({type(values).__name__}), expected a list of values "
        "in the order of their ids",
    )
    # NumPy arrays, pandas and Polars columns hold scalars of their own types, not Python's.
    for plain in ("tolist", "to_list"):
        if hasattr(values, plain):
            return tuple(getattr(values, plain)())
    return tuple(values)


def _check_vocabulary(name: str, vocabulary: Sequence[str] | Sequence[int] | None) -> None:
    if vocabulary is None:
        return
    check(
        isinstance(vocabulary, tuple),
        name,
        f"got vocabulary={show_value(vocabulary)}, expected a tuple of values",
    )
    check(len(vocabulary) > 0, name, "got an empty vocabulary, expected at least one value")
    kinds = {type(value) for value in vocabulary}
    check(
        kinds in ({str}, {int}),
        name,
        f"got vocabulary values of {sorted(k.__name__ for k in kinds)}, "
        "expected all str or all int",
    )
    for value in vocabulary:
        check(
            value == "" or is_name(value) if isinstance(value, str) else value in _INT64,
            name,
            f"got {show_value(value)} in its vocabulary, expected integers of 64 bits or text in "
            "Unicode; give others as text",
        )
    seen: set[object] = set()
    for value in vocabulary:
        check(value not in seen, name, f"got {value!r} twice in its vocabulary; remove one")
        seen.add(value)
