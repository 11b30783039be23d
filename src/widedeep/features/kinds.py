"""The kinds of features: numeric, categorical, bucketized and crossed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from widedeep.errors import FeatureError, nearest, show_value

__all__ = [
    "Bucketized",
    "Categorical",
    "Combiner",
    "Crossed",
    "Feature",
    "Numeric",
    "bucketized",
    "categorical",
    "crossed",
    "numeric",
]

Combiner = Literal["sum", "mean", "sqrtn"]
NumericTransform = Literal["quantile", "standard", "minmax", "log1p", "none"]
COMBINERS = ("sum", "mean", "sqrtn")
MAX_COMBINATIONS = 65_536
"""Combinations that the lists of one row may make in a cross."""
NUMERIC_TRANSFORMS = ("quantile", "standard", "minmax", "log1p", "none")
OOV_POLICIES = ("id", "drop")
_MOST_IDS = 2**48
_MOST_COLUMNS = 2**20
_INT64 = range(-(2**63), 2**63)


def check(condition: bool, name: str, message: str) -> None:
    """Raise a :class:`FeatureError` about feature ``name`` unless ``condition`` holds."""
    if not condition:
        raise FeatureError(f"feature {name!r}: {message}")


def is_name(value: object) -> bool:
    """Tell whether a value can name a feature or a column: text, not empty, in Unicode."""
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _is_word(value: object, words: Sequence[str]) -> bool:
    return isinstance(value, str) and value in words


def _check_text(name: str, option: str, got: object) -> None:
    check(
        got is None or is_name(got),
        name,
        f"got {option}={show_value(got)}, expected a non-empty string",
    )


def _check_at_least(
    name: str, option: str, got: int | None, least: int, most: int = _MOST_IDS
) -> None:
    whole = isinstance(got, int) and not isinstance(got, bool)
    upper = f", at most {most:,}" if whole and got is not None and got > most else ""
    check(
        got is None or (whole and least <= got <= most),
        name,
        f"got {option}={show_value(got)}, expected an integer of at least {least}{upper}",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Numeric:
    """A number, or a vector of fixed length. Use :func:`numeric` to make one.

    Args:
        name: The feature's name.
        source: The column it is read from.
        transform: ``"quantile"`` (the cumulative distribution, after Cheng et al. 2016, section
            4.1), ``"standard"``, ``"minmax"``, ``"log1p"`` (sign(x) log(1 + |x|), then
            standardised) or ``"none"``.
        quantiles: Number of boundaries learned for ``"quantile"``, at least 2.
        missing: What a null becomes: ``"mean"`` (of the transformed training values), a number
            (read as a raw value), or ``"indicator"`` (the mean, and a second dense column that is 1
            for a null).
        size: Length of the vector, 1 for a plain number.
    """

    name: str
    source: str
    transform: NumericTransform = "quantile"
    quantiles: int = 256
    missing: Literal["mean", "indicator"] | float = "mean"
    size: int = 1

    def __post_init__(self) -> None:
        _check_names_of(self)
        check(
            _is_word(self.transform, NUMERIC_TRANSFORMS),
            self.name,
            f"got transform={show_value(self.transform)}, "
            f"{nearest(str(self.transform), NUMERIC_TRANSFORMS)}",
        )
        _check_at_least(self.name, "quantiles", self.quantiles, 2, _MOST_COLUMNS)
        _check_at_least(self.name, "size", self.size, 1, _MOST_COLUMNS)
        if isinstance(self.missing, str):
            check(
                self.missing in ("mean", "indicator"),
                self.name,
                f"got missing={show_value(self.missing)}, expected 'mean', 'indicator' or a number",
            )
        else:
            number = None if isinstance(self.missing, bool) else _finite(self.missing)
            check(
                number is not None,
                self.name,
                f"got missing={show_value(self.missing)}, expected 'mean', 'indicator' or a "
                "finite number",
            )
            object.__setattr__(self, "missing", number)

    @property
    def width(self) -> int:
        """Number of dense columns the feature fills."""
        return self.size * (2 if self.missing == "indicator" else 1)


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
        _check_names_of(self)
        for option in ("vocabulary_file", "weights", "table"):
            _check_text(self.name, option, getattr(self, option))
        ways = {
            "vocabulary": self.vocabulary,
            "vocabulary_file": self.vocabulary_file,
            "hash_buckets": self.hash_buckets,
            "num_buckets": self.num_buckets,
        }
        given = [way for way, value in ways.items() if value is not None]
        check(len(given) <= 1, self.name, f"got {' and '.join(given)}; give at most one of them")
        for option, least in (("min_count", 1), ("oov_buckets", 0)):
            _check_at_least(self.name, option, getattr(self, option), least)
        for option in ("max_size", "hash_buckets", "num_buckets"):
            _check_at_least(self.name, option, getattr(self, option), 1)
        _check_at_least(self.name, "embedding_dim", self.embedding_dim, 1, 2**31 - 1)
        _check_combiner(self.name, self.combiner)
        check(
            _is_word(self.oov, OOV_POLICIES),
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


def _check_combiner(name: str, combiner: str | None) -> None:
    check(
        combiner is None or _is_word(combiner, COMBINERS),
        name,
        f"got combiner={show_value(combiner)}, expected 'sum', 'mean', 'sqrtn' or None (keep the "
        "sequence)",
    )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucketized:
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
    """

    name: str
    source: str
    boundaries: tuple[float, ...] | None = None
    quantiles: int | None = None
    bins: int | None = None
    embedding_dim: int | None = None

    def __post_init__(self) -> None:
        _check_names_of(self)
        ways = {"boundaries": self.boundaries, "quantiles": self.quantiles, "bins": self.bins}
        given = [way for way, value in ways.items() if value is not None]
        check(
            len(given) == 1,
            self.name,
            f"got {' and '.join(given) or 'no way to cut it'}, expected one of boundaries=[...], "
            "quantiles=n and bins=n",
        )
        for option in ("quantiles", "bins"):
            _check_at_least(self.name, option, getattr(self, option), 2, _MOST_COLUMNS)
        _check_at_least(self.name, "embedding_dim", self.embedding_dim, 1, 2**31 - 1)
        if self.boundaries is not None:
            check(
                isinstance(self.boundaries, tuple)
                and len(self.boundaries) > 0
                and all(_finite(value) is not None for value in self.boundaries)
                and all(a < b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)),
                self.name,
                f"got boundaries={show_value(self.boundaries)}, "
                "expected strictly increasing finite numbers",
            )


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
            _check_at_least(self.name, option, getattr(self, option), 1)
        _check_at_least(self.name, "embedding_dim", self.embedding_dim, 1, 2**31 - 1)
        _check_combiner(self.name, self.combiner)
        check(
            self.combiner is not None,
            self.name,
            "got combiner=None, and a cross cannot keep a sequence",
        )


