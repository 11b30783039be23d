"""FeatureSpec: order, placement, and the mistakes it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from widedeep.errors import FeatureError
from widedeep.features import FeatureSpec, bucketized, categorical, crossed, numeric

AGE = numeric("age")
JOB = categorical("job")
BUCKET = bucketized("age_bucket", source="age", boundaries=[30])


def test_nested_lists_are_flattened_and_ordered_by_kind() -> None:
    spec = FeatureSpec(features=[crossed("job", "town"), [JOB, [AGE, [BUCKET]]]])
    assert [f.name for f in spec.all_features] == ["age", "age_bucket", "job", "job_x_town"]


def test_the_default_placement_is_the_papers() -> None:
    spec = FeatureSpec(features=[AGE, JOB, BUCKET, crossed("job", "age_bucket")])
    assert spec.wide_names == ("age_bucket", "job", "job_x_age_bucket")
    assert spec.deep_names == ("age", "job")


def test_extra_features_leave_the_deep_part() -> None:
    spec = FeatureSpec(features=[AGE, JOB, numeric("image", size=8)], extra=["image"])
    assert spec.deep_names == ("age", "job")


def test_columns_are_read_once_with_weights_and_raw_parts() -> None:
    spec = FeatureSpec(
        label="y",
        weight="w",
        group="user",
        features=[
            AGE,
            BUCKET,
            categorical("tags", weights="tag_weights"),
            crossed("tags", "town"),
            crossed("age_bucket", "town"),
        ],
    )
    assert spec.columns() == ["age", "tags", "tag_weights", "town"]


@pytest.mark.parametrize(
    "label, heads",
    [
        (None, {}),
        ("y", {"": "y"}),
        (["y", "z"], {"y": "y", "z": "z"}),
        ({"click": "y"}, {"click": "y"}),
    ],
)
def test_labels_by_head(label: Any, heads: dict[str, str]) -> None:
    assert FeatureSpec(label=label, features=AGE).labels == heads


@pytest.mark.parametrize(
    "options, message",
    [
        ({"features": [*AGE, *AGE]}, "got two features named 'age'; give one of them another name"),
        ({"features": ["age"]}, "got 'age' (str) in features=[...], expected wd.numeric"),
        ({"features": []}, "got no feature in the wide or the deep part"),
        (
            {"features": AGE, "wide": ["agee"]},
            "got 'agee' in wide, which is no feature's name; did",
        ),
        ({"features": AGE, "deep": "age"}, "expected a list: deep=['age']"),
        ({"features": AGE, "item": ["x"]}, "got 'x' in item"),
        ({"features": AGE, "training_only": {"x": 1}}, "got 'x' in training_only"),
        ({"features": AGE, "training_only": {"age": 1}}, "which fixes every feature"),
        ({"features": JOB, "extra": ["job"]}, "only numeric features can be extra"),
        ({"features": AGE, "label": 3}, "got label=3, expected a column's name"),
        ({"features": AGE, "label": ["y", "y"]}, "a list of different names"),
        ({"features": AGE, "label": "age"}, "feature 'age': its column 'age' is the label"),
        ({"features": AGE, "label": ["y", "age"]}, "its column 'age' is the label"),
        ({"features": AGE, "label": {"h": "age"}}, "its column 'age' is the label"),
        ({"features": AGE, "weight": "age"}, "its column 'age' is the weight"),
        (
            {"features": [categorical("c", weights="y")], "label": "y"},
            "feature 'c': its column 'y' is the label",
        ),
        (
            {"features": [crossed("job", "y"), JOB], "label": "y"},
            "feature 'job_x_y': its column 'y' is the label",
        ),
        ({"features": [AGE, crossed("age", "job")]}, "cross a bucketized(..., source='age')"),
        (
            {"features": [crossed("a", "b", name="ab"), crossed("ab", "c")]},
            "its part 'ab' is itself a cross",
        ),
        (
            {
                "features": [
                    categorical("a", table="t", min_count=2),
                    categorical("b", table="t", min_count=3),
                ]
            },
            "shares table 't' with 'a' but has another min_count",
        ),
        (
            {"features": [categorical("a", min_count=2), categorical("b", table="a")]},
            "shares table 'a' with 'a' but has another min_count",
        ),
        (
            {"features": [categorical("a", table="town"), crossed("a", "town")]},
            "got table='town', which already names another feature or a column",
        ),
        (
            {"features": [categorical("a", table="age"), AGE]},
            "got table='age', which already names another feature",
        ),
    ],
)
def test_a_wrong_declaration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FeatureError) as caught:
        FeatureSpec(**options)
    assert message in str(caught.value)


def test_replace_checks_again() -> None:
    spec = FeatureSpec(label="y", features=[AGE, JOB])
    assert spec.replace(label="z").labels == {"": "z"}
    with pytest.raises(FeatureError, match="is the label"):
        spec.replace(label="age")
