"""The operations of the native transform, which a kind of feature names for its columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from widedeep.features.learned import NumericFit

HASH_KEY = 0xDECAFCAFFE
"""Number that the hash of a combination begins with, as TensorFlow's ``crossed_column`` has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberEncoding:
    """Native operation: a number (or vector) as dense columns, by what was learned of it.

    Of a list of events each number is an id instead: id 2, whose weight is the number, or id 1 for
    a null.

    Args:
        column: The column's name.
        fit: What was learned.
        transform: ``"quantile"``, ``"standard"``, ``"minmax"`` or ``"log1p"``, as
            :class:`widedeep.schema.NumericFit` defines them; ``"none"`` keeps the number.
        indicator: Whether null flags follow the values.
        events: Whether the column holds lists with one number per event.
        maxlen: Most values of a list; of a longer one the rest is not read.
        keep: End of a longer list that is read.
        parallel: Column whose lists describe the same events, and so have the same lengths.
    """

    column: str
    fit: NumericFit
    transform: str = "none"
    indicator: bool = False
    events: bool = False
    maxlen: int | None = None
    keep: Literal["last", "first"] = "last"
    parallel: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketEncoding:
    """Native operation: the bucket of a number, closed on the left, as id 2 + bucket.

    Of a vector, component i has the ids 2 + i * (number of boundaries + 1) + bucket; a null
    component has none, and a row of nulls alone the id of a missing value.
    """

    column: str
    boundaries: NDArray[np.float64]
    size: int = 1  # Length of the vectors


@dataclass(frozen=True, kw_only=True, slots=True)
class PiecewiseEncoding:
    """Native operation: a number between two cut points as their two ids, weighed 1 - f and f.

    f is the number's distance from the lower cut point as a fraction of the distance between both.
    The weighted sum of rows of a table is then a function that is linear between cut points and
    constant beyond the outer ones, whatever the number of cut points at the same cost. The id of
    cut point k is 2 + k; a null is id 1.
    """

    column: str
    cuts: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueEncoding:
    """Native operation: the id of a value by vocabulary, by hash or as it is.

    Args:
        column: The column's name.
        vocabulary: Key of the vocabulary; None to hash, or to take integers as they are.
        hash_buckets: Hash values into this many ids.
        remainders: Give a bucket two ids: its remainder by this number and, behind those, its
            quotient.
        num_buckets: Take integers below this number as they are.
        oov_buckets: Ids that unseen values are hashed into; 0 for id 0.
        drop_unseen: Whether an unseen value has no id.
        default: Place in the vocabulary (or integer) that an unseen value stands for; None: none.
        empty_as_null: Whether ``""`` is a null.
        crossed_by_position: Whether hashed crosses combine the values' positions in the vocabulary
            rather than their text, as TensorFlow does for given vocabularies.
        weights: Column with one weight per value.
        maxlen: Most values of a list; of a longer one the rest is not read.
        keep: End of a longer list that is read.
        parallel: Column whose lists describe the same events, and so have the same lengths.
        keeps_nulls: Whether a null within a list has the id of a missing value; else it is left
            out.
    """

    column: str
    vocabulary: str | None = None
    hash_buckets: int | None = None
    remainders: int | None = None
    num_buckets: int | None = None
    oov_buckets: int = 0
    drop_unseen: bool = False
    default: int | None = None
    empty_as_null: bool = False
    crossed_by_position: bool = False
    weights: str | None = None
    maxlen: int | None = None
    keep: Literal["last", "first"] = "last"
    parallel: str | None = None
    keeps_nulls: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEncoding:
    """Native operation: the id of each combination of part ids, learned or hashed.

    Args:
        parts: Names of features, or of raw columns.
        hash_buckets: Hash combinations into this many ids; None to give ids to those that
            ``fit_schema`` counts, under the feature's name in the vocabularies.
        min_count: Least number of times that a combination was seen.
        max_size: Most combinations.
        max_combinations: A row whose lists make more is refused.
        hash_key: Number that hashes begin with.
    """

    parts: tuple[str, ...]
    hash_buckets: int | None = None
    min_count: int = 1
    max_size: int | None = None
    max_combinations: int = 65_536
    hash_key: int = HASH_KEY


@dataclass(frozen=True, kw_only=True, slots=True)
class CountEncoding:
    """Native operation: how often each known id of another feature is in the row, as dense columns.

    An id with a weight counts by it. Unseen and missing values have no column.

    Args:
        source: Name of the feature.
        width: Number of its known ids.
    """

    source: str
    width: int


Encoding = (
    NumberEncoding
    | BucketEncoding
    | PiecewiseEncoding
    | ValueEncoding
    | CrossEncoding
    | CountEncoding
)