Feature = Numeric | Categorical | Bucketized | Crossed


def numeric(
    *names: str,
    source: str | None = None,
    transform: NumericTransform = "quantile",
    quantiles: int = 256,
    missing: Literal["mean", "indicator"] | float = "mean",
    size: int = 1,
) -> list[Numeric]:
    """Declare numeric features, one for each name.

    Args:
        *names: Names of the features, which are also their columns.
        source: The column, if it has another name (one feature only).
        transform: See :class:`Numeric`.
        quantiles: See :class:`Numeric`.
        missing: See :class:`Numeric`.
        size: Length of the vector, 1 for a plain number.

    Returns:
        A list, to be unpacked into ``features=[...]`` or given as it is.

    Raises:
        FeatureError: If an option is outside its range.

    Example:
        >>> [feature.name for feature in numeric("age", "hours_per_week")]
        ['age', 'hours_per_week']
    """
    _check_names(names, source)
    return [
        Numeric(
            name=name,
            source=name if source is None else source,
            transform=transform,
            quantiles=quantiles,
            missing=missing,
            size=size,
        )
        for name in names
    ]


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
    _check_names(names, source)
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


def _finite(value: object) -> float | None:
    """A value as a finite float; None for text, which float() reads too, and all else."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _plain_boundaries(name: str, boundaries: Sequence[float]) -> tuple[float, ...]:
    listed = isinstance(boundaries, Iterable) and not isinstance(boundaries, (str, bytes, Set))
    numbers = [_finite(value) for value in boundaries] if listed else [None]
    if None in numbers:
        raise FeatureError(
            f"feature {name!r}: got boundaries={show_value(boundaries)}, "
            "expected a list of strictly increasing finite numbers"
        )
    return tuple(number for number in numbers if number is not None)


def _check_names_of(feature: Numeric | Categorical | Bucketized) -> None:
    check(is_name(feature.name), show_value(feature.name), "expected a name: a non-empty string")
    check(
        is_name(feature.source),
        feature.name,
        f"got source={show_value(feature.source)}, expected a non-empty string",
    )


def _check_names(names: tuple[str, ...], source: str | None) -> None:
    for name in names:
        if not is_name(name):
            listed = isinstance(name, (list, tuple))
            hint = "; write the names one by one, or a star before the list" if listed else ""
            raise FeatureError(
                f"got {show_value(name)} as a feature's name, expected a non-empty string{hint}"
            )
    if not names:
        raise FeatureError("got no name, expected at least one feature name")
    if source is not None and len(names) > 1:
        raise FeatureError(
            f"got source={show_value(source)} for {len(names)} features {list(names)}; "
            "declare them one by one"
        )


def bucketized(
    name: str,
    *,
    source: str,
    boundaries: Sequence[float] | None = None,
    quantiles: int | None = None,
    bins: int | None = None,
    embedding_dim: int | None = None,
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
    _check_names((name,), None)
    cuts = None if boundaries is None else _plain_boundaries(name, boundaries)
    return Bucketized(
        name=name,
        source=source,
        boundaries=cuts,
        quantiles=quantiles,
        bins=bins,
        embedding_dim=embedding_dim,
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
    _check_names(parts or ("cross",), None)
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
