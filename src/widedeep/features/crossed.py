"""Crossed features: the cross-product of two or more features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from widedeep.errors import FeatureError, show_value
from widedeep.features.embedding import EmbeddingOptions
from widedeep.features.encoding import HASH_KEY, CrossEncoding
from widedeep.features.id_map import (
    IdMap,
    match_values,
    no_ids,
    reserved_ids,
    same_ids,
    tuples_as_bytes,
)
from widedeep.features.kind import (
    COMBINERS,
    INT64,
    MAX_WIDTH,
    Combiner,
    Feature,
    Input,
    Learned,
    SchemaChange,
    check,
    check_feature_names,
    is_name,
    register_kind,
)
from widedeep.features.learned import FIRST_KNOWN_ID
from widedeep.features.toml import toml_list
from widedeep.options import check_option_names, keyword_signature

MAX_COMBINATIONS = 65_536
"""Combinations that the lists of one row may make in a cross."""


@register_kind
@dataclass(frozen=True, kw_only=True, slots=True)
class Crossed(Feature):
    """The cross-product of two or more features. Use :func:`crossed` to make one.

    It is 1 where all its parts are 1 (Cheng et al. 2016, equation 1).
    A part that is multi-valued contributes each of its values; a null part yields no cross.

    Args:
        name: The feature's name.
        parts: Names of categorical or bucketized features, or of raw columns.
        min_count: Combinations seen at least this many times get an id of their own.
        max_size: At most this many, the most frequent first.
        hash_buckets: Hash combinations instead (ids agree with TensorFlow's ``crossed_column``).
        hash_key: Integer of 64 bits that hashes begin with; None: 0xDECAFCAFFE, TensorFlow's.
        embedding_dim: Width of the embedding if the feature is placed in the deep part.
        combiner: How several combinations become one vector in the deep part.
        max_combinations: Most combinations of one row, where parts are lists: three lists of 40
            values make 64,000. A row of more is refused, in training and serving alike.
        embedding: How its rows start and are trained: see
            :class:`widedeep.features.EmbeddingOptions`.
    """

    parts: tuple[str, ...]
    min_count: int = 1
    max_size: int | None = None
    hash_buckets: int | None = None
    hash_key: int | None = None
    embedding_dim: int | None = None
    combiner: Combiner = "mean"
    max_combinations: int = MAX_COMBINATIONS
    embedding: EmbeddingOptions | None = None

    kind: ClassVar[str] = "crossed"
    order: ClassVar[int] = 3
    toml_form: ClassVar[Literal["table", "names", "list"]] = "list"

    def __post_init__(self) -> None:
        check(is_name(self.name), show_value(self.name), "expected a name: a non-empty string")
        self.require(
            isinstance(self.parts, tuple) and all(is_name(part_name) for part_name in self.parts),
            f"got parts={show_value(self.parts)}, expected names of features or columns",
        )
        self.require(len(self.parts) >= 2, f"got {len(self.parts)} part(s), expected two or more")
        self.require(
            len(set(self.parts)) == len(self.parts),
            f"got a part twice in {list(self.parts)}; a feature crossed with itself adds nothing",
        )
        self.require_at_least(1, "min_count", "max_size", "hash_buckets", "max_combinations")
        self._check_hash_key()
        self.require_at_least(1, "embedding_dim", most=MAX_WIDTH)
        self._set_embedding(self.embedding, by_value=False)
        self.require_word("combiner", *COMBINERS)
        self.require(
            self.combiner is not None, "got combiner=None, and a cross cannot keep a sequence"
        )

    def _check_hash_key(self) -> None:
        key = self.hash_key
        is_integer = isinstance(key, int) and not isinstance(key, bool) and key in INT64
        self.require(
            key is None or is_integer,
            f"got hash_key={show_value(key)}, expected an integer of 64 bits, from -2**63 to "
            "2**63 - 1",
        )
        self.require(
            key is None or self.hash_buckets is not None,
            f"got hash_key={show_value(key)}, which has no effect without hash_buckets; give "
            "hash_buckets, or leave it out",
        )

    @property
    def vocabulary_key(self) -> str | None:
        return None if self.hash_buckets else self.name

    @property
    def kind_text(self) -> str:
        return "crossed, hashed" if self.hash_buckets else "crossed"

    def inputs(self) -> tuple[Input, ...]:
        return ()

    def combinations(self) -> CrossEncoding:
        return CrossEncoding(
            parts=self.parts,
            hash_buckets=self.hash_buckets,
            min_count=self.min_count,
            max_size=self.max_size,
            max_combinations=self.max_combinations,
            hash_key=HASH_KEY if self.hash_key is None else self.hash_key,
        )

    def refusal_as_part(self) -> str:
        return "is itself a cross; name that cross's parts instead"

    def known_ids(self, schema: Learned) -> int:
        return self.hash_buckets or len(schema.vocabularies[self.name])

    def describe(self, schema: Learned, position: int) -> str:
        if self.hash_buckets:
            return f"<hash bucket {position}>"
        value = schema.vocabularies[self.name].value(position)
        if not isinstance(value, tuple):
            return str(value)
        parts = zip(self.parts, value, strict=True)
        return " & ".join(
            f"{part_name}={schema.describe_id(part_name, id_)}" for part_name, id_ in parts
        )

    def map_ids(self, older: Crossed, change: SchemaChange) -> IdMap:
        size = change.new.id_count(self.name)
        if self.parts != older.parts:
            return no_ids(size, "crossed from other parts")
        if self.hash_buckets or older.hash_buckets:
            if self.hash_buckets != older.hash_buckets:
                return no_ids(size, f"{older.hash_buckets} hash buckets became {self.hash_buckets}")
            keys = [cross.combinations().hash_key for cross in (older, self)]
            if keys[0] != keys[1]:
                return no_ids(size, f"hash_key {keys[0]} became {keys[1]}")
            for part_name in self.parts:
                why = change.key_change(part_name)
                if why:
                    return no_ids(size, f"its part {part_name!r}: {why}")
            return same_ids(size)
        tuples = change.new.vocabularies[self.name].values  # (N - 2, parts) part ids
        old_tuples = change.old.vocabularies[self.name].values
        assert isinstance(tuples, np.ndarray) and isinstance(old_tuples, np.ndarray)
        maps = {part_name: change.map_ids(part_name) for part_name in self.parts}
        # The part ids as the older schema numbers them; -1 for new values, which match none.
        old_ids = [maps[part_name].old_of_N[tuples[:, i]] for i, part_name in enumerate(self.parts)]
        old_of_N = reserved_ids(size)
        old_of_N[FIRST_KNOWN_ID:] = match_values(
            tuples_as_bytes(np.stack(old_ids, axis=1)), tuples_as_bytes(old_tuples), FIRST_KNOWN_ID
        )
        why = "; ".join(
            f"its part {part_name!r}: {ids.why}" for part_name, ids in maps.items() if ids.why
        )
        if why:  # which combinations count as unseen follows from the parts' rules
            old_of_N[0] = -1
        return IdMap(old_of_N=old_of_N, why=why)

    @classmethod
    def to_toml(cls, features: Sequence[Crossed]) -> list[object]:
        return [cross._toml_entry() for cross in features]

    def _toml_entry(self) -> object:
        changed = self.changed_options()
        if self.name != "_x_".join(self.parts):
            changed["name"] = self.name
        return {"parts": list(self.parts), **changed} if changed else list(self.parts)

    @classmethod
    def from_toml(cls, entries: object, options: dict[str, Any]) -> list[Feature]:
        return [cls._from_entry(entry) for entry in toml_list(entries, cls.kind)]

    @classmethod
    def _from_entry(cls, entry: object) -> Crossed:
        if isinstance(entry, list):
            return crossed(*entry)
        if not isinstance(entry, Mapping) or not isinstance(entry.get("parts"), (list, tuple)):
            raise FeatureError(
                f"got crossed = [{entry!r}], expected a list of parts or a table like "
                '{ parts = ["a", "b"], hash_buckets = 1000 }'
            )
        label = str(entry.get("name", "_x_".join(map(str, entry["parts"]))))
        options = {key: value for key, value in entry.items() if key not in ("parts", "name")}
        return crossed(*entry["parts"], name=entry.get("name"), **cls.read_options(label, options))


def crossed(*parts: str, name: str | None = None, **options: Any) -> Crossed:
    """Declare the cross-product of two or more features.

    Args:
        *parts: Names of categorical or bucketized features, or of raw columns.
        name: The cross's name; the parts joined by ``_x_`` if not given.
        options: Fields of :class:`Crossed` by keyword, such as ``min_count=2``; a table stands for
            :class:`widedeep.features.EmbeddingOptions`.

    Returns:
        The feature.

    Raises:
        FeatureError: If fewer than two parts are given or an option is outside its range.

    Example:
        >>> crossed("education", "occupation").name
        'education_x_occupation'
    """
    check_feature_names(parts or ("cross",), None)
    check_option_names(options, Crossed, Crossed.kind)
    return Crossed(name=name or "_x_".join(parts), parts=parts, **options)


crossed.__signature__ = keyword_signature(crossed, Crossed)  # type: ignore[attr-defined]
