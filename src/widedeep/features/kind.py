"""The contract of a kind of feature, and the checks of options that kinds share."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from widedeep.errors import FeatureError, nearest, show_value
from widedeep.features.embedding import DEFAULT, EmbeddingOptions, embedding_options
from widedeep.features.encoding import (
    BucketEncoding,
    CrossEncoding,
    Encoding,
    NumberEncoding,
    ValueEncoding,
)
from widedeep.features.id_map import (
    IdMap,
    match_buckets,
    match_vocabulary,
    no_ids,
    same_ids,
)
from widedeep.features.learned import ColumnType, NumericFit, Vocabulary
from widedeep.features.numbers import NumberSummary
from widedeep.features.toml import toml_list, toml_table
from widedeep.options import check_option_names

Combiner = Literal["sum", "mean", "sqrtn", "max"]
DriftForm = Literal["numbers", "values", "combinations"]
# Words of an option, and what errors expect
COMBINERS = (
    (None, "sum", "mean", "sqrtn", "max"),
    "expected 'sum', 'mean', 'sqrtn', 'max' or None (keep the sequence)",
)
ENDS = ("last", "first"), "expected 'last' or 'first'"
MAX_IDS = 2**48
MAX_COLUMNS = 2**20
MAX_WIDTH = 2**31 - 1
INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberInput:
    """A column of numbers. ``fit_schema`` summarises each component and hands the summary over.

    Args:
        column: The column's name.
        size: Length of its vectors, 1 for plain numbers.
        events: Whether it holds lists of any length, with one plain number per event.
        moments: Scales on which mean and standard deviation are needed: ``"standard"``,
            ``"log1p"``.
        sample: Whether a sorted sample of the values is needed, for quantiles.
    """

    column: str
    size: int = 1
    events: bool = False
    moments: tuple[str, ...] = ()
    sample: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueInput:
    """A column of categories, or of lists of them. ``fit_schema`` counts its values.

    Args:
        column: The column's name.
        vocabulary: Key of the vocabulary that the values are counted into; None if they need no
            counting.
        min_count: Least number of times that a value of the vocabulary was seen.
        max_size: Most values of the vocabulary.
        empty_as_null: Whether ``""`` is a null.
        num_buckets: Values are integers below this number; others are reported.
        is_text: Whether a file without types (CSV) holds text here even where all look like
            numbers.
    """

    column: str
    vocabulary: str | None = None
    min_count: int = 1
    max_size: int | None = None
    empty_as_null: bool = False
    num_buckets: int | None = None
    is_text: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightInput:
    """A column with one weight per value of the feature."""

    column: str


Input = NumberInput | ValueInput | WeightInput


@dataclass(frozen=True, kw_only=True, slots=True)
class PeriodicEmbedding:
    """A number's embedding by sines and cosines, which the model learns beside its towers.

    Args:
        frequencies: Number of frequencies.
        std: Standard deviation of the initial frequencies, in periods per standard deviation of
            the number.
        scale: The dense value becomes ``(value - shift) * scale``, of mean 0 and deviation 1.
        shift: See ``scale``.
    """

    frequencies: int
    std: float
    scale: float = 1.0
    shift: float = 0.0


class Learned(Protocol):
    """What a kind may ask of a fitted :class:`widedeep.Schema`."""

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        """Logical type of every input column."""

    @property
    def vocabularies(self) -> Mapping[str, Vocabulary]:
        """Vocabularies and learned combinations by key."""

    @property
    def boundaries(self) -> Mapping[str, NDArray[np.float64]]:
        """Cut points by feature."""

    @property
    def numerics(self) -> Mapping[str, NumericFit]:
        """What was learned of dense features."""

    def id_count(self, name: str) -> int:
        """Return how many ids a feature has."""

    def describe_id(self, name: str, id_: int) -> str:
        """Return what an id of a feature stands for."""


class SchemaChange(Protocol):
    """Two schemas that a warm start compares."""

    @property
    def new(self) -> Learned:
        """The schema of the model to be trained."""

    @property
    def old(self) -> Learned:
        """The schema of the model that it starts from."""

    def map_ids(self, name: str) -> IdMap:
        """Return where the ids of a feature or raw column stood in the old schema."""

    def key_change(self, name: str) -> str:
        """Return why hashed crosses read other values of a feature or raw column, or ""."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """A feature of a model: what all kinds have in common, and what a kind of one's own overrides.

    A kind is a frozen dataclass with a ``kind`` of its own, registered by :func:`register_kind`. It
    says which columns it reads, what is learned from them, and by which native operation they
    become ids or numbers; fitting, training, serving and reports ask it and know no kind by name.
    The documentation's page "Feature kinds" shows one.

    Args:
        name: The feature's name.
    """

    name: str

    kind: ClassVar[str] = ""
    """The kind's name in TOML, in :attr:`widedeep.schema.Slot.kind` and in tables."""
    order: ClassVar[int] = 2
    """Place of the kind among a spec's features: 0 numbers, 1 buckets, 2 values, 3 crosses,
    4 counts of ids of those."""
    wide_by_default: ClassVar[bool] = True
    """Whether the feature is in the wide part where the spec does not say."""
    deep_by_default: ClassVar[bool] = False
    """Whether the feature is in the deep part where the spec does not say."""
    toml_form: ClassVar[Literal["table", "names", "list"]] = "table"
    """What the kind's key in TOML holds: a table with one entry per feature; a list of names, with
    the options apart; or a list of what the kind reads itself."""
    table_options: ClassVar[tuple[str, ...]] = ()
    """Options on which features that share an embedding table agree; none: no table is shared."""

    def require(self, condition: bool, message: str) -> None:
        """Raise a :class:`FeatureError` about the feature unless a condition holds."""
        check(condition, self.name, message)

    def require_at_least(self, least: int, *options: str, most: int = MAX_IDS) -> None:
        """Refuse options that are neither None nor integers in their range."""
        for option in options:
            got = getattr(self, option)
            whole = isinstance(got, int) and not isinstance(got, bool)
            upper = f", at most {most:,}" if whole and got > most else ""
            self.require(
                got is None or (whole and least <= got <= most),
                f"got {option}={show_value(got)}, expected an integer of at least {least}{upper}",
            )

    def require_text(self, *options: str) -> None:
        """Refuse options that are neither None nor text."""
        for option in options:
            got = getattr(self, option)
            self.require(
                got is None or is_name(got),
                f"got {option}={show_value(got)}, expected a non-empty string",
            )

    def require_word(self, option: str, words: Sequence[str | None], expected: str) -> None:
        """Refuse an option that is none of some words."""
        got = getattr(self, option)
        is_word = (got is None or isinstance(got, str)) and got in words
        self.require(is_word, f"got {option}={show_value(got)}, {expected}")

    def _check_name_and_source(self) -> None:
        """Refuse a feature whose name or column is no text."""
        check(is_name(self.name), show_value(self.name), "expected a name: a non-empty string")
        source = getattr(self, "source", None)
        self.require(
            is_name(source), f"got source={show_value(source)}, expected a non-empty string"
        )

    # ---- inputs ----

    def inputs(self) -> tuple[Input, ...]:
        """Return the columns that the feature reads, the main one first; () for a cross."""
        raise NotImplementedError

    def combinations(self) -> CrossEncoding | None:
        """Return what a cross combines; None for other kinds."""
        return None

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the features and raw columns that a cross combines."""
        combinations = self.combinations()
        return () if combinations is None else combinations.parts

    @property
    def source_feature(self) -> str | None:
        """Name of the feature whose ids it counts; None for kinds that read columns or parts."""
        return None

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Names of the columns that it reads itself; a cross's parts are not among them."""
        return tuple(entry.column for entry in self.inputs())

    @property
    def main_column(self) -> str | None:
        """The column that its values come from; None for a cross."""
        columns = self.input_columns
        return columns[0] if columns else None

    @property
    def weight_column(self) -> str | None:
        """The column with one weight per value, if there is one."""
        return next((i.column for i in self.inputs() if isinstance(i, WeightInput)), None)

    @property
    def number_input(self) -> NumberInput | None:
        """The column of numbers that it reads, if it reads one."""
        return next((i for i in self.inputs() if isinstance(i, NumberInput)), None)

    @property
    def value_input(self) -> ValueInput | None:
        """The column of categories that it reads, if it reads one."""
        return next((i for i in self.inputs() if isinstance(i, ValueInput)), None)

    def refusal_as_part(self) -> str:
        """Return why a cross cannot combine the feature, or "" if it can."""
        return ""

    # ---- learning ----

    @property
    def learns_numbers(self) -> bool:
        """Whether :meth:`fit_numbers` is asked for the range and spread of its numbers."""
        return self.dense_width > 0

    def fit_boundaries(self, summary: NumberSummary, column: ColumnType) -> NDArray[np.float64]:
        """Return the cut points of a number that becomes ids, strictly increasing."""
        raise NotImplementedError

    def fit_numbers(self, summaries: Sequence[NumberSummary], column: ColumnType) -> NumericFit:
        """Return what turns a number into dense columns; one summary per component."""
        raise NotImplementedError

    def given_values(self, column: ColumnType) -> Sequence[str | int] | None:
        """Return the values of the vocabulary if the declaration gives them, else None."""
        return None

    def check_fit(self, schema: Learned) -> None:
        """Raise :class:`FeatureError` where what was learned cannot be used as declared."""

    # ---- ids, dense columns and their native encoding ----

    def encoding(self, schema: Learned) -> Encoding:
        """Return the native operation that turns columns into ids or numbers.

        By default buckets between learned boundaries, the ids of a learned vocabulary, or dense
        columns by quantiles or shift and scale: what was learned decides.

        Raises:
            KeyError: If the schema lacks what was learned.
        """
        combinations, column = self.combinations(), self.main_column
        if combinations is not None:
            return combinations
        assert column is not None
        if self.dense_width:
            fit = schema.numerics[self.name]
            transform = "quantile" if fit.boundaries else "standard"
            return NumberEncoding(column=column, fit=fit, transform=transform)
        if self.is_bucketed:
            return BucketEncoding(column=column, boundaries=schema.boundaries[self.name])
        return ValueEncoding(
            column=column, vocabulary=self.vocabulary_key, weights=self.weight_column
        )

    @property
    def dense_width(self) -> int:
        """Number of dense columns that it fills whatever was learned; 0 for a feature of ids."""
        return 0

    @property
    def is_dense(self) -> bool:
        """Whether it fills dense columns; else it is a feature of ids."""
        return self.dense_width > 0

    def dense_columns(self, schema: Learned) -> int:
        """Return the number of dense columns that it fills by what was learned."""
        return self.dense_width

    @property
    def is_weighted_number(self) -> bool:
        """Whether its ids are weighed by what the number is, so that only their sum has a meaning.

        By default a number that fills dense columns: in the wide part its value is the weight.
        """
        return self.is_dense

    @property
    def periodic_embedding(self) -> PeriodicEmbedding | None:
        """How the model turns its dense columns into a field; None: they stay numbers."""
        return None

    @property
    def is_bucketed(self) -> bool:
        """Whether it is a number that becomes ids by cut points."""
        return self.number_input is not None and not self.dense_width

    @property
    def vocabulary_key(self) -> str | None:
        """Key of the vocabulary whose values are the last ids; None if ids have no vocabulary."""
        return None if self.value_input is None else self.value_input.vocabulary

    def known_ids(self, schema: Learned) -> int:
        """Return how many ids follow the two reserved ones (unseen and missing).

        By default one per dense column, bucket or value of the vocabulary.
        """
        if self.is_bucketed:
            return len(schema.boundaries[self.name]) + 1
        key = self.vocabulary_key
        return self.dense_width if key is None else len(schema.vocabularies[key])

    def describe(self, schema: Learned, position: int) -> str:
        """Return what the id ``2 + position`` stands for."""
        if self.is_bucketed:
            return bucket_text(schema.boundaries[self.name], position)
        key = self.vocabulary_key
        if key is None:
            return self.name if self.dense_width == 1 else f"component {position}"
        return str(schema.vocabularies[key].value(position))

    @property
    def is_hashed(self) -> bool:
        """Whether ids are hash buckets (option ``hash_buckets``), whose values only rows tell."""
        return getattr(self, "hash_buckets", None) is not None

    @property
    def is_composed(self) -> bool:
        """Whether a value has several ids, whose rows make its embedding (option ``compose``)."""
        return getattr(self, "compose", None) is not None

    @property
    def table_name(self) -> str:
        """Name of its embedding table, its own unless shared (option ``table``)."""
        return getattr(self, "table", None) or self.name

    @property
    def shares_table(self) -> bool:
        """Whether its embedding table has a name that other features may share."""
        return getattr(self, "table", None) is not None

    @property
    def deep_combiner(self) -> Combiner | None:
        """How several ids become one vector (option ``combiner``); None keeps the sequence."""
        combiner: Combiner | None = getattr(self, "combiner", "sum")
        return combiner

    @property
    def parallel_to(self) -> str | None:
        """The feature whose events its lists describe too (option ``parallel``)."""
        name: str | None = getattr(self, "parallel", None)
        return name

    @property
    def most_values(self) -> int | None:
        """Most values of a list that are read (option ``maxlen``); None for all."""
        most: int | None = getattr(self, "maxlen", None)
        return most

    @property
    def end_read(self) -> Literal["last", "first"]:
        """End of a longer list that is read (option ``keep``)."""
        end: Literal["last", "first"] = getattr(self, "keep", "last")
        return end

    @property
    def deep_width(self) -> int | None:
        """Declared width of the embedding (option ``embedding_dim``); None for the default."""
        width: int | None = getattr(self, "embedding_dim", None)
        return width

    @property
    def embedding_options(self) -> EmbeddingOptions:
        """How its rows start and are trained (option ``embedding``)."""
        options = getattr(self, "embedding", None)  # of a number: what embeds it
        return options if isinstance(options, EmbeddingOptions) else DEFAULT

    def _set_embedding(self, value: object, *, by_value: bool = True) -> None:
        """Keep the option ``embedding``, which may be a table; ids without values have no file."""
        options = embedding_options(self.name, value)
        self.require(
            by_value or options is None or options.pretrained is None,
            f"got pretrained embeddings, which a {self.kind} feature has no values to find by; "
            "drop pretrained",
        )
        object.__setattr__(self, "embedding", options)

    @property
    def unseen_rule(self) -> Literal["id", "drop"]:
        """What becomes of an unseen value (option ``oov``): ``"id"``, or ``"drop"``."""
        rule: Literal["id", "drop"] = getattr(self, "oov", "id")
        return rule

    @property
    def forgets_to_unseen(self) -> bool:
        """Whether a value that leaves the vocabulary is id 0 from then on."""
        return False

    def example_values(self, schema: Learned) -> Iterator[Any]:
        """Yield raw values that test an exported model: ends of ranges, known values."""
        if self.dense_width:
            fit = schema.numerics[self.name]
            for ends in (fit.minimum, fit.mean, fit.maximum):  # (size,) each
                numbers = [float(value) if np.isfinite(value) else 0.0 for value in ends]
                yield numbers if len(numbers) > 1 else numbers[0]
        elif self.is_bucketed:
            cuts = schema.boundaries[self.name]
            yield from (*cuts[:1], *(cuts[-1:] + 1))
        elif self.vocabulary_key is not None:
            yield from schema.vocabularies[self.vocabulary_key].ends()

    def standardised(self) -> Feature:
        """Return the feature with numbers to mean 0 and deviation 1, as estimators take them."""
        return self

    # ---- warm start ----

    def map_ids(self, older: Any, change: SchemaChange) -> IdMap:
        """Return where each id stood in an older schema, whose feature of this kind is ``older``.

        The main column is the same and holds the same type of values. Where both are declared
        alike, values, buckets and dense columns are matched by what was learned.
        """
        new, old, key = change.new, change.old, self.vocabulary_key
        size = new.id_count(self.name)
        if self != older:
            return no_ids(size, f"{self.kind} with other options")
        if key is not None:
            vocabularies = new.vocabularies[key], old.vocabularies[key]
            return match_vocabulary(*vocabularies, (size - len(vocabularies[0]),) * 2)
        if self.is_bucketed:
            return match_buckets(new.boundaries[self.name], old.boundaries[self.name])
        if self.dense_width and not new.numerics[self.name].maps_as(old.numerics[self.name]):
            return no_ids(size, f"the {self.kind} transform was learned anew")
        return same_ids(size)

    def key_change(self, older: Any, change: SchemaChange) -> str:
        """Return why hashed crosses of the feature combine other values than before, or ""."""
        if not self.is_bucketed:
            return "" if self == older else f"{self.kind} with other options"
        cuts, old_cuts = (schema.boundaries[self.name] for schema in (change.new, change.old))
        return "" if np.array_equal(cuts, old_cuts) else "other boundaries"

    # ---- tables and reports ----

    @property
    def kind_text(self) -> str:
        """What kind it is, as tables and reports show it."""
        return self.kind

    @property
    def drift_form(self) -> DriftForm | None:
        """What the gate compares with training: numbers, values, combinations; None for nothing."""
        if self.learns_numbers:
            return "numbers"
        if self.value_input is not None:
            return "values"
        return "combinations" if self.part_names and not self.is_hashed else None

    # ---- TOML ----

    @classmethod
    def declare(cls: type[_Kind], name: str, options: Mapping[str, Any]) -> _Kind:
        """Return the feature that TOML declares; lists come as tuples."""
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return cls(name=name, **plain)

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of the options, as TOML writes them."""
        return [entry.name for entry in fields(cls) if entry.name not in ("name", "parts")]

    def changed_options(self) -> dict[str, object]:
        """Return the options that differ from their defaults."""
        options: dict[str, object] = {}
        names = set(self.option_names())
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name not in names:
                continue
            if value == (None if entry.default is MISSING else entry.default):
                continue
            if entry.name == "source" and value == self.name:
                continue
            # TOML has no null: a combiner of None (keep the sequence) is written as "none".
            options[entry.name] = "none" if value is None else value
            if isinstance(value, EmbeddingOptions):
                options[entry.name] = value.to_table()
        return options

    @classmethod
    def read_options(cls, name: str, entry: object) -> dict[str, Any]:
        """Check the options of a feature that TOML gives, and return them."""
        if not isinstance(entry, Mapping):
            raise FeatureError(
                f"feature {name!r}: got {entry!r}, expected a table of options like "
                "{ min_count = 2 }"
            )
        for key in entry:
            if key not in cls.option_names():
                raise FeatureError(
                    f"feature {name!r}: got the unknown option {key!r}; "
                    f"{nearest(key, cls.option_names())}"
                )
        options = dict(entry)
        if options.get("combiner") == "none":
            options["combiner"] = None
        return options

    @classmethod
    def to_toml(cls, features: Sequence[Any]) -> object:
        """Return what stands under the kind's key: names, or a table with one entry per feature."""
        if cls.toml_form == "names":
            return [feature.name for feature in features]
        has_source = "source" in cls.option_names()
        return {
            f.name: {**({"source": f.source} if has_source else {}), **f.changed_options()}
            for f in features
        }

    @classmethod
    def from_toml(cls, entries: object, options: dict[str, Any]) -> list[Feature]:
        """Return the features that stand under the kind's key; takes theirs out of ``options``."""
        if cls.toml_form == "names":
            names = toml_list(entries, cls.kind)
            if not all(isinstance(name, str) for name in names):
                raise FeatureError(
                    f"got {cls.kind} = {names!r} in [features], expected a list of names"
                )
            pairs = [(name, options.pop(name, {})) for name in names]
        else:
            pairs = list(toml_table(entries, cls.kind).items())
        source = {"source"} & set(cls.option_names())
        return [
            cls.declare(name, {**dict.fromkeys(source, name), **cls.read_options(name, entry)})
            for name, entry in pairs
        ]


