"""Specs of feature-column objects: named tuples of TensorFlow's class names and fields."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import widedeep as wd
from widedeep.errors import FeatureError
from widedeep.importing import from_feature_columns

# The classes of TensorFlow 2.15; those of TensorFlow 1 have the same fields and an underscore.
Numeric = namedtuple("NumericColumn", "key shape default_value dtype normalizer_fn")
Bucketized = namedtuple("BucketizedColumn", "source_column boundaries")
Hashed = namedtuple("HashedCategoricalColumn", "key hash_bucket_size dtype")
Listed = namedtuple(
    "VocabularyListCategoricalColumn", "key vocabulary_list dtype default_value num_oov_buckets"
)
Filed = namedtuple(
    "VocabularyFileCategoricalColumn",
    "key vocabulary_file vocabulary_size num_oov_buckets dtype default_value file_format",
)
Identity = namedtuple("IdentityCategoricalColumn", "key number_buckets default_value")
Crossed = namedtuple("CrossedColumn", "keys hash_bucket_size hash_key")
Weighted = namedtuple("WeightedCategoricalColumn", "categorical_column weight_feature_key dtype")
Indicator = namedtuple("IndicatorColumn", "categorical_column")
Embedding = namedtuple(
    "EmbeddingColumn",
    "categorical_column dimension combiner initializer ckpt_to_load_from tensor_name_in_ckpt "
    "max_norm trainable use_safe_embedding_lookup",
)
Shared = namedtuple(
    "SharedEmbeddingColumn",
    "categorical_column shared_embedding_column_creator combiner max_norm "
    "use_safe_embedding_lookup",
)
_Hashed = namedtuple("_HashedCategoricalColumn", "key hash_bucket_size dtype")
_Identity = namedtuple("_IdentityCategoricalColumn", "key num_buckets default_value")
_Embedding = namedtuple(
    "_EmbeddingColumn",
    "categorical_column dimension combiner layer_creator ckpt_to_load_from tensor_name_in_ckpt "
    "max_norm trainable",
)


class TruncatedNormal:
    def __init__(self, mean: float = 0.0, stddev: float = 1.0) -> None:
        self.mean, self.stddev = mean, stddev


class RandomUniform:
    def __init__(self, minval: float, maxval: float) -> None:
        self.minval, self.maxval = minval, maxval


class Orthogonal: ...


def number(key: str, **options: Any) -> Any:
    options = {"shape": (1,), "default_value": None, "normalizer_fn": None, **options}
    return Numeric(key=key, dtype="float32", **options)


def embedding(column: Any, dimension: int, **options: Any) -> Any:
    options = {"combiner": "mean", "initializer": None, "max_norm": None, **options}
    options = {"trainable": True, "ckpt_to_load_from": None, **options}
    return Embedding(
        column, dimension, tensor_name_in_ckpt=None, use_safe_embedding_lookup=True, **options
    )


JOB = Listed("job", ("cook", "nurse"), "string", -1, 0)
AGE = number("age")
AGES = Bucketized(AGE, (18, 65))


def test_the_same_features_as_by_hand() -> None:
    hashed = Hashed("tag", 100, "string")
    wide = [JOB, hashed, AGES, Crossed((AGES, JOB), 1000, None), AGE]
    deep = [embedding(JOB, 3, combiner="sqrtn", max_norm=2.0), AGE, Indicator(AGES)]
    spec = from_feature_columns(wide, deep, label="y", weight_column="w")
    options: dict[str, Any] = {"empty_as_null": True}
    by_hand = wd.FeatureSpec(
        label="y",
        weight="w",
        features=[
            wd.categorical(
                "job", vocabulary=("cook", "nurse"), oov="drop", embedding_dim=3, combiner="sqrtn",
                embedding={"max_norm": 2.0}, **options,
            ),
            wd.categorical("tag", hash_buckets=100, **options),
            wd.numeric("age", transform="none"),
            wd.bucketized("age_bucketized", source="age", boundaries=[18, 65]),
            wd.crossed(
                "age_bucketized", "job", name="age_bucketized_X_job", hash_buckets=1000
            ),
            wd.indicator("age_bucketized_indicator", source="age_bucketized"),
        ],
        wide=["job", "tag", "age_bucketized", "age_bucketized_X_job", "age"],
        deep=["job", "age", "age_bucketized_indicator"],
    )  # fmt: skip
    assert spec.by_name == by_hand.by_name
    assert (spec.wide_names, spec.deep_names) == (by_hand.wide_names, by_hand.deep_names)
    assert (spec.labels, spec.weight) == (by_hand.labels, by_hand.weight)
    assert wd.FeatureSpec.from_toml(spec.to_toml()) == spec


def test_unseen_values_defaults_and_weights(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("x\ny\nz\n")
    columns = [
        Listed("oov", ("a",), "string", -1, 2),
        Listed("other", ("a", "b"), "string", 1, 0),
        Filed("file", str(tmp_path / "words.txt"), 2, 0, "string", -1, None),
        Identity("digit", 7, 3),
        Weighted(Hashed("tag", 10, "string"), "tag_weight", "float32"),
    ]
    features = from_feature_columns(columns, label="y").by_name
    values: dict[str, Any] = {name: feature for name, feature in features.items()}
    assert (values["oov"].oov_buckets, values["oov"].oov) == (2, "id")
    assert values["other"].default_value == "b"
    assert (values["file"].vocabulary, values["file"].oov) == (("x", "y"), "drop")
    assert (values["digit"].num_buckets, values["digit"].default_value) == (7, 3)
    assert features["tag_weighted_by_tag_weight"].weight_column == "tag_weight"


def test_numbers_are_shifted_and_scaled_as_their_normalizer_does() -> None:
    mean, deviation = np.array([1.0, -3.0]), np.array([2.0, 0.5])
    columns = [
        number("age", normalizer_fn=lambda x: (x - 38.5) / 13.5, default_value=(1.5,)),
        number("pair", shape=(2,), normalizer_fn=lambda x: (x - mean) / deviation),
        number("plain", shape=(3,)),
    ]
    features: dict[str, Any] = from_feature_columns((), columns, label="y").by_name
    assert features["age"].shift == pytest.approx(38.5)
    assert features["age"].scale == pytest.approx(1 / 13.5)
    assert features["age"].missing == 1.5
    assert features["pair"].shift == pytest.approx((1.0, -3.0))
    assert features["pair"].scale == pytest.approx((0.5, 2.0))
    assert (features["plain"].size, features["plain"].transform) == (3, "none")


def test_tables_are_shared_frozen_and_started_as_the_columns_are() -> None:
    creator = SimpleNamespace(dimension=4, _name="ab_shared_embedding", _trainable=False)
    one, two = (Listed(name, (1, 2, 3), "int64", -1, 0) for name in "ab")
    columns = [
        Shared(one, creator, "sum", None, True),
        Shared(two, creator, "sum", None, True),
        embedding(JOB, 4, initializer=TruncatedNormal(stddev=0.5)),
        embedding(Hashed("tag", 9, "string"), 4, initializer=TruncatedNormal(stddev=0.1)),
        embedding(Hashed("word", 9, "string"), 4, initializer=RandomUniform(-0.3, 0.3)),
    ]
    features: dict[str, Any] = from_feature_columns((), columns, label="y").by_name
    assert features["a"].table == features["b"].table == "ab_shared_embedding"
    assert features["a"].embedding.frozen
    assert features["job"].embedding is None  # 1 / sqrt(4) is the default
    assert features["tag"].embedding.init == "truncated_normal"
    assert features["tag"].embedding.init_std == 0.1
    assert features["word"].embedding.init_std == pytest.approx(0.3 / 3**0.5)


def test_columns_of_tensorflow_1() -> None:
    column = _Embedding(_Hashed("job", 50, "string"), 8, "mean", None, None, None, None, True)
    spec = from_feature_columns([_Identity("k", 4, None)], [column], label="y")
    features: dict[str, Any] = spec.by_name
    assert (features["job"].hash_buckets, features["job"].embedding_dim) == (50, 8)
    assert features["k"].num_buckets == 4


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (number("x", normalizer_fn=np.log1p), "'x': got a normalizer_fn .* no shift and scale"),
        (number("x", normalizer_fn=lambda x: x.log()), "it fails on an array"),
        (JOB, "'job': got a Vocabulary.* in the deep part"),
        (embedding(JOB, 2, initializer=Orthogonal()), "'job_embedding': got the initializer"),
        (embedding(JOB, 2, ckpt_to_load_from="old"), "starts from the checkpoint 'old'"),
        (Indicator(Bucketized(number("x", normalizer_fn=lambda x: x / 2), (1,))), "raw units"),
        (Indicator(namedtuple("SequenceCategoricalColumn", "categorical_column")(JOB)), "Sequence"),
        (Indicator(Filed("f", "/none", 2, 0, "string", -1, None)), "cannot be read"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(column: Any, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        from_feature_columns((), [column], label="y")
