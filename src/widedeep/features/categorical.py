"""Categorical features: a value of a set, or a list of such values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.errors import FeatureError, show_value
from widedeep.features.embedding import EmbeddingOptions
from widedeep.features.encoding import Encoding, ValueEncoding
from widedeep.features.id_map import IdMap, match_vocabulary, no_ids, same_ids
from widedeep.features.kind import (
    COMBINERS,
    ENDS,
    INT64,
    MAX_WIDTH,
    Combiner,
    Feature,
    Input,
    Learned,
    SchemaChange,
    ValueInput,
    WeightInput,
    check,
    declare_features,
    is_name,
    is_word,
    register_kind,
)
from widedeep.features.learned import FIRST_KNOWN_ID, ColumnType
from widedeep.options import keyword_signature

OOV_POLICIES = ("id", "drop")
COMPOSITIONS = ("quotient_remainder",)


_EMPTY_RULE = 'missing: "" counts as null by now, or no longer does'


@register_kind
@dataclass(frozen=True, kw_only=True, slots=True)
class Categorical(Feature):
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
        compose: ``"quotient_remainder"``: a hash bucket k has no row of its own, but two of small
            tables that all buckets share: k mod m and k div m, with m the root of ``hash_buckets``
            (Shi et al. 2020, *Compositional Embeddings Using Complementary Partitions*, with sums).
            So 2·√``hash_buckets`` rows tell as many values apart as there are buckets. Both rows
            are pooled by ``combiner``: ``"sum"`` adds them up, as the wide part does.
        num_buckets: The values are integers 0 <= v < ``num_buckets`` and are used as they are.
        oov_buckets: Spread unseen values over this many ids by hash, instead of sharing id 0.
        oov: ``"id"`` keeps an unseen value as id 0 (or an OOV bucket), ``"drop"`` leaves it out.
        default_value: A value of the vocabulary, or an integer below ``num_buckets``: an unseen
            value, or an integer out of range, is read as this one, as TensorFlow's columns with a
            default do.
        empty_as_null: Read ``""`` as a null, as TensorFlow does.
        weights: A column with one number a value (list columns: of the same lengths).
        embedding_dim: Width of the embedding. The model's default if not given.
        combiner: How several values become one vector: ``"mean"``, ``"sum"``, ``"sqrtn"`` (the sum
            by the root of their number) or ``"max"`` (elementwise); None keeps the sequence for a
            tower. Of no value it is zeros.
        table: Name of the embedding table. Features that name the same table share it and its
            vocabulary.
        maxlen: Most values of a list that are read; None for all. A sequence that a bundle is to
            hold needs one.
        keep: End of a longer list that is read: ``"last"`` (the newest events of a history in the
            order of time) or ``"first"``.
        parallel: Another sequence (``combiner=None``) whose events this one describes too, such as
            the categories of clicked items: lists of other lengths are refused, and a null has a
            place in both, with the id of a missing value. In a sequence that stands alone, as in
            a pooled feature, a null within a list is left out.
        embedding: How its rows start and are trained: see
            :class:`widedeep.features.EmbeddingOptions`.
    """

    source: str
    vocabulary: tuple[str, ...] | tuple[int, ...] | None = None
    vocabulary_file: str | None = None
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None
    compose: Literal["quotient_remainder"] | None = None
    num_buckets: int | None = None
    oov_buckets: int = 0
    oov: Literal["id", "drop"] = "id"
    default_value: str | int | None = None
    empty_as_null: bool = False
    weights: str | None = None
    embedding_dim: int | None = None
    combiner: Combiner | None = "mean"
    table: str | None = None
    maxlen: int | None = None
    keep: Literal["last", "first"] = "last"
    parallel: str | None = None
    embedding: EmbeddingOptions | None = None

    kind: ClassVar[str] = "categorical"
    order: ClassVar[int] = 2
    deep_by_default: ClassVar[bool] = True
    toml_form: ClassVar[Literal["table", "names", "list"]] = "names"
    table_options: ClassVar[tuple[str, ...]] = (
        "vocabulary",
        "vocabulary_file",
        "min_count",
        "max_size",
        "hash_buckets",
        "compose",
        "num_buckets",
        "oov_buckets",
        "embedding_dim",
        "embedding",
    )

    def __post_init__(self) -> None:
        self._check_name_and_source()
        if self.vocabulary is not None:
            object.__setattr__(self, "vocabulary", _plain_values(self.name, self.vocabulary))
        self.require_text("vocabulary_file", "weights", "table", "parallel")
        ways = {
            "vocabulary": self.vocabulary,
            "vocabulary_file": self.vocabulary_file,
            "hash_buckets": self.hash_buckets,
            "num_buckets": self.num_buckets,
        }
        options = [way for way, value in ways.items() if value is not None]
        self.require(len(options) <= 1, f"got {' and '.join(options)}; give at most one of them")
        self.require_at_least(1, "min_count", "max_size", "hash_buckets", "num_buckets", "maxlen")
        self.require_at_least(0, "oov_buckets")
        self.require_at_least(1, "embedding_dim", most=MAX_WIDTH)
        self.require_word("combiner", *COMBINERS)
        self.require(
            self.combiner != "max" or self.weights is None,
            "got combiner='max' and weights, which a maximum has no use for; drop one of them",
        )
        self.require(
            is_word(self.oov, OOV_POLICIES),
            f"got oov={show_value(self.oov)}, expected 'id' or 'drop'",
        )
        self.require_word("keep", *ENDS)
        self.require(
            not (self.oov_buckets and (self.hash_buckets or self.num_buckets)),
            "oov_buckets needs a vocabulary; drop it, or drop hash_buckets/num_buckets",
        )
        self.require(
            isinstance(self.empty_as_null, bool),
            f"got empty_as_null={show_value(self.empty_as_null)}, expected true or false",
        )
        self._check_compose()
        _check_vocabulary(self.name, self.vocabulary)
        self._check_default()
        self._set_embedding(self.embedding)
        pretrained = self.embedding is not None and self.embedding.pretrained is not None
        self.require(
            not (pretrained and self.hash_buckets),
            "got hash_buckets and pretrained embeddings, but several values share a hash bucket; "
            "learn a vocabulary, or drop pretrained",
        )

    def _check_compose(self) -> None:
        if self.compose is None:
            return
        self.require(
            is_word(self.compose, COMPOSITIONS),
            f"got compose={show_value(self.compose)}, expected 'quotient_remainder' or None",
        )
        self.require(
            self.hash_buckets is not None and self.combiner is not None,
            f"got compose={self.compose!r}, which needs hash_buckets, and a combiner for the two "
            "rows of a value",
        )

    def _check_default(self) -> None:
        value = self.default_value
        if value is None:
            return
        got = f"got default_value={show_value(value)}"
        for option, other in {
            "hash_buckets": self.hash_buckets,
            "oov_buckets": self.oov_buckets or None,
            "oov": None if self.oov == "id" else self.oov,
        }.items():
            self.require(
                other is None,
                f"{got} and {option}={show_value(other)}, which say two things of an unseen value; "
                "drop one of them",
            )
        fits, expected = type(value) in (int, str), "a value of the vocabulary"
        if self.num_buckets is not None:
            fits = type(value) is int and 0 <= value < self.num_buckets
            expected = f"an integer from 0 to num_buckets - 1 = {self.num_buckets - 1}"
        elif self.vocabulary is not None:
            fits = value in self.vocabulary and type(value) is type(self.vocabulary[0])
        self.require(fits, f"{got}, expected {expected}")

    @property
    def remainders(self) -> int | None:
        """Rows for the remainders of hash buckets, at least the root of their number."""
        if self.compose is None or self.hash_buckets is None:
            return None
        return math.isqrt(self.hash_buckets - 1) + 1

    @property
    def vocabulary_key(self) -> str | None:
        return None if self.hash_buckets or self.num_buckets else self.table_name

    @property
    def forgets_to_unseen(self) -> bool:
        buckets = self.oov_buckets or self.hash_buckets or self.num_buckets
        if self.default_value is not None:
            return False
        return self.oov == "id" and not buckets

    @property
    def kind_text(self) -> str:
        if self.compose:
            return "categorical, quotient-remainder"
        if self.hash_buckets:
            return "categorical, hashed"
        return "categorical, identity" if self.num_buckets else "categorical"

    def inputs(self) -> tuple[Input, ...]:
        values = ValueInput(
            column=self.source,
            vocabulary=self.vocabulary_key,
            min_count=self.min_count,
            max_size=self.max_size,
            empty_as_null=self.empty_as_null,
            num_buckets=self.num_buckets,
            is_text=isinstance((self.vocabulary or [0])[0], str),
        )
        return (values,) if self.weights is None else (values, WeightInput(column=self.weights))

    def given_values(self, column: ColumnType) -> Sequence[str | int] | None:
        if self.vocabulary_file is not None:
            return self._file_values(self.vocabulary_file, column)
        return self.vocabulary

    @property
    def _is_given(self) -> bool:
        return self.vocabulary is not None or self.vocabulary_file is not None

    def _file_values(self, path: str, column: ColumnType) -> Sequence[str | int]:
        try:
            with open(path, encoding="utf-8-sig", newline="\n") as file:
                lines = [line.rstrip("\r\n") for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise FeatureError(
                f"feature {self.name!r}: got vocabulary_file={path!r}, which cannot be read "
                f"({error}); expected a UTF-8 file with one value a line"
            ) from error
        values: Sequence[str | int] = lines
        if column.kind != "string":
            values = self._file_integers(path, lines)
        first_line: dict[str | int, int] = {}
        for line, value in enumerate(values, 1):
            if value == "":
                raise self._line_error(path, line, "an empty line", "remove the line")
            if value in first_line:
                got = f"{value!r}, as on line {first_line[value]}"
                raise self._line_error(path, line, got, "remove one of them")
            first_line[value] = line
        if not first_line:
            raise self._line_error(path, 1, "an empty file", "add at least one value")
        return values

    def _file_integers(self, path: str, lines: list[str]) -> list[int]:
        integers = []
        for number, line in enumerate(lines, 1):
            try:
                value = int(line)
            except ValueError:
                value = None
            if value is None or str(value) != line or value not in INT64:
                raise self._line_error(
                    path,
                    number,
                    repr(line),
                    "expected integers of 64 bits without leading zeros or signs, as column "
                    f"{self.source!r} holds",
                )
            integers.append(value)
        return integers

    def _line_error(self, path: str, line: int, got: str, advice: str) -> FeatureError:
        return FeatureError(f"feature {self.name!r} (line {line} of {path}): got {got}; {advice}")

    def check_fit(self, schema: Learned) -> None:
        self._default_place(schema)

    def _default_place(self, schema: Learned) -> int | None:
        """Return the place of ``default_value`` in the vocabulary, or the integer itself."""
        value = self.default_value
        if value is None or self.num_buckets:
            return None if value is None else int(value)
        values = schema.vocabularies[self.table_name].values
        if isinstance(values, np.ndarray):
            matches = np.flatnonzero(values == value) if isinstance(value, int) else np.empty(0)
            index = int(matches[0]) if len(matches) else -1
        else:
            text = pa.scalar(str(value).encode(), pa.large_binary())
            index = pc.index(values, text).as_py()
        self.require(
            index >= 0,
            f"got default_value={show_value(value)}, which is not in the vocabulary that was "
            "learned; give a value that it holds, or the vocabulary",
        )
        return index

    def encoding(self, schema: Learned) -> Encoding:
        return ValueEncoding(
            column=self.source,
            vocabulary=self.vocabulary_key,
            hash_buckets=self.hash_buckets,
            remainders=self.remainders,
            num_buckets=self.num_buckets,
            oov_buckets=self.oov_buckets,
            drop_unseen=self.oov == "drop",
            default=self._default_place(schema),
            empty_as_null=self.empty_as_null,
            crossed_by_position=self._is_given,
            weights=self.weights,
            maxlen=self.maxlen,
            keep=self.keep,
        )

    def known_ids(self, schema: Learned) -> int:
        if self.remainders and self.hash_buckets:
            return self.remainders + math.ceil(self.hash_buckets / self.remainders)
        buckets = self.hash_buckets or self.num_buckets
        return buckets or self.oov_buckets + len(schema.vocabularies[self.table_name])

    def describe(self, schema: Learned, position: int) -> str:
        if self.remainders:
            is_quotient = position >= self.remainders
            number = position - self.remainders * is_quotient
            return f"<{'quotient' if is_quotient else 'remainder'} {number} of the hash>"
        if self.hash_buckets:
            return f"<hash bucket {position}>"
        if self.num_buckets:
            return str(position)
        if position < self.oov_buckets:
            return f"<unseen, bucket {position}>"
        return str(schema.vocabularies[self.table_name].value(position - self.oov_buckets))

    def example_values(self, schema: Learned) -> Iterator[str | int]:
        if self.num_buckets:
            return iter((0, self.num_buckets - 1))
        return Feature.example_values(self, schema)

    def map_ids(self, older: Categorical, change: SchemaChange) -> IdMap:
        size = change.new.id_count(self.name)
        if self.hash_buckets or older.hash_buckets:
            if self.hash_buckets != older.hash_buckets:
                return no_ids(size, f"{older.hash_buckets} hash buckets became {self.hash_buckets}")
            if self.compose != older.compose:
                return no_ids(size, f"compose {older.compose!r} became {self.compose!r}")
            if self.empty_as_null != older.empty_as_null:
                return no_ids(size, _EMPTY_RULE)
            return same_ids(size)
        if self.num_buckets or older.num_buckets:
            if not (self.num_buckets and older.num_buckets):
                return no_ids(size, "integers are no longer ids by themselves, or are now")
            ids = np.arange(size)
            return IdMap(old_of_N=np.where(ids < change.old.id_count(self.name), ids, -1))
        ids_by_value = match_vocabulary(
            change.new.vocabularies[self.table_name],
            change.old.vocabularies[older.table_name],
            (FIRST_KNOWN_ID + self.oov_buckets, FIRST_KNOWN_ID + older.oov_buckets),
        )
        return ids_by_value if ids_by_value.why else self._with_rules(ids_by_value, older)

    def _with_rules(self, ids: IdMap, older: Categorical) -> IdMap:
        """Return the map with the ids of unseen values, OOV buckets and missing values."""
        old_of_N, why = ids.old_of_N.copy(), []
        unseen = np.array([0, *range(FIRST_KNOWN_ID, FIRST_KNOWN_ID + self.oov_buckets)])
        if (self.oov_buckets, self.oov) == (older.oov_buckets, older.oov):
            old_of_N[unseen] = unseen  # as many buckets: the same hash
        else:
            old_of_N[unseen] = -1
            rules = [
                f"{f.oov_buckets} buckets" if f.oov_buckets else repr(f.oov) for f in (older, self)
            ]
            why.append(f"unseen: {rules[0]} became {rules[1]}")
        if self.empty_as_null != older.empty_as_null:
            old_of_N[1] = -1
            why.append(_EMPTY_RULE)
        return IdMap(old_of_N=old_of_N, why="; ".join(why))

    def key_change(self, older: Categorical, change: SchemaChange) -> str:
        options = ("hash_buckets", "num_buckets", "oov", "oov_buckets", "empty_as_null")
        for option in (*options, "default_value"):
            if getattr(self, option) != getattr(older, option):
                return f"{option} {getattr(older, option)!r} became {getattr(self, option)!r}"
        # The values of a given vocabulary are hashed by their position, those of others as text.
        if self._is_given != older._is_given:
            return "another vocabulary"
        if self._is_given and not change.map_ids(self.name).is_identity:
            return "another vocabulary"
        return ""


def categorical(*names: str, source: str | None = None, **options: Any) -> list[Categorical]:
    """Declare categorical features, one for each name.

    Args:
        *names: Names of the features, which are also their columns.
        source: The column, if it has another name (one feature only).
        options: Fields of :class:`Categorical` by keyword, such as ``hash_buckets=1000``; lists and
            tables stand for tuples and :class:`widedeep.features.EmbeddingOptions`.

    Returns:
        A list, to be unpacked into ``features=[...]`` or given as it is.

    Raises:
        FeatureError: If an option is outside its range, or two ways to make ids are given.

    Example:
        >>> categorical("country", hash_buckets=1000)[0].hash_buckets
        1000
    """
    return declare_features(Categorical, names, source, options)


categorical.__signature__ = keyword_signature(categorical, Categorical, "name")  # type: ignore[attr-defined]


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
            value == "" or is_name(value) if isinstance(value, str) else value in INT64,
            name,
            f"got {show_value(value)} in its vocabulary, expected integers of 64 bits or text in "
            "Unicode; give others as text",
        )
    seen: set[object] = set()
    for value in vocabulary:
        check(value not in seen, name, f"got {value!r} twice in its vocabulary; remove one")
        seen.add(value)
