"""Numeric features: a number, or a vector of fixed length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import FeatureError, nearest, show_value
from widedeep.features.embedding import DEFAULT, EmbeddingOptions
from widedeep.features.encoding import BucketEncoding, Encoding, NumberEncoding, PiecewiseEncoding
from widedeep.features.id_map import (
    IdMap,
    match_buckets,
    match_cut_points,
    no_ids,
    same_ids,
)
from widedeep.features.kind import (
    ENDS,
    MAX_COLUMNS,
    MAX_WIDTH,
    Combiner,
    Feature,
    Input,
    Learned,
    NumberInput,
    PeriodicEmbedding,
    SchemaChange,
    bucket_text,
    declare_features,
    finite_number,
    is_word,
    register_kind,
)
from widedeep.features.learned import ColumnType, NumericFit
from widedeep.features.numbers import (
    LARGEST_SCALED,
    ExactSum,
    NumberSummary,
    bin_cuts,
    bin_medians,
    quantile_cuts,
    quantiles,
    signed_log,
)
from widedeep.options import keyword_signature

NumericTransform = Literal["quantile", "standard", "minmax", "log1p", "none"]


_PROFILE_BUCKETS = 10
_SMALLEST_SPREAD = 1e-300  # inverses of smaller numbers leave float64
NUMERIC_TRANSFORMS = ("quantile", "standard", "minmax", "log1p", "none")

NumberEmbedding = Literal["bins", "piecewise", "periodic"]
_EMBEDDINGS = ("bins", "piecewise", "periodic")
_OPTIONS_OF_MEANING = ("embedding", "size", "transform", "missing", "frequencies", "parallel")
_STANDARDISED = ("quantile", "standard", "log1p")
# Quantiles are uniform from 0 to 1: their mean, and the inverse of their standard deviation.
_UNIFORM_MEAN, _UNIFORM_SCALE = 0.5, math.sqrt(12.0)


@register_kind
@dataclass(frozen=True, kw_only=True, slots=True)
class Numeric(Feature):
    """A number, or a vector of fixed length. Use :func:`numeric` to make one.

    Args:
        name: The feature's name.
        source: The column it is read from.
        transform: ``"quantile"`` (the cumulative distribution, after Cheng et al. 2016, section
            4.1), ``"standard"``, ``"minmax"``, ``"log1p"`` (sign(x) log(1 + |x|), then
            standardised) or ``"none"``.
        shift: Given, with ``scale``, instead of learned mean and deviation: ``"standard"`` makes
            (x - shift) * scale of x. A number, or one per component.
        scale: See ``shift``.
        quantiles: Number of boundaries learned for ``"quantile"``, at least 2.
        missing: What a null becomes: ``"mean"`` (of the transformed training values), a number
            (read as a raw value), or ``"indicator"`` (the mean, and a second dense column that is 1
            for a null).
        size: Length of the vector, 1 for a plain number.
        embedding: Learn a vector of numbers for it, which is then one of the fields that towers
            see, as a category's embedding is: ``"bins"`` (one vector per bin, cut as boosted trees
            cut them, see :class:`Bucketized`), ``"piecewise"`` (one per median of a bin, linear
            between two of them and constant beyond the outer ones; Gorishniy et al. 2022, section
            3.2) or ``"periodic"`` (sines and cosines of learned frequencies, a linear layer and a
            rectifier; section 3.3, PLR). None keeps the plain number. With bins and piecewise a
            null has a vector of its own.
        bins: Most bins, for ``"bins"`` and ``"piecewise"``.
        embedding_dim: Width of the embedding. The model's default if not given.
        frequencies: Number of frequencies of ``"periodic"``.
        frequency_std: Standard deviation of the initial frequencies of ``"periodic"``, in periods
            per standard deviation of the number.
        parallel: A sequence (``combiner=None``) whose events it describes: its column holds a list
            of one number per event, such as the seconds that each clicked item was watched. The
            number after its transform multiplies a learned vector of ``embedding_dim``; a null has
            a vector of its own. A list of another length than that of the sequence is refused.
        maxlen: Most events that are read, as in the sequence.
        keep: End of a longer list that is read, as in the sequence: ``"last"`` or ``"first"``.
    """

    source: str
    transform: NumericTransform = "quantile"
    shift: float | tuple[float, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    quantiles: int = 256
    missing: Literal["mean", "indicator"] | float = "mean"
    size: int = 1
    embedding: NumberEmbedding | None = None
    bins: int = 255
    embedding_dim: int | None = None
    frequencies: int = 48
    frequency_std: float = 3.0
    parallel: str | None = None
    maxlen: int | None = None
    keep: Literal["last", "first"] = "last"

    kind: ClassVar[str] = "numeric"
    order: ClassVar[int] = 0
    wide_by_default: ClassVar[bool] = False
    deep_by_default: ClassVar[bool] = True
    toml_form: ClassVar[Literal["table", "names", "list"]] = "names"

    def __post_init__(self) -> None:
        for option in ("shift", "scale"):
            object.__setattr__(self, option, _plain_scaling(getattr(self, option)))
        self._check_name_and_source()
        self.require(
            is_word(self.transform, NUMERIC_TRANSFORMS),
            f"got transform={show_value(self.transform)}, "
            f"{nearest(str(self.transform), NUMERIC_TRANSFORMS)}",
        )
        self.require_at_least(2, "quantiles", "bins", most=MAX_COLUMNS)
        self.require_at_least(1, "size", "frequencies", most=MAX_COLUMNS)
        self.require_at_least(1, "embedding_dim", most=MAX_WIDTH)
        if isinstance(self.missing, str):
            self.require(
                self.missing in ("mean", "indicator"),
                f"got missing={show_value(self.missing)}, expected 'mean', 'indicator' or a number",
            )
        else:
            number = None if isinstance(self.missing, bool) else finite_number(self.missing)
            self.require(
                number is not None,
                f"got missing={show_value(self.missing)}, expected 'mean', 'indicator' or a "
                "finite number",
            )
            object.__setattr__(self, "missing", number)
        std = None if isinstance(self.frequency_std, bool) else finite_number(self.frequency_std)
        self.require(
            std is not None and std > 0,
            f"got frequency_std={show_value(self.frequency_std)}, expected a number above 0",
        )
        object.__setattr__(self, "frequency_std", std)
        self.require_text("parallel")
        self.require_at_least(1, "maxlen")
        self.require_word("keep", *ENDS)
        self._check_embedding()
        self._check_sequence()
        self._check_scaling()

    def _check_embedding(self) -> None:
        """Refuse an unknown embedding, and options that have no effect with the given one."""
        got = self.embedding
        self.require(
            got is None or is_word(got, _EMBEDDINGS),
            f"got embedding={show_value(got)}, {nearest(str(got), _EMBEDDINGS)}",
        )
        self.require(
            got is None or self.size == 1,
            f"got embedding={got!r} and size={self.size}, expected size=1; declare the components "
            "as columns of their own",
        )
        self.require(
            got != "periodic" or self.transform in _STANDARDISED,
            f"got transform={self.transform!r}, expected 'quantile', 'standard' or 'log1p' for "
            "embedding='periodic', whose frequencies are those of standardised numbers",
        )
        used = {
            "transform": not self.has_cut_points,
            "shift": not self.has_cut_points,
            "scale": not self.has_cut_points,
            "quantiles": not self.has_cut_points,
            "missing": not self.has_cut_points,
            "bins": self.has_cut_points,
            "embedding_dim": got is not None or self.is_sequence,
            "frequencies": got == "periodic",
            "frequency_std": got == "periodic",
        }
        for option in self.changed_options():
            self.require(
                used.get(option, True),
                f"got {option}={show_value(getattr(self, option))}, which has no effect with "
                f"embedding={got!r}; leave it out",
            )

    def _check_sequence(self) -> None:
        """Refuse options that have no meaning in a sequence, or outside of one."""
        changed = self.changed_options()
        for option in ("maxlen", "keep"):
            self.require(
                self.is_sequence or option not in changed,
                f"got {option}={show_value(getattr(self, option))}, which has no effect on a plain "
                "number; name the sequence that it describes (parallel=...), or leave it out",
            )
        for option in ("missing", "size", "embedding"):
            self.require(
                not self.is_sequence or option not in changed,
                f"got {option}={show_value(getattr(self, option))} and parallel="
                f"{show_value(self.parallel)}, expected one plain number per event, whose null has "
                f"a vector of its own; leave {option} out",
            )

    def _check_scaling(self) -> None:
        """Refuse a given scaling of another transform or size, and one without its other half."""
        if self.shift is None and self.scale is None:
            return
        for option, other in (("shift", "scale"), ("scale", "shift")):
            got = getattr(self, option)
            self.require(
                got is not None,
                f"got {other}={show_value(getattr(self, other))} without {option}; give both: "
                "(x - shift) * scale",
            )
            numbers = got if isinstance(got, tuple) else (got,) * self.size
            self.require(
                len(numbers) == self.size
                and all(finite_number(number) is not None for number in numbers)
                and (option == "shift" or all(number != 0 for number in numbers)),
                f"got {option}={show_value(got)}, expected a finite number"
                + (" other than 0" if option == "scale" else "")
                + (f", or {self.size} of them" if self.size > 1 else ""),
            )
        self.require(
            self.transform == "standard",
            f"got shift, scale and transform={self.transform!r}, expected transform='standard', "
            "which they replace mean and deviation of",
        )

    @property
    def has_given_scaling(self) -> bool:
        """Whether shift and scale are given, not learned."""
        return self.shift is not None

    @property
    def is_sequence(self) -> bool:
        """Whether its column holds a list of one number per event of a sequence."""
        return self.parallel is not None

    @property
    def has_cut_points(self) -> bool:
        """Whether it becomes ids by cut points, not dense columns."""
        return self.embedding in ("bins", "piecewise")

    @property
    def width(self) -> int:
        """Number of dense columns the feature fills."""
        if self.has_cut_points or self.is_sequence:
            return 0
        return self.size * (2 if self.missing == "indicator" else 1)

    @property
    def dense_width(self) -> int:
        return self.width

    @property
    def kind_text(self) -> str:
        sequence = " sequence" if self.is_sequence else ""
        return f"numeric{sequence}, {self.embedding or self.transform}"

    @property
    def deep_combiner(self) -> Combiner | None:
        return None if self.is_sequence else "sum"

    @property
    def is_bucketed(self) -> bool:
        return self.has_cut_points

    @property
    def embedding_options(self) -> EmbeddingOptions:
        return DEFAULT  # ``embedding`` says what kind it is

    @property
    def learns_numbers(self) -> bool:
        return True

    @property
    def is_weighted_number(self) -> bool:
        return self.embedding != "bins"

    @property
    def periodic_embedding(self) -> PeriodicEmbedding | None:
        if self.embedding != "periodic":
            return None
        plain = PeriodicEmbedding(frequencies=self.frequencies, std=self.frequency_std)
        if self.transform != "quantile":
            return plain
        return replace(plain, shift=_UNIFORM_MEAN, scale=_UNIFORM_SCALE)

    def inputs(self) -> tuple[Input, ...]:
        return (
            NumberInput(
                column=self.source,
                size=self.size,
                events=self.is_sequence,
                moments=(self.transform,) if self._learns_moments else (),
                sample=self._is_sampled,
            ),
        )

    @property
    def _learns_moments(self) -> bool:
        return self.transform in ("standard", "log1p") and not self.has_given_scaling

    @property
    def _is_sampled(self) -> bool:
        """Whether a sorted sample is kept: the gate compares numbers with it, however scaled."""
        return self.transform == "quantile" or self.has_cut_points or not self.is_sequence

    def refusal_as_part(self) -> str:
        if self.embedding == "bins":
            return ""
        return f"is numeric; cross a bucketized(..., source={self.name!r}) instead"

    def fit_numbers(self, summaries: Sequence[NumberSummary], column: ColumnType) -> NumericFit:
        boundaries: list[NDArray[np.float64]] = []
        scaling, fills = [], []
        for component, summary in enumerate(summaries):
            ordered = summary.sample if self.transform == "quantile" else np.empty(0)
            cuts = quantiles(ordered, self.quantiles)
            shift, scale = self._shift_and_scale(summary, component)
            fills.append(self._fill(summary, ordered, cuts, (shift, scale), column))
            scaling.append((shift, scale))
            boundaries.append(cuts)
        ranges = [(s.minimum, s.maximum) if s.count else (math.nan, math.nan) for s in summaries]
        has_quantiles = self.transform == "quantile"
        return NumericFit(
            boundaries=() if self.has_cut_points or not has_quantiles else tuple(boundaries),
            shift=np.array([shift for shift, _ in scaling]),
            scale=np.array([scale for _, scale in scaling]),
            fill=np.array(fills, np.float32),
            minimum=np.array([low for low, _ in ranges]),
            maximum=np.array([high for _, high in ranges]),
            mean=np.array([summary.mean for summary in summaries]),
            profile=tuple(_profile(s.sample) for s in summaries) if self._is_sampled else (),
        )

    def _shift_and_scale(self, summary: NumberSummary, component: int) -> tuple[float, float]:
        if self.shift is not None and self.scale is not None:
            constants = (self.shift, self.scale)
            shift, scale = (v[component] if isinstance(v, tuple) else v for v in constants)
            return float(shift), float(scale)
        if self.transform in ("quantile", "none") or not summary.count:
            return 0.0, 1.0
        largest = max(-summary.minimum, summary.maximum)
        if self.transform != "log1p" and largest > LARGEST_SCALED:
            raise FeatureError(
                f"feature {self.name!r}: got {largest:g}, expected numbers of at most "
                f'{LARGEST_SCALED:g} for transform={self.transform!r}; use "quantile" or "log1p"'
            )
        if self.transform == "minmax":
            shift, spread = summary.minimum, summary.maximum - summary.minimum
        else:
            shift, spread = summary.moments(self.transform)
        # A constant becomes 0 whatever the scale.
        return shift, 1.0 / spread if spread > _SMALLEST_SPREAD else 1.0

    def _fill(
        self,
        summary: NumberSummary,
        ordered: NDArray[np.float64],
        cuts: NDArray[np.float64],
        scaling: tuple[float, float],
        column: ColumnType,
    ) -> float:
        """Return the dense value of a null."""
        shift, scale = scaling
        is_mean = isinstance(self.missing, str)
        raw = np.empty(0) if is_mean else column.round(np.array([self.missing], np.float64))
        if is_mean and not summary.count:
            return 0.0
        if self.transform == "quantile":
            return _mean_rank(ordered if is_mean else raw, cuts)
        if not is_mean:
            value = float((signed_log(raw) if self.transform == "log1p" else raw)[0])
            return (value - shift) * scale
        if self._learns_moments:
            return 0.0
        return (summary.mean - shift) * scale

    def fit_boundaries(self, summary: NumberSummary, column: ColumnType) -> NDArray[np.float64]:
        cut = bin_cuts if self.embedding == "bins" else bin_medians
        return cut(summary.sample, self.bins)

    def known_ids(self, schema: Learned) -> int:
        if self.embedding == "piecewise":
            return len(schema.boundaries[self.name])
        if self.is_sequence:
            return 1
        return super(Numeric, self).known_ids(schema)  # zero-argument super() fails under slots

    def encoding(self, schema: Learned) -> Encoding:
        if self.embedding == "bins":
            return BucketEncoding(column=self.source, boundaries=schema.boundaries[self.name])
        if self.embedding == "piecewise":
            return PiecewiseEncoding(column=self.source, cuts=schema.boundaries[self.name])
        return NumberEncoding(
            column=self.source,
            fit=schema.numerics[self.name],
            transform=self.transform,
            indicator=self.missing == "indicator",
            events=self.is_sequence,
            maxlen=self.maxlen,
            keep=self.keep,
        )

    def describe(self, schema: Learned, position: int) -> str:
        if self.embedding == "bins":
            return bucket_text(schema.boundaries[self.name], position)
        if self.embedding == "piecewise":
            return f"{schema.boundaries[self.name][position]:g}"
        return self.name if self.size == 1 and not position else f"component {position}"

    def example_values(self, schema: Learned) -> Iterator[Any]:
        if self.is_sequence:
            fit = schema.numerics[self.name]
            ends = (fit.minimum[0], fit.mean[0], fit.maximum[0])
            yield from (float(value) for value in ends if np.isfinite(value))
            return
        yield from super(Numeric, self).example_values(schema)
        if self.has_cut_points:
            cuts = schema.boundaries[self.name]
            yield from (cuts[:-1] / 2 + cuts[1:] / 2)[:2].tolist()

    def standardised(self) -> Numeric:
        is_scaled = self.has_cut_points or self.has_given_scaling or self.transform == "log1p"
        return self if is_scaled else replace(self, transform="standard")

    def map_ids(self, older: Numeric, change: SchemaChange) -> IdMap:
        size = change.new.id_count(self.name)
        why = self._transform_change(older, change)
        if why or not self.has_cut_points:
            return no_ids(size, why) if why else same_ids(size)
        cuts, old_cuts = (schema.boundaries[self.name] for schema in (change.new, change.old))
        match = match_buckets if self.embedding == "bins" else match_cut_points
        return match(cuts, old_cuts)

    def _transform_change(self, older: Numeric, change: SchemaChange) -> str:
        """Return why a number becomes another input than it did, or "" if it does not."""
        for option in _OPTIONS_OF_MEANING:
            new_option, old_option = getattr(self, option), getattr(older, option)
            if new_option != old_option:
                return f"{option} {old_option!r} became {new_option!r}"
        fit, old_fit = change.new.numerics.get(self.name), change.old.numerics.get(self.name)
        if fit is None or old_fit is None:
            return ""
        if fit.maps_as(old_fit):
            return ""
        if self.has_given_scaling or older.has_given_scaling:
            return "shift or scale became another"
        return f"the {self.transform} transform was learned anew (grow= keeps the older one)"


def _profile(ordered: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut points into tenths, equal ones merged, and how many values lie between them."""
    cuts = quantile_cuts(ordered, _PROFILE_BUCKETS)
    below = np.searchsorted(ordered, cuts, side="left")
    return cuts, np.diff(np.concatenate([[0], below, [len(ordered)]])).astype(np.int64)


