"""Schema: ids and what they stand for, the file, the fingerprint, the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from widedeep import schema as schema_module
from widedeep.data.transform import Transform
from widedeep.errors import DataError, SchemaError, WideDeepError
from widedeep.features import FeatureSpec, bucketized, categorical, crossed, numeric
from widedeep.features.learned import text_buffers
from widedeep.files import map_tensors, read_metadata, write_tensors
from widedeep.kernels import TransformPlan, integer_index, text_index
from widedeep.schema import ColumnType, NumericFit, Schema, Vocabulary

SPEC = FeatureSpec(
    label="y",
    features=[
        numeric("age", missing="indicator"),
        numeric("position", size=2, transform="none"),
        bucketized("age_bucket", source="age", boundaries=[18, 30.5]),
        categorical("job", oov_buckets=2, table="jobs"),
        categorical("past_jobs", oov_buckets=2, table="jobs", combiner=None),
        categorical("size", embedding_dim=4),
        categorical("town", hash_buckets=10),
        categorical("day", num_buckets=7),
        crossed("job", "age_bucket"),
        crossed("town", "raw"),
        crossed("town", "day", hash_buckets=50, name="hashed"),
    ],
    wide=["age", "age_bucket", "job", "town", "day", "job_x_age_bucket", "town_x_raw", "hashed"],
)


def text(*values: str) -> pa.LargeBinaryArray:
    return pa.array([value.encode() for value in values], pa.large_binary())


def ints(*values: Any) -> Any:
    return np.array(values, np.int64)


def number_fit(size: int = 1, cuts: tuple[float, ...] | None = None, **changes: Any) -> NumericFit:
    fit = NumericFit(
        boundaries=() if cuts is None else tuple(np.array(cuts, np.float64) for _ in range(size)),
        shift=np.zeros(size),
        scale=np.ones(size),
        fill=np.full(size, 0.25, np.float32),
        minimum=np.full(size, 17.0),
        maximum=np.full(size, 90.0),
        mean=np.full(size, 38.5),
    )
    return replace(fit, **changes)


def make_schema(**changes: Any) -> Schema:
    parts: dict[str, Any] = {
        "spec": SPEC,
        "columns": {
            "age": ColumnType(kind="int"),
            "position": ColumnType(kind="float", nested=True),
            "job": ColumnType(kind="string"),
            "past_jobs": ColumnType(kind="string", nested=True),
            "size": ColumnType(kind="int"),
            "town": ColumnType(kind="string"),
            "day": ColumnType(kind="int"),
            "raw": ColumnType(kind="string"),
            "y": ColumnType(kind="string"),
        },
        "vocabularies": {
            "jobs": Vocabulary(values=text("Sales", "", "né"), counts=ints(9, 5, 5), dropped=4),
            "size": Vocabulary(values=ints(3, -1), counts=ints(2, 1)),
            "raw": Vocabulary(values=text("r0", "r1"), counts=ints(2, 1)),
            "job_x_age_bucket": Vocabulary(values=ints([4, 2], [0, 4]), counts=ints(3, 1)),
            "town_x_raw": Vocabulary(values=ints([11, 3]), counts=ints(1)),
        },
        "boundaries": {"age_bucket": np.array([18, 30.5])},
        "numerics": {"age": number_fit(cuts=(20, 30, 40)), "position": number_fit(2)},
        "classes": {"": ("no", "yes")},
        "rows": 10,
        "missing": {"age": 0.25, "job": 0.0},
        "label_means": {},
        "quantile_rows": 10,
        "notes": ("column 'raw': one value in every row",),
    }
    return Schema(**{**parts, **changes})


def test_every_feature_counts_its_ids() -> None:
    schema = make_schema()
    counts = {
        "age": 4,
        "position": 4,
        "age_bucket": 5,
        "job": 7,
        "past_jobs": 7,
        "size": 4,
        "town": 12,
        "day": 9,
        "raw": 4,
        "job_x_age_bucket": 4,
        "town_x_raw": 3,
        "hashed": 52,
    }
    assert {name: schema.id_count(name) for name in counts} == counts
    with pytest.raises(
        SchemaError, match=r"got 'sizes', which is no feature .* did you mean 'size'"
    ):
        schema.id_count("sizes")


def test_slots_are_the_placed_features_in_order() -> None:
    slots = {slot.name: slot for slot in make_schema().slots}
    assert list(slots) == [
        *("age", "age_bucket", "job", "past_jobs", "size", "town", "day"),
        *("job_x_age_bucket", "town_x_raw", "hashed"),
    ]
    assert (slots["age"].kind, slots["age"].wide, slots["age"].deep) == ("numeric", True, False)
    assert (slots["past_jobs"].table, slots["past_jobs"].combiner) == ("jobs", None)
    assert (slots["past_jobs"].wide, slots["past_jobs"].deep) == (False, True)
    assert (slots["size"].embedding_dim, slots["job"].embedding_dim) == (4, None)
    assert slots["hashed"].size == 52


def test_the_dense_layout_gives_an_indicator_two_columns() -> None:
    schema = make_schema()
    assert schema.dense_layout == {"age": slice(0, 2), "position": slice(2, 4)}
    assert schema.n_dense == 4


@pytest.mark.parametrize(
    "name, id_, meaning",
    [
        ("job", 0, "<unseen>"),
        ("job", 1, "<missing>"),
        ("job", 3, "<unseen, bucket 1>"),
        ("job", 4, "Sales"),
        ("past_jobs", 6, "né"),
        ("size", 3, "-1"),
        ("town", 11, "<hash bucket 9>"),
        ("day", 8, "6"),
        ("raw", 3, "r1"),
        ("age_bucket", 2, "< 18"),
        ("age_bucket", 3, "[18, 30.5)"),
        ("age_bucket", 4, ">= 30.5"),
        ("age", 2, "age"),
        ("position", 3, "component 1"),
        ("job_x_age_bucket", 2, "job=Sales & age_bucket=< 18"),
        ("job_x_age_bucket", 3, "job=<unseen> & age_bucket=>= 30.5"),
        ("town_x_raw", 2, "town=<hash bucket 9> & raw=r1"),
        ("hashed", 2, "<hash bucket 0>"),
    ],
)
def test_an_id_is_described(name: str, id_: int, meaning: str) -> None:
    assert make_schema().describe_id(name, id_) == meaning


@pytest.mark.parametrize("id_", [-1, 7])
def test_an_id_outside_its_feature_is_refused(id_: int) -> None:
    with pytest.raises(SchemaError, match=f"feature 'job': got id {id_}, expected 0 <= id < 7"):
        make_schema().describe_id("job", id_)


def test_buckets_without_a_boundary_have_one_id() -> None:
    schema = make_schema(boundaries={"age_bucket": np.empty(0)})
    assert schema.id_count("age_bucket") == 3
    assert schema.describe_id("age_bucket", 2) == "any number"


def test_a_saved_schema_is_read_back_whole(tmp_path: Path) -> None:
    schema = make_schema()
    schema.save(tmp_path / "s.safetensors")
    again = Schema.load(tmp_path / "s.safetensors")
    assert again == schema and hash(again) == hash(schema)
    assert again.spec == schema.spec and again.columns == schema.columns
    for fact in ("classes", "rows", "missing", "label_means", "quantile_rows", "notes"):
        assert getattr(again, fact) == getattr(schema, fact)
    for key, vocabulary in schema.vocabularies.items():
        loaded = again.vocabularies[key]
        assert loaded.counts.tolist() == vocabulary.counts.tolist()
        assert loaded.dropped == vocabulary.dropped
        assert [loaded.value(i) for i in range(len(loaded))] == [
            vocabulary.value(i) for i in range(len(vocabulary))
        ]
    for name, fit in schema.numerics.items():
        loaded_fit = again.numerics[name]
        assert [cuts.tolist() for cuts in loaded_fit.boundaries] == [
            cuts.tolist() for cuts in fit.boundaries
        ]
        for part in ("shift", "scale", "fill", "minimum", "maximum", "mean"):
            assert getattr(loaded_fit, part).tolist() == getattr(fit, part).tolist()
    assert repr(again) == repr(schema)


def test_a_schema_that_cannot_be_saved_says_why(tmp_path: Path) -> None:
    place = tmp_path / "absent" / "schema.safetensors"
    with pytest.raises(SchemaError, match=r"absent.*cannot write the schema \(No such file"):
        make_schema().save(place)


def test_a_schema_may_be_saved_over_the_file_it_is_mapped_from(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    make_schema().save(path)
    loaded = Schema.load(path)
    loaded.save(path)
    assert Schema.load(path) == loaded == make_schema()


LONG = ["x" * 254, "x" * 255, "y" * 300]
WORDS = ["", "a", "né", "exactly8", "ninechars", "seventeen letters", *LONG]
SPARSE = [5, -(2**63), 2**63 - 1, 0, 77_777_777_777]
DENSE = [7, 3, 12, 0, -4]


@pytest.mark.parametrize("values", [WORDS, SPARSE, DENSE, [], [11]])
def test_a_mapped_index_finds_what_one_in_memory_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any]
) -> None:
    monkeypatch.setattr(schema_module, "INDEXED_VALUES", 0)
    is_text = bool(values) and isinstance(values[0], str)
    learned = text(*values) if is_text else ints(*values)
    schema = Schema(
        spec=FeatureSpec(features=categorical("v")),
        columns={"v": ColumnType(kind="string" if is_text else "int")},
        vocabularies={"v": Vocabulary(values=learned, counts=np.ones(len(values), np.int64))},
        boundaries={},
        numerics={},
    )
    path = tmp_path / "s.safetensors"
    schema.save(path)
    mapped = Schema.load(path)
    assert mapped == schema
    index = mapped.vocabularies["v"].index
    assert index is not None and not (values and index.flags.writeable)
    other = ["x" * 256, "z", "exactly9", "seventeen lettert"] if is_text else [6, -1, 2**62, 901]
    rows = pa.table({"v": pa.array([*values, *other, None])})
    ids = Transform(mapped)(rows).ids_N
    assert ids.tolist() == [*range(2, 2 + len(values)), *([0] * len(other)), 1]
    assert ids.tolist() == Transform(schema)(rows).ids_N.tolist()
    mapped.save(tmp_path / "again.safetensors")  # the mapped index is written as it is
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_an_index_of_another_vocabulary_is_refused() -> None:
    plan = TransformPlan()
    offsets, data = text_buffers(text("aaaaaaaaaaaa", "b"))
    index = text_index(offsets, data)
    assert plan.add_text_vocabulary(offsets, data, index) == 0
    fewer = text_buffers(text("aaaaaaaaaa", "b"))
    for arrays in (fewer, text_buffers(text("aaaaaaaaaaaa")), text_buffers(text("a", "b", "c"))):
        with pytest.raises(ValueError, match="an index that is not of its vocabulary"):
            plan.add_text_vocabulary(*arrays, index)
    slots, positions = integer_index(ints(*SPARSE)), integer_index(ints(*DENSE))
    assert (slots.ndim, positions.ndim) == (2, 1)
    with pytest.raises(ValueError, match="an index that is not of its vocabulary"):
        plan.add_integer_vocabulary(ints(*DENSE), slots)
    wrong = np.where(positions >= 0, positions + 1, positions).astype(np.int32)
    with pytest.raises(ValueError, match="an index that is not of its vocabulary"):
        plan.add_integer_vocabulary(ints(*DENSE), None, wrong)


def test_an_empty_vocabulary_is_saved(tmp_path: Path) -> None:
    vocabularies = dict(make_schema().vocabularies)
    vocabularies["raw"] = Vocabulary(values=text(), counts=ints())
    vocabularies["town_x_raw"] = Vocabulary(values=np.empty((0, 2), np.int64), counts=ints())
    schema = make_schema(vocabularies=vocabularies)
    schema.save(tmp_path / "s")
    assert Schema.load(tmp_path / "s") == schema
    assert Schema.load(tmp_path / "s").id_count("town_x_raw") == 2


def test_a_sliced_vocabulary_equals_a_compact_one() -> None:
    whole = text("a", "Sales", "", "né", "z")
    vocabularies = dict(make_schema().vocabularies)
    vocabularies["jobs"] = Vocabulary(values=whole[1:4], counts=ints(9, 5, 5), dropped=4)
    assert make_schema(vocabularies=vocabularies) == make_schema()


def with_vocabulary(key: str, values: Any) -> Schema:
    vocabularies = dict(make_schema().vocabularies)
    vocabularies[key] = replace(vocabularies[key], values=values)
    return make_schema(vocabularies=vocabularies)


def with_number(**changes: Any) -> Schema:
    return make_schema(
        numerics={"age": number_fit(cuts=(20, 30, 40), **changes), "position": number_fit(2)}
    )


NEXT = np.nextafter


@pytest.mark.parametrize(
    "change",
    [
        lambda: with_vocabulary("jobs", text("sales", "", "né")),
        lambda: with_vocabulary("jobs", text("Sale", "s", "né")),
        lambda: with_vocabulary("jobs", text("", "Sales", "né")),
        lambda: with_vocabulary("size", ints(3, -2)),
        lambda: with_vocabulary("job_x_age_bucket", ints([4, 2], [0, 3])),
        lambda: make_schema(boundaries={"age_bucket": np.array([18, NEXT(30.5, 31)])}),
        lambda: with_number(boundaries=(np.array([20, 30, NEXT(40.0, 41)]),)),
        lambda: with_number(shift=np.array([NEXT(0.0, 1)])),
        lambda: with_number(scale=np.array([NEXT(1.0, 2)])),
        lambda: with_number(fill=np.array([0.5], np.float32)),
        lambda: make_schema(classes={"": ("yes", "no")}),
        lambda: make_schema(columns={**make_schema().columns, "age": ColumnType(kind="float")}),
        lambda: make_schema(
            columns={**make_schema().columns, "job": ColumnType(kind="string", nested=True)}
        ),
        lambda: make_schema(spec=SPEC.replace(item=["job"])),
        lambda: make_schema(spec=SPEC.replace(deep=["age", "job"])),
        lambda: make_schema(spec=SPEC.replace(training_only={"day": 1})),
        lambda: make_schema(
            spec=SPEC.replace(
                features=[
                    replace(f, oov="drop") if f.name == "size" else f  # type: ignore[call-arg]
                    for f in SPEC.all_features
                ]
            )
        ),
    ],
)
def test_whatever_changes_ids_or_numbers_changes_the_fingerprint(
    change: Callable[[], Schema],
) -> None:
    changed = change()
    assert changed.fingerprint != make_schema().fingerprint
    assert changed != make_schema()


def test_counts_and_notes_leave_the_fingerprint(tmp_path: Path) -> None:
    vocabularies = dict(make_schema().vocabularies)
    vocabularies["size"] = replace(vocabularies["size"], counts=ints(7, 7), dropped=1)
    changed = make_schema(vocabularies=vocabularies, rows=99, notes=(), missing={"age": 0.5})
    assert changed.fingerprint == make_schema().fingerprint


@pytest.mark.parametrize("indexed_values", [1, pytest.param(1 << 18, marks=pytest.mark.slow)])
def test_any_flipped_byte_is_an_error_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexed_values: int
) -> None:
    monkeypatch.setattr(schema_module, "INDEXED_VALUES", indexed_values)
    path = tmp_path / "s.safetensors"
    schema = make_schema()
    schema.save(path)
    good = path.read_bytes()
    table = repr(schema)
    # Every byte of the text and tensors, and some of the long runs of padding between them.
    positions = [i for i, byte in enumerate(good) if byte not in (0, 32) or i % 97 == 0]
    harmless = 0
    for position in positions:
        flipped = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        path.write_bytes(flipped)
        try:
            loaded = Schema.load(path)
        except WideDeepError as error:
            assert str(path) in str(error)
        else:
            harmless += 1
            assert repr(loaded) == table
            assert loaded.label_means == schema.label_means
    assert harmless < len(positions) / 10


def test_a_file_without_a_schema_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", {"a": np.zeros(1)})
    with pytest.raises(SchemaError, match="got a safetensors file that holds no schema"):
        Schema.load(tmp_path / "t")


def test_a_truncated_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    make_schema().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="the file is incomplete"):
        Schema.load(path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    make_schema().save(path)
    metadata = read_metadata(path)
    metadata["schema"] = metadata["schema"].replace('"format": 1', '"format": 3')
    write_tensors(path, map_tensors(path), metadata)
    with pytest.raises(
        SchemaError, match="got schema format 3, expected 1 to 2; fit the schema again"
    ):
        Schema.load(path)


def test_a_column_without_a_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schema.safetensors"
    make_schema().save(path)
    metadata = read_metadata(path)
    facts = json.loads(metadata["schema"])
    column = next(iter(facts["columns"]))
    del facts["columns"][column]
    tensors = {name: np.array(tensor) for name, tensor in map_tensors(path).items()}
    write_tensors(path, tensors, {**metadata, "schema": json.dumps(facts)})
    with pytest.raises(SchemaError, match=f"column '{column}': got no type"):
        Schema.load(path)


def test_the_table_reads_well() -> None:
    lines = repr(make_schema()).splitlines()
    assert lines[0].startswith("Schema of 11 features, fitted on 10 rows (quantiles exact), finger")
    assert lines[1].split() == ["feature", "kind", "size", "missing", "placement"]
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in lines[2:13]}
    assert rows["age"] == "age numeric, quantile 2 25.0% wide + deep"
    assert rows["size"] == "size categorical 4 0.0% deep"
    assert rows["hashed"] == "hashed crossed, hashed 52 wide"
    assert lines[13] == "label: y (2 classes)"
    assert lines[14] == "note: column 'raw': one value in every row"


def test_the_table_says_what_the_quantiles_are_exact_on() -> None:
    table = repr(make_schema(rows=3_000_000, quantile_rows=262_144))
    assert "fitted on 3,000,000 rows (quantiles exact on a sample of 262,144 rows)" in table
