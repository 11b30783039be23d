"""Packed examples come back as they were, from wherever they lie; damaged bytes are refused."""

from __future__ import annotations

from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import widedeep as wd
from widedeep.data.batch import Batch
from widedeep.data.packed import PackedExamples
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import DataError, RowError

SIZES = (3, 255, 256, 60_000, 65_535, 70_000, 1 << 24, 1 << 31, 1 << 40)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, list[int]]:
    """A batch and the sizes of its slots; ids at either end of a slot's range are likely."""
    rows, slots = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    sizes = [draw(st.sampled_from(SIZES)) for _ in range(slots)]
    single = draw(st.booleans())
    lengths, ids = [], []
    for _ in range(rows):
        for size in sizes:
            id_ = st.sampled_from([0, 1, size - 1]) | st.integers(0, size - 1)
            cell = draw(st.lists(id_, min_size=int(single), max_size=1 if single else 3))
            lengths.append(len(cell))
            ids += cell
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    floats = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    batch = Batch(
        ids_N=np.array(ids, np.int64),
        offsets_BF=np.cumsum([0, *lengths]).astype(np.int64),
        dense_BK=floats(rows, draw(st.integers(0, 3))),
        values_N=floats(len(ids)) if draw(st.booleans()) else None,
        labels_BL=floats(rows, 2) if draw(st.booleans()) else None,
        weight_B=floats(rows) if draw(st.booleans()) else None,
        group_B=rng.integers(-(2**63), 2**63 - 1, rows) if draw(st.booleans()) else None,
    )
    return batch, sizes if rows else []


def assert_same(one: Batch, two: Batch) -> None:
    for name in (
        *("ids_N", "offsets_BF", "dense_BK", "values_N"),
        *("labels_BL", "weight_B", "group_B"),
    ):
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


@given(batches(), st.booleans(), st.randoms())
def test_examples_come_back_in_any_order(
    made: tuple[Batch, list[int]], with_sizes: bool, random: Random
) -> None:
    batch, sizes = made
    packed = PackedExamples.pack(batch, sizes if with_sizes else None)
    assert_same(packed.unpack(), batch)
    if len(batch):
        rows = np.array([random.randrange(len(batch)) for _ in range(7)])
        both = PackedExamples.concat([packed.take(rows), packed.slice(1, 3)])
        expected = Batch.concat([batch.take(rows), batch.slice(1, 3)])
        assert_same(both.unpack(), expected)


@given(batches(), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4))
def test_damaged_bytes_are_refused_or_read_within_their_example(
    made: tuple[Batch, list[int]], place: int, wrong: bytes
) -> None:
    batch, sizes = made
    packed = PackedExamples.pack(batch, sizes)
    (owner,) = packed.owners
    place %= max(len(owner), 1)
    owner[place : place + len(wrong)] = np.frombuffer(wrong, np.uint8)[: len(owner) - place]
    try:
        assert len(packed.unpack()) == len(batch)
    except DataError as error:
        assert "delete their folder" in str(error)


def test_an_id_that_its_slot_cannot_have_is_refused() -> None:
    batch = Batch(np.array([5, 255]), np.array([0, 1, 2]), np.zeros((2, 0), np.float32))
    with pytest.raises(RowError, match=r"slot 0 .*got id 255, expected 0 <= id < 10") as caught:
        PackedExamples.pack(batch, [10])
    assert caught.value.row == 1
    assert PackedExamples.pack(batch, [300]).unpack().ids_N.tolist() == [5, 255]


ROWS = st.fixed_dictionaries(
    {
        "job": st.sampled_from(["a", "b", "c", None]),
        "size": st.integers(0, 300),
        "tags": st.none() | st.lists(st.sampled_from("xyz"), max_size=3),
        "age": st.none() | st.floats(-10, 10),
        "click": st.integers(0, 1),
        "worth": st.floats(0, 5),
    }
)


@settings(max_examples=25)
@given(st.lists(ROWS, max_size=12), st.booleans(), st.integers(1, 3), st.integers(1, 700))
def test_a_transform_packs_what_it_encodes(
    rows: list[dict[str, object]], has_lists: bool, threads: int, repeats: int
) -> None:
    texts = ["job", "size", *(["tags"] if has_lists else [])]
    features = [*wd.numeric("age"), *wd.categorical(*texts), wd.crossed("job", "size")]
    spec = wd.FeatureSpec(label="click", weight="worth", features=features)
    some = {"job": "a", "size": 1, "tags": ["x"], "age": 1.0, "click": 1, "worth": 1.0}
    table = pa.Table.from_pylist([some, *rows])
    transform = Transform(wd.fit_schema(spec, table), threads=threads)
    sizes = [slot.size for slot in transform.schema.slots]
    examples = pa.concat_tables([table.slice(1)] * repeats).combine_chunks()
    packed = transform.pack(examples, sizes)
    batch = transform(examples)
    assert_same(packed.unpack(), batch)
    assert [packed.layout.n_slots, packed.layout.n_labels] == [len(sizes), 1]
    known = np.diff(batch.offsets_BF).all() and (batch.ids_N > 255).any()
    if known and not has_lists:
        with pytest.raises(RowError, match=r"got id .* expected 0 <= id < 10"):
            transform.pack(examples, [10] * len(sizes))


def test_a_reader_names_the_row_whose_id_its_slot_cannot_have() -> None:
    with open_source(pa.table({"id": [1, 2, 300, 3]})) as source:
        plan = EpochPlan(source, batch_size=2, seed=0, epoch=0, shuffle=True, pool_rows=4)

        def encode(table: pa.Table) -> PackedExamples:
            ids = table["id"].to_numpy()
            batch = Batch(ids, np.arange(len(ids) + 1), np.zeros((len(ids), 0), np.float32))
            return PackedExamples.pack(batch, [200])

        with pytest.raises(RowError, match=r"row 2 of .*got id 300, expected 0 <= id < 200"):
            list(BatchReader(source, encode, plan))
