"""Each kind of feature checks its options and says what is allowed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from widedeep.errors import FeatureError
from widedeep.features import bucketized, categorical, crossed, numeric


def test_options_are_given_to_every_name() -> None:
    features = numeric("a", "b", transform="log1p", missing=3)
    assert [(f.name, f.source, f.transform, f.missing) for f in features] == [
        ("a", "a", "log1p", 3.0),
        ("b", "b", "log1p", 3.0),
    ]


@pytest.mark.parametrize("missing, width", [("mean", 3), ("indicator", 6), (0.5, 3)])
def test_an_indicator_doubles_the_width(missing: str | float, width: int) -> None:
    assert numeric("v", size=3, missing=missing)[0].width == width  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: numeric("a", transform="quantil"), "did you mean 'quantile'"),
        (lambda: numeric("a", quantiles=1), "feature 'a': got quantiles=1, expected an integer of"),
        (lambda: numeric("a", size=True), "got size=True"),
        (lambda: numeric("a", missing="median"), "got missing='median', expected 'mean'"),
        (lambda: numeric("a", missing=float("nan")), "got missing=nan"),
        (lambda: numeric("a", missing=False), "got missing=False"),
        (lambda: numeric("a", source=""), "got source=''"),
        (lambda: numeric("a", embedding="ple"), "got embedding='ple', known: 'bins'"),
        (lambda: numeric("a", embedding="bins", size=2), "embedding='bins' and size=2, expected"),
        (
            lambda: numeric("a", embedding="bins", missing=0),
            "missing=0.0, which has no effect with",
        ),
        (
            lambda: numeric("a", embedding="piecewise", transform="log1p"),
            "transform='log1p', which",
        ),
        (lambda: numeric("a", embedding="periodic", transform="none"), "got transform='none', exp"),
        (
            lambda: numeric("a", embedding="periodic", bins=9),
            "got bins=9, which has no effect with",
        ),
        (lambda: numeric("a", embedding_dim=9), "embedding_dim=9, which has no effect with embed"),
        (lambda: numeric("a", embedding="bins", bins=1), "got bins=1, expected an integer of at"),
        (lambda: numeric("a", embedding="periodic", frequency_std=0), "expected a number above 0"),
        (lambda: numeric("a", shift=1), "got shift=1 without scale; give both"),
        (lambda: numeric("a", shift=1, scale=2), "transform='quantile', expected transform='stand"),
        (
            lambda: numeric("a", transform="standard", shift=1, scale=0),
            "got scale=0, expected a finite number other than 0",
        ),
        (
            lambda: numeric("a", transform="standard", size=3, shift=0, scale=[1, 2]),
            "got scale=(1, 2), expected a finite number other than 0, or 3 of them",
        ),
        (
            lambda: numeric("a", embedding="bins", shift=1, scale=2),
            "got shift=1, which has no effect with embedding='bins'",
        ),
        (lambda: numeric(""), "got '' as a feature's name"),
        (lambda: numeric(), "got no name"),
        (lambda: numeric("a", "b", source="c"), "declare them one by one"),
        (lambda: categorical("a", vocabulary=["x"], hash_buckets=9), "at most one of them"),
        (lambda: categorical("a", vocabulary=[]), "empty vocabulary"),
        (lambda: categorical("a", vocabulary=["x", 1]), "expected all str or all int"),
        (lambda: categorical("a", vocabulary=[True]), "got vocabulary values of ['bool']"),
        (lambda: categorical("a", vocabulary=["x", "y", "x"]), "got 'x' twice"),
        (lambda: categorical("a", vocabulary="xyz"), "expected a list of values"),
        (lambda: categorical("a", vocabulary=[2**63]), "expected integers of 64 bits"),
        (lambda: categorical("a", min_count=0), "got min_count=0"),
        (lambda: categorical("a", max_size=0), "got max_size=0"),
        (lambda: categorical("a", combiner="most"), "got combiner='most'"),
        (lambda: categorical("a", oov="keep"), "got oov='keep', expected 'id' or 'drop'"),
        (
            lambda: categorical("a", num_buckets=9, default_value=9),
            "got default_value=9, expected an integer from 0 to num_buckets - 1 = 8",
        ),
        (
            lambda: categorical("a", vocabulary=["x"], default_value="y"),
            "got default_value='y', expected a value of the vocabulary",
        ),
        (
            lambda: categorical("a", hash_buckets=9, default_value="y"),
            "got default_value='y' and hash_buckets=9, which say two things of an unseen value",
        ),
        (lambda: categorical("a", oov="drop", default_value="y"), "and oov='drop', which say two"),
        (lambda: categorical("a", default_value=1.5), "got default_value=1.5, expected a value"),
        (lambda: categorical("a", hash_buckets=9, oov_buckets=2), "oov_buckets needs a vocab"),
        (lambda: categorical("a", empty_as_null="yes"), "got empty_as_null='yes'"),
        (lambda: categorical("a", table=3), "got table=3, expected a non-empty string"),
        (lambda: bucketized("a", source="x"), "got no way to cut it, expected one of boundaries"),
        (lambda: bucketized("a", source="x", bins=9, quantiles=9), "got quantiles and bins, exp"),
        (lambda: bucketized("a", source="x", bins=1), "got bins=1, expected an integer of at le"),
        (lambda: bucketized("a", source="x", boundaries=[1, 1]), "strictly increasing"),
        (lambda: bucketized("a", source="x", boundaries=["low"]), "got boundaries=['low']"),
        (lambda: bucketized("a", source="x", boundaries=[float("inf")]), "finite"),
        (lambda: bucketized("a", source="x", boundaries=[]), "strictly increasing"),
        (
            lambda: bucketized("a", source="x", bins=9, size=2),
            "size=2 and bins, expected boundaries",
        ),
        (
            lambda: bucketized("a", source="x", boundaries=[1], combiner="sum"),
            "got combiner='sum', which has no effect on one number",
        ),
        (lambda: crossed("a"), "got 1 part(s), expected two or more"),
        (lambda: crossed("a", "a"), "got a part twice"),
        (lambda: crossed("a", "b", hash_buckets=0), "got hash_buckets=0"),
        (lambda: crossed("a", "b", hash_key=1), "got hash_key=1, which has no effect without"),
        (lambda: crossed("a", "b", hash_buckets=9, hash_key=2**63), "expected an integer of 64 bi"),
        (lambda: crossed("a", "b", combiner=None), "a cross cannot keep a sequence"),
    ],
)
def test_a_wrong_option_is_refused(make: object, message: str) -> None:
    with pytest.raises(FeatureError) as caught:
        make()  # type: ignore[operator]
    assert message in str(caught.value)


def test_a_vocabulary_may_be_a_column_of_a_library() -> None:
    assert categorical("a", vocabulary=np.array([3, 1]))[0].vocabulary == (3, 1)
    assert categorical("a", vocabulary=pd.Series(["x", "y"]))[0].vocabulary == ("x", "y")


def test_a_cross_names_itself_after_its_parts() -> None:
    assert crossed("a", "b", "c").name == "a_x_b_x_c"
    assert crossed("a", "b", name="ab").name == "ab"
