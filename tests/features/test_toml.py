"""A spec written as TOML and read again is the same spec; a wrong key is told."""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widedeep.errors import FeatureError
from widedeep.features import (
    Feature,
    FeatureSpec,
    Numeric,
    bucketized,
    categorical,
    crossed,
    indicator,
    numeric,
)
from widedeep.features.spec import spec_from_table, spec_to_table
from widedeep.features.toml import toml_text

NAMES = st.text(min_size=1, max_size=8) | st.text("ab._- '\"\\", min_size=1, max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**40), 2**40)
SIZES = st.none() | st.integers(1, 10**9)


NUMBER_OPTIONS: list[dict[str, Any]] = [
    {"embedding": "bins", "bins": 9, "embedding_dim": 3},
    {"embedding": "piecewise"},
    {"transform": "standard", "shift": 38.6, "scale": -0.073},
    {"transform": "standard", "shift": (1.5, 2.0), "scale": 3.0, "size": 2},
    {"embedding": "periodic", "transform": "standard", "frequencies": 3, "frequency_std": 0.5},
]


@st.composite
def numerics(draw: st.DrawFn, name: str) -> list[Feature]:
    if draw(st.integers(0, 3)) == 0:
        return [*numeric(name, **draw(st.sampled_from(NUMBER_OPTIONS)))]
    return [
        *numeric(
            name,
            source=draw(st.just(name) | st.just(name + "_raw")),
            transform=draw(st.sampled_from(["quantile", "standard", "minmax", "log1p", "none"])),
            quantiles=draw(st.integers(2, 999)),
            missing=draw(st.sampled_from(["mean", "indicator"]) | NUMBERS),
            size=draw(st.integers(1, 4)),
        )
    ]


@st.composite
def categoricals(draw: st.DrawFn, name: str) -> list[Feature]:
    ways: list[dict[str, Any]] = [
        {"vocabulary": draw(st.lists(st.text(), min_size=1, max_size=4, unique=True))},
        {"vocabulary": draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True))},
        {"vocabulary_file": draw(NAMES)},
        {"hash_buckets": draw(st.integers(1, 10**12))},
        {"num_buckets": draw(st.integers(1, 10**6))},
        {"num_buckets": 9, "default_value": 3, "oov": "id"},
        {"vocabulary": ["a", "é"], "default_value": "é", "oov": "id"},
        {"oov_buckets": draw(st.integers(0, 9))},
    ]
    return [
        *categorical(
            name,
            min_count=draw(st.integers(1, 9)),
            max_size=draw(SIZES),
            empty_as_null=draw(st.booleans()),
            weights=draw(st.none() | st.just(name + "_weights")),
            embedding_dim=draw(SIZES),
            combiner=draw(st.sampled_from(["sum", "mean", "sqrtn", None])),
            table=draw(st.none() | st.just(name + "_table")),
            **{"oov": draw(st.sampled_from(["id", "drop"]))} | draw(st.sampled_from(ways)),
        )
    ]


@st.composite
def buckets(draw: st.DrawFn, name: str) -> list[Feature]:
    cuts = st.lists(NUMBERS.map(float), min_size=1, max_size=4, unique=True).map(sorted)
    counts = st.integers(2, 99)
    ways = [("boundaries", cuts), ("quantiles", counts), ("bins", counts)]
    option, values = draw(st.sampled_from(ways))
    return [
        bucketized(
            name,
            source=draw(st.just(name) | st.just(name + "_raw")),
            embedding_dim=draw(SIZES),
            **{option: draw(values)},
        )
    ]


@st.composite
def specs(draw: st.DrawFn) -> FeatureSpec:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    # A categorical is always there, so that some part of the model has a feature.
    features: list[Feature] = [*categorical("the anchor")]
    for name in names:
        features += draw(st.one_of(numerics(name), categoricals(name), buckets(name)))
    parts = [f.name for f in features if type(f).__name__ != "Numeric"] + ["raw 1", "raw 2"]
    for chosen in draw(st.lists(st.permutations(parts).map(lambda p: p[:2]), max_size=2)):
        name = draw(st.none() | st.just(f"cross {len(features)}"))
        if (name or "_x_".join(chosen)) not in [f.name for f in features]:
            hash_buckets = draw(SIZES)
            key = draw(st.none() | st.integers(-(2**63), 2**63 - 1)) if hash_buckets else None
            features.append(
                crossed(*chosen, name=name, max_size=4, hash_buckets=hash_buckets, hash_key=key)
            )
    known = [f.name for f in features]
    if draw(st.booleans()):
        features.append(indicator("the counts", source="the anchor"))
    some = st.lists(st.sampled_from(known), unique=True)
    vectors = [f.name for f in features if isinstance(f, Numeric) and f.embedding is None]
    return FeatureSpec(
        features=features,
        label=draw(
            st.sampled_from([None, "the label", ["l 1", "l 2"], {"": "l", "head é": "l 2"}, ["l"]])
        ),
        weight=draw(st.sampled_from([None, "the weight"])),
        group=draw(st.sampled_from([None, "the group"])),
        label_vocabulary=draw(st.none() | st.lists(st.text(), unique=True)),
        wide=draw(st.none() | some),
        deep=draw(st.none() | some.map(lambda names: names or ["the anchor"])),
        item=draw(some),
        training_only=draw(st.dictionaries(st.sampled_from(known[1:]), NUMBERS | st.text())),
        extra=draw(st.lists(st.sampled_from(vectors), unique=True)) if vectors else (),
    )


