"""Ids in an older schema: a value's id is found if and only if the value was known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import widedeep as wd
from widedeep.data.extend_schema import map_ids
from widedeep.errors import ConfigError, FeatureError
from widedeep.schema import Schema

VALUES = st.lists(st.sampled_from(["a", "b", "c", "", "é", None]), min_size=1, max_size=12)


def make_rows(jobs: list[str | None], tags: list[str | None]) -> list[dict[str, Any]]:
    return [
        {"job": job, "tags": [tag, "t"], "n": len(job or ""), "age": float(i), "raw": tag}
        for i, (job, tag) in enumerate(zip(jobs, tags * len(jobs), strict=False))
    ]


def make_spec(**options: Any) -> wd.FeatureSpec:
    return wd.FeatureSpec(
        features=[
            *wd.categorical("job", "tags"),
            wd.categorical("n", **options),
            wd.numeric("age"),
            wd.bucketized("bucket", source="age", boundaries=[1, 3]),
            wd.crossed("job", "tags"),
            wd.crossed("bucket", "raw"),
        ]
    )


@given(VALUES, VALUES, VALUES, VALUES)
def test_by_what_an_id_stands_for(
    jobs: list[str | None],
    tags: list[str | None],
    old_jobs: list[str | None],
    old_tags: list[str | None],
) -> None:
    new = wd.fit_schema(make_spec(), make_rows(jobs, tags), threads=1)
    old = wd.fit_schema(make_spec(), make_rows(old_jobs, old_tags), threads=1)
    for slot in new.slots:
        names = {old.describe_id(slot.name, i): i for i in range(old.id_count(slot.name))}
        wanted = [names.get(new.describe_id(slot.name, i), -1) for i in range(slot.size)]
        np.testing.assert_array_equal(map_ids(new, old, slot.name).old_of_N, wanted, slot.name)


@given(VALUES, VALUES, VALUES, VALUES, st.sampled_from([None, 2]))
def test_grown_vocabularies_keep_their_order(
    jobs: list[str | None],
    tags: list[str | None],
    old_jobs: list[str | None],
    old_tags: list[str | None],
    max_size: int | None,
) -> None:
    spec = make_spec(max_size=max_size)
    old = wd.fit_schema(spec, make_rows(old_jobs, old_tags), threads=1)
    alone = wd.fit_schema(spec, make_rows(jobs, tags), threads=1)
    grown = wd.fit_schema(spec, make_rows(jobs, tags), threads=1, grow=old)
    for slot in grown.slots:
        kept = map_ids(grown, old, slot.name).old_of_N
        kept = kept[kept >= 0]
        assert (np.diff(kept) > 0).all(), "old values stand in their order"
        if slot.name != "n" or max_size is None:
            np.testing.assert_array_equal(kept, np.arange(old.id_count(slot.name)))
            assert map_ids(grown, alone, slot.name).matched == alone.id_count(slot.name)
    if max_size is not None:
        assert len(grown.vocabularies["n"]) <= max_size
        total: dict[int, int] = {}
        for part in (old, alone):
            held = part.vocabularies["n"]
            for i in range(len(held)):
                value = held.value(i)
                assert isinstance(value, int)
                total[value] = total.get(value, 0) + int(held.counts[i])
        least = sorted(total.values(), reverse=True)[:max_size][-1]
        assert min(grown.vocabularies["n"].counts) >= least


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        ({"hash_buckets": 9}, {"hash_buckets": 8}, "8 hash buckets became 9"),
        ({"hash_buckets": 9}, {}, "None hash buckets became 9"),
        ({"num_buckets": 9}, {}, "integers are no longer ids by themselves, or are now"),
    ],
)
def test_why_nothing_is_found(mine: dict[str, Any], theirs: dict[str, Any], why: str) -> None:
    rows = make_rows(["a", "b"], ["c"])
    new, old = (wd.fit_schema(make_spec(**options), rows) for options in (mine, theirs))
    found = map_ids(new, old, "n")
    assert (found.matched, found.why) == (0, why)


def test_hashed_crosses_begin_anew_where_they_are_hashed_otherwise() -> None:
    def schema(cross: dict[str, Any], **options: Any) -> Schema:
        crossed = wd.crossed("job", "n", hash_buckets=9, **cross)
        job = wd.categorical("job", vocabulary=["a", "b"], **options)
        spec = wd.FeatureSpec(features=[job, wd.categorical("n"), crossed])
        return wd.fit_schema(spec, make_rows(["a", "b"], ["c"]))

    plain = schema({})
    assert map_ids(schema({"hash_key": 0xDECAFCAFFE}), plain, "job_x_n").is_identity
    assert map_ids(schema({"hash_key": 3}), plain, "job_x_n").why.endswith("became 3")
    why = map_ids(schema({}, default_value="b"), plain, "job_x_n").why
    assert why == "its part 'job': default_value None became 'b'"


def test_a_default_that_was_not_learned_is_refused() -> None:
    spec = wd.FeatureSpec(features=wd.categorical("job", default_value="z"))
    with pytest.raises(FeatureError, match="'z', which is not in the vocabulary that was learned"):
        wd.fit_schema(spec, make_rows(["a", "b"], ["c"]))


def test_identity_integers_that_became_more() -> None:
    rows = make_rows(["a", "b"], ["c"])
    new, old = (wd.fit_schema(make_spec(num_buckets=n), rows) for n in (9, 5))
    assert map_ids(new, old, "n").old_of_N.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1, -1, -1]
    assert map_ids(old, new, "n").is_identity


def test_buckets_with_other_ends_are_new() -> None:
    rows = make_rows(["a", "b"], ["c"])
    spec = make_spec()
    other = wd.FeatureSpec(features=[wd.bucketized("bucket", source="age", boundaries=[1, 2, 3])])
    found = map_ids(wd.fit_schema(other, rows), wd.fit_schema(spec, rows), "bucket")
    assert found.old_of_N.tolist() == [0, 1, 2, -1, -1, 4]


def test_buckets_of_a_vector_are_matched_in_each_component() -> None:
    def schema(boundaries: list[float], size: int = 2) -> Schema:
        feature = wd.bucketized("b", source="v", boundaries=boundaries, size=size)
        rows = [{"v": [0.5] * size}, {"v": None}, {"v": [2.5] + [None] * (size - 1)}]
        return wd.fit_schema(wd.FeatureSpec(features=feature), rows)

    old, new = schema([1, 2]), schema([1, 2, 3])
    # Of each component: below 1, 1 to 2, and then what was one bucket from 2 on
    assert map_ids(new, old, "b").old_of_N.tolist() == [0, 1, 2, 3, -1, -1, 5, 6, -1, -1]
    assert map_ids(schema([1, 2], 3), old, "b").why == "vectors of 2 numbers became 3"
    assert [old.describe_id("b", i) for i in (4, 5)] == ["component 0: >= 2", "component 1: < 1"]


def test_growing_from_what_is_no_schema() -> None:
    with pytest.raises(ConfigError, match=r"grow: got str, expected a wd\.Schema"):
        wd.fit_schema(make_spec(), make_rows(["a"], ["b"]), grow="yesterday")  # type: ignore[arg-type]


def test_cut_points_of_a_number_are_matched_by_value() -> None:
    spec = wd.FeatureSpec(features=wd.numeric("age", embedding="piecewise", bins=9))
    schemas = [
        wd.fit_schema(spec, [{"age": age} for age in ages for _ in range(3)])
        for ages in ([1.0, 2.0, 4.0], [2.0, 3.0, 4.0, 8.0])
    ]
    assert map_ids(schemas[1], schemas[0], "age").old_of_N.tolist() == [0, 1, 3, -1, 4, -1]
    plain = wd.fit_schema(wd.FeatureSpec(features=wd.numeric("age")), [{"age": 1.0}])
    found = map_ids(schemas[0], plain, "age")
    assert (found.matched, found.why) == (0, "embedding None became 'piecewise'")
