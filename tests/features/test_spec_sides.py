"""Whose feature it is: the query's, the item's, or both's."""

from __future__ import annotations

import pytest

import widedeep as wd
from widedeep.features.spec import feature_side, item_columns

SPEC = wd.FeatureSpec(
    features=[
        wd.numeric("price", "age"),
        wd.bucketized("price_bucket", source="price", boundaries=[1.0]),
        wd.bucketized("age_bucket", source="age", boundaries=[20.0]),
        wd.categorical("user", "app", "country"),
        wd.categorical("genres", weights="genre_weights"),
        wd.crossed("user", "country"),
        wd.crossed("app", "genres"),
        wd.crossed("app", "price_bucket"),
        wd.crossed("user", "app"),
        wd.crossed("age_bucket", "genre_weights", name="raw_item"),
        wd.crossed("age_bucket", "hour", name="raw_query"),
        wd.crossed("user", "hour", name="named"),
    ],
    item=["app", "price", "genres", "named"],
)


def test_columns_of_item_features_are_the_items() -> None:
    assert item_columns(SPEC) == {"app", "price", "genres", "genre_weights"}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("price", "item"),
        ("price_bucket", "item"),
        ("age", "query"),
        ("age_bucket", "query"),
        ("user", "query"),
        ("app", "item"),
        ("genres", "item"),
        ("user_x_country", "query"),
        ("app_x_genres", "item"),
        ("app_x_price_bucket", "item"),
        ("user_x_app", "both"),
        ("raw_item", "both"),
        ("raw_query", "query"),
        ("named", "both"),
    ],
)
def test_a_feature_is_its_columns_owners(name: str, side: str) -> None:
    assert feature_side(SPEC, name) == side


def test_without_item_features_all_is_the_querys() -> None:
    spec = SPEC.replace(item=())
    assert {feature_side(spec, name) for name in spec.by_name} == {"query"}
