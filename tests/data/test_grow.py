"""A schema grown day by day equals a fit on all days: values and counts, whatever the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from widedeep.data import extend_schema as growing
from widedeep.errors import SchemaError
from widedeep.schema import Vocabulary

ROW = st.tuples(
    st.sampled_from(["a", "b", "c", "d", "", "é", None]),
    st.sampled_from([1, 2, 3, -5, None]),
    st.lists(st.sampled_from(["t", "u", "v", None]), max_size=3),
)
DAYS = st.lists(st.lists(ROW, min_size=1, max_size=10), min_size=2, max_size=4)
LIMITS = st.fixed_dictionaries(
    {"min_count": st.integers(1, 4), "max_size": st.sampled_from([None, 1, 2, 3])}
)


def table(day: list[tuple[Any, ...]]) -> pa.Table:
    return pa.table(
        {
            "text": pa.array([row[0] for row in day], pa.string()),
            "number": pa.array([row[1] for row in day], pa.int64()),
            "tags": pa.array([row[2] for row in day], pa.list_(pa.string())),
        }
    )


def spec_of(limits: dict[str, Any], crossed: dict[str, Any]) -> wd.FeatureSpec:
    return wd.FeatureSpec(
        features=[
            *wd.categorical("text", "number", "tags", **limits),
            *wd.categorical("hashed_unseen", source="text", oov_buckets=2, **limits),
            *wd.categorical("whole", source="text", table="shared", **limits),
            *wd.categorical("more", source="tags", table="shared", **limits),
            *wd.categorical("plain", source="text"),
            *wd.categorical("integer", source="number"),
            *wd.categorical("list", source="tags"),
            wd.crossed("plain", "integer", **crossed),
            wd.crossed("plain", "list", **crossed),
        ]
    )


def counted(schema: wd.Schema) -> dict[str, dict[str, int]]:
    """Each vocabulary's values with their counts; a cross's by what its parts stand for."""
    found = {}
    for key, vocabulary in schema.vocabularies.items():
        owner = next(
            f.name for f in schema.spec.all_features if schema.vocabulary_key(f.name) == key
        )
        first = schema.id_count(owner) - len(vocabulary)
        names = [schema.describe_id(owner, first + at) for at in range(len(vocabulary))]
        assert len(set(names)) == len(names)
        found[key] = dict(zip(names, np.asarray(vocabulary.counts).tolist(), strict=True))
    return found


@settings(max_examples=40, deadline=None)
@given(DAYS, LIMITS, LIMITS)
def test_day_by_day_equals_all_at_once(
    days: list[list[tuple[Any, ...]]], limits: dict[str, Any], crossed: dict[str, Any]
) -> None:
    spec = spec_of(limits, crossed)
    grown = None
    for day in days:
        before, grown = grown, wd.fit_schema(spec, table(day), threads=1, grow=grown)
        if before is not None:
            keep_their_order(before, grown)
    assert grown is not None
    whole = wd.fit_schema(spec, table([row for day in days for row in day]), threads=1)
    found, wanted = counted(grown), counted(whole)
    for key in list(wanted):
        if "_x_" in key:  # which of equally frequent combinations stay depends on their ids
            assert sorted(found[key].values()) == sorted(wanted[key].values())
            least = min(wanted[key].values(), default=0)
            for side in (found, wanted):
                side[key] = {name: count for name, count in side[key].items() if count > least}
    assert found == wanted
    for key, vocabulary in whole.vocabularies.items():
        assert grown.vocabularies[key].dropped == vocabulary.dropped, key
        assert rest(grown.vocabularies[key]) == rest(vocabulary), key


def rest(vocabulary: Vocabulary) -> list[int]:
    """The counts of what the limits left out, in order."""
    return [] if vocabulary.tail is None else np.asarray(vocabulary.tail.counts).tolist()


def keep_their_order(before: wd.Schema, grown: wd.Schema) -> None:
    for key, vocabulary in before.vocabularies.items():
        if isinstance(vocabulary.values, np.ndarray) and vocabulary.values.ndim == 2:
            continue  # in the ids of its parts
        old = [vocabulary.value(at) for at in range(len(vocabulary))]
        new = grown.vocabularies[key]
        now = [new.value(at) for at in range(len(new))]
        kept = [value for value in old if value in now]
        assert now[: len(kept)] == kept, key
    for cross in ("plain_x_integer", "plain_x_list"):
        names = [counted(schema)[cross] for schema in (before, grown)]
        kept = [value for value in names[0] if value in names[1]]
        assert list(names[1])[: len(kept)] == kept, cross


def test_through_files(tmp_path: Path) -> None:
    """The file holds what the limits left out, and a served model is the same without it."""
    spec = wd.FeatureSpec(features=wd.categorical("text", min_count=3))
    days = [["q"] * 5 + ["once", "twice", "twice"], ["q", "once", "twice"], ["once", "new"]]
    grown = None
    for number, day in enumerate(days):
        grown = wd.fit_schema(spec, pa.table({"text": day}), grow=grown)
        grown.save(tmp_path / f"{number}")
        loaded = wd.Schema.load(tmp_path / f"{number}")
        assert loaded == grown == grown.without_tails()
        grown = loaded
    assert counted(grown) == {"text": {"q": 6, "twice": 3, "once": 3}}
    tail = grown.vocabularies["text"].tail
    assert tail is not None
    assert [tail.value(0), int(tail.counts[0])] == ["new", 1]
    content = bytearray((tmp_path / "2").read_bytes())
    content[content.rindex(b"new")] ^= 1
    (tmp_path / "2").write_bytes(content)
    with pytest.raises(SchemaError, match="damaged"):
        wd.Schema.load(tmp_path / "2")


def test_a_bundle_holds_no_rare_values(tmp_path: Path) -> None:
    rows = [{"text": "q", "y": i % 2} for i in range(20)] + [{"text": "a@b.example", "y": 1}]
    spec = wd.FeatureSpec(label="y", features=wd.categorical("text", min_count=2))
    schema = wd.fit_schema(spec, rows)
    trainer = wd.Trainer(wd.WideDeep(schema, hidden_units=[2]), progress=False)
    bundle = trainer.export(tmp_path / "bundle")
    assert b"a@b.example" not in (tmp_path / "bundle/schema.safetensors").read_bytes()
    assert bundle.schema == schema
    grown = wd.fit_schema(spec, rows, grow=bundle.schema)
    assert any("keeps no counts of 1 values below its limits" in note for note in grown.notes)
    assert len(grown.vocabularies["text"]) == 1
    again = wd.fit_schema(spec, rows, grow=schema)
    assert counted(again)["text"] == {"q": 40, "a@b.example": 2}


def test_more_than_is_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "TAIL_VALUES", 3)
    spec = wd.FeatureSpec(features=wd.categorical("text", min_count=2))
    day = pa.table({"text": ["q", "q", *"abcdefg"]})
    schema = wd.fit_schema(spec, day)
    told = (
        "vocabulary 'text': of the 7 values that its limits leave out, the counts of 4 are not "
        "kept; grow= counts those from 0"
    )
    assert told in schema.notes
    grown = wd.fit_schema(spec, day, grow=schema)
    assert set(counted(grown)["text"]) == {"q", "a", "b", "c"}
    assert any("keeps no counts of 4 values" in note for note in grown.notes)
    monkeypatch.setattr(growing, "TAIL_BYTES", 2)
    cut = wd.fit_schema(spec, day).vocabularies["text"].tail
    assert cut is not None and len(cut) == 2 and cut.dropped == 5


def test_a_part_that_leaves_takes_its_combinations_to_unseen() -> None:
    spec = wd.FeatureSpec(
        features=[*wd.categorical("a", max_size=1), *wd.categorical("b"), wd.crossed("a", "b")]
    )
    one = pa.table({"a": ["x", "x", "y"], "b": ["1", "1", "1"]})
    two = pa.table({"a": ["y", "y", "y"], "b": ["1", "1", "1"]})
    grown = wd.fit_schema(spec, two, grow=wd.fit_schema(spec, one))
    assert counted(grown)["a"] == {"y": 4}
    # x left: what was counted of it is unseen by now, beside y's first row, which was unseen then.
    assert counted(grown)["a_x_b"] == {"a=<unseen> & b=1": 3, "a=y & b=1": 3}


def test_other_values_begin_anew_and_it_is_told() -> None:
    text = wd.fit_schema(wd.FeatureSpec(features=wd.categorical("a")), pa.table({"a": ["1", "2"]}))
    grown = wd.fit_schema(
        wd.FeatureSpec(features=wd.categorical("a")), pa.table({"a": [3, 4]}), grow=text
    )
    assert counted(grown)["a"] == {"3": 1, "4": 1}
    told = "vocabulary 'a': its values were text and are integers; it begins anew"
    assert told in grown.notes


def test_a_given_vocabulary_keeps_its_values() -> None:
    given = wd.FeatureSpec(features=wd.categorical("a", vocabulary=["z", "y", "x"]))
    learned = wd.FeatureSpec(features=wd.categorical("a"))
    day = pa.table({"a": ["w", "y", "w"]})
    grown = wd.fit_schema(learned, day, grow=wd.fit_schema(given, day))
    assert counted(grown)["a"] == {"z": 0, "y": 1, "x": 0, "w": 2}


def test_classes_keep_their_places() -> None:
    spec = wd.FeatureSpec(label="y", features=wd.categorical("a"))
    one = wd.fit_schema(spec, pa.table({"a": ["1"] * 3, "y": ["low", "mid", "top"]}))
    grown = wd.fit_schema(spec, pa.table({"a": ["1"] * 3, "y": ["all", "mid", "top"]}), grow=one)
    assert list(grown.classes.values()) == [("low", "mid", "top", "all")]
    assert any("no row has 'low'" in note and "keeps its place" in note for note in grown.notes)
    given = wd.FeatureSpec(
        label="y", features=wd.categorical("a"), label_vocabulary=["top", "mid", "all"]
    )
    again = wd.fit_schema(given, pa.table({"a": ["1"] * 2, "y": ["all", "mid"]}), grow=one)
    assert list(again.classes.values()) == [("top", "mid", "all")]