def _mean_rank(values: NDArray[np.float64], cuts: NDArray[np.float64]) -> float:
    if len(cuts) < 2:
        return 0.0
    total = ExactSum()
    total.add(np.interp(values, cuts, np.linspace(0.0, 1.0, len(cuts))))
    return float(total.value / len(values))


def _plain_scaling(value: Any) -> Any:
    """Return a list or an array as a tuple, what else was given as it is."""
    plain = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    return tuple(plain) if isinstance(plain, list) else plain


def numeric(*names: str, source: str | None = None, **options: Any) -> list[Numeric]:
    """Declare numeric features, one for each name.

    Args:
        *names: Names of the features, which are also their columns.
        source: The column, if it has another name (one feature only).
        options: Fields of :class:`Numeric` by keyword, such as ``transform="log1p"``; lists stand
            for tuples.

    Returns:
        A list, to be unpacked into ``features=[...]`` or given as it is.

    Raises:
        FeatureError: If an option is outside its range.

    Example:
        >>> [feature.name for feature in numeric("age", "hours_per_week")]
        ['age', 'hours_per_week']
        >>> numeric("age", embedding="bins", embedding_dim=8)[0].kind_text
        'numeric, bins'
        >>> numeric("age", transform="standard", shift=38.6, scale=0.073)[0].shift
        38.6
        >>> numeric("seconds_watched", parallel="watched", maxlen=50)[0].kind_text
        'numeric sequence, quantile'
    """
    return declare_features(Numeric, names, source, options)


numeric.__signature__ = keyword_signature(numeric, Numeric, "name")  # type: ignore[attr-defined]