@given(specs())
def test_a_spec_survives_toml(spec: FeatureSpec) -> None:
    text = spec.to_toml()
    again = FeatureSpec.from_toml(text)
    assert again == spec
    assert again.to_toml() == text


@given(specs())
def test_a_spec_survives_plain_tables(spec: FeatureSpec) -> None:
    table = spec_to_table(spec)
    assert spec_from_table(table["data"], table["features"]) == spec


def test_the_text_is_what_a_person_would_write() -> None:
    spec = FeatureSpec(
        label="income",
        features=[
            numeric("age", "gain"),
            categorical("education", min_count=2, embedding_dim=16),
            categorical("tags", combiner=None),
            bucketized("age_bucket", source="age", boundaries=[18, 25]),
            crossed("education", "job"),
            crossed("education", "age_bucket", hash_buckets=1000),
        ],
        item=["tags"],
    )
    assert spec.to_toml() == (
        "[data]\n"
        'label = "income"\n'
        "\n"
        "[features]\n"
        'numeric = ["age", "gain"]\n'
        'categorical = ["education", "tags"]\n'
        'crossed = [["education", "job"], '
        '{ parts = ["education", "age_bucket"], hash_buckets = 1000 }]\n'
        'item = ["tags"]\n'
        'bucketized.age_bucket = { source = "age", boundaries = [18.0, 25.0] }\n'
        "options.education = { min_count = 2, embedding_dim = 16 }\n"
        'options.tags = { combiner = "none" }\n'
    )


def test_the_census_example_is_read() -> None:
    spec = FeatureSpec.from_toml("""
        [data]
        train = "train.parquet"
        label = "income"
        [features]
        numeric = ["age", "education_num"]
        categorical = ["workclass", "education"]
        crossed = [["education", "occupation"],
                   { parts = ["age_bucket", "education"], hash_buckets = 100000 }]
        bucketized.age_bucket = { source = "age", boundaries = [18, 25] }
        options.education = { embedding_dim = 16, min_count = 2 }
        item = []
    """)
    assert spec == FeatureSpec(
        label="income",
        features=[
            numeric("age", "education_num"),
            categorical("workclass"),
            categorical("education", embedding_dim=16, min_count=2),
            crossed("education", "occupation"),
            crossed("age_bucket", "education", hash_buckets=100_000),
            bucketized("age_bucket", source="age", boundaries=[18, 25]),
        ],
    )


@pytest.mark.parametrize(
    "features, message",
    [
        (
            'numerics = ["a"]',
            "got the unknown key 'numerics' in [features]; did you mean 'numeric'",
        ),
        ('numeric = "a"', "got numeric = 'a' in [features], expected a list"),
        ("numeric = [1]", "got numeric = [1] in [features], expected a list of names"),
        (
            'numeric = ["age"]\noptions.agee = { missing = 0 }',
            "got options for 'agee', which is no numeric or categorical feature; did you",
        ),
        (
            'categorical = ["c"]\noptions.c = { min_cont = 2 }',
            "feature 'c': got the unknown option 'min_cont'; did you mean 'min_count'",
        ),
        ('categorical = ["c"]\noptions.c = 3', "feature 'c': got 3, expected a table of options"),
        ('categorical = ["c"]\noptions = 3', "got options = 3 in [features], expected a table"),
        ("bucketized = []", "got bucketized = [] in [features], expected a table"),
        ("bucketized.b = { source = 'x' }", "feature 'b': got no way to cut it"),
        ("crossed = ['ab']", "got crossed = ['ab'], expected a list of parts or a table"),
        ("crossed = [{ parts = 'ab' }]", "expected a list of parts or a table"),
        ("crossed = 'ab'", "got crossed = 'ab' in [features], expected a list"),
        (
            "crossed = [{ parts = ['a', 'b'], hash_bucket = 9 }]",
            "feature 'a_x_b': got the unknown option 'hash_bucket'; did you mean 'hash_buckets'",
        ),
        ('categorical = ["c"]\nwide = ["cc"]', "got 'cc' in wide, which is no feature's name"),
        ("numeric = [", "got text that is no TOML"),
    ],
)
def test_a_wrong_table_is_refused(features: str, message: str) -> None:
    with pytest.raises(FeatureError) as caught:
        FeatureSpec.from_toml(f"[features]\n{features}\n")
    assert message in str(caught.value)


def test_text_without_features_is_refused() -> None:
    with pytest.raises(FeatureError, match=r"without a \[features\] table; add one"):
        FeatureSpec.from_toml("[feature]\nnumeric = []\n")


@given(st.dictionaries(NAMES, NUMBERS | st.booleans() | st.text() | st.lists(st.text())))
def test_any_table_of_values_is_read_back(entries: dict[str, object]) -> None:
    assert tomllib.loads(toml_text({"section": entries})) == {"section": entries}


def test_numbers_of_numpy_are_written_plainly() -> None:
    assert toml_text({"s": {"a": np.float64(1.5)}}) == "[s]\na = 1.5\n"


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(FeatureError, match=r"got \{1\} \(set\), which TOML cannot hold"):
        toml_text({"s": {"a": {1}}})
