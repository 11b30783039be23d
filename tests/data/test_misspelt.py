"""Which keys look like a column, and which do not."""

from __future__ import annotations

import pytest

from widedeep.data.transform import MOST_KEYS, misspelt_keys
from widedeep.kernels.transform import is_misspelt


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("ctiy", "city"),
        ("userCountry", "user_country"),
        ("country", "user_country"),
        ("user_contry", "user_country"),
        ("hours", "hour"),
        ("app-price", "app_price"),
        ("straßenname", "strassenname"),
    ],
)
def test_these_look_like_a_column(key: str, column: str) -> None:
    assert is_misspelt(key, column)
    assert is_misspelt(column, key)


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("user_id", "user_country"),
        ("feature_1", "feature_2"),
        ("id", "ad"),
        ("", "age"),
        ("age", ""),
        ("device_id", "device"),
        ("rage", "cape"),
        ("price", "user_country"),
        ("x" * 41, "x" * 40),
    ],
)
def test_these_do_not(key: str, column: str) -> None:
    assert not is_misspelt(key, column)
    assert not is_misspelt(column, key)


def test_only_keys_that_mean_nothing_and_columns_that_are_absent() -> None:
    known = {"city", "cities", "age"}
    assert misspelt_keys(["ctiy", "agee"], ["city", "age"], known) == {
        "ctiy": "city",
        "agee": "age",
    }
    assert misspelt_keys(["cities"], ["city"], known) == {}
    assert misspelt_keys(["ctiy"], [], known) == {}
    many = [f"k{at}" for at in range(MOST_KEYS)]
    assert misspelt_keys(["ctiy", *many], ["city"], known) == {"ctiy": "city"}
    assert misspelt_keys([*many, "ctiy"], ["city"], known) == {}