_Kind = TypeVar("_Kind", bound=Feature)
_AnyKind = TypeVar("_AnyKind", bound=type[Feature])
KINDS: dict[str, type[Feature]] = {}


def register_kind(kind: _AnyKind) -> _AnyKind:
    """Make a kind of feature known under its name, for specs, TOML, checkpoints and bundles.

    A class decorator, above ``@dataclass``. What reads a checkpoint or bundle with such a feature
    imports the kind's module first, or finds it as an entry point of an installed package, in the
    group ``widedeep.feature_kinds``.

    Args:
        kind: A subclass of :class:`Feature` with a ``kind`` of its own.

    Raises:
        FeatureError: If it has no name, or another class has it.
    """
    check(is_name(kind.kind), kind.__name__, "expected a kind of its own: kind = 'NAME'")
    other = KINDS.get(kind.kind)
    same = other is None or (other.__module__, other.__qualname__) == (
        kind.__module__,
        kind.__qualname__,
    )
    check(same, kind.__name__, f"got kind={kind.kind!r}, which {other} has; choose another")
    KINDS[kind.kind] = kind
    return kind


def load_installed_kinds() -> None:
    """Import the kinds that installed packages offer as entry points ``widedeep.feature_kinds``."""
    for entry_point in importlib.metadata.entry_points(group="widedeep.feature_kinds"):
        entry_point.load()


def bucket_text(cuts: NDArray[np.float64], bucket: int) -> str:
    """Return the bounds of a bucket between cut points."""
    if not len(cuts):
        return "any number"
    if bucket == 0:
        return f"< {cuts[0]:g}"
    if bucket == len(cuts):
        return f">= {cuts[-1]:g}"
    return f"[{cuts[bucket - 1]:g}, {cuts[bucket]:g})"


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


def is_word(value: object, words: Sequence[str]) -> bool:
    """Tell whether a value is one of the words that an option takes."""
    return isinstance(value, str) and value in words


def finite_number(value: object) -> float | None:
    """A value as a finite float; None for text, which float() reads too, and all else."""
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def declare_features(
    kind: Callable[..., _Kind], names: tuple[str, ...], source: str | None, options: dict[str, Any]
) -> list[_Kind]:
    """Return a feature of each name, whose column is called so too unless ``source`` says it."""
    check_feature_names(names, source)
    check_option_names(options, kind, kind.kind)  # type: ignore[arg-type, attr-defined]
    return [kind(name=name, source=name if source is None else source, **options) for name in names]


def check_feature_names(names: tuple[str, ...], source: str | None) -> None:
    """Refuse what cannot name features, and one source for several."""
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
