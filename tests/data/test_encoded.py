"""Encoded rows come back as the transform made them, and are made again when anything changed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.data import encoded as encoded_module
from widedeep.data.batch import Batch
from widedeep.data.encoded import EncodedRows, encoded_rows
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import open_source, split_rows
from widedeep.data.transform import Transform
from widedeep.errors import DataError, FeatureError

ARRAYS = (
    *("ids_N", "offsets_BF", "dense_BK", "values_N"),
    *("labels_BL", "weight_B", "group_B"),
)


def table(rows: int = 100, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, rows)
    return pa.table(
        {
            "age": pa.array(np.where(rng.random(rows) < 0.2, np.nan, rng.random(rows))),
            "job": pa.array(
                [None if rng.random() < 0.2 else f"j{rng.integers(9)}" for _ in lengths]
            ),
            "tags": pa.array([[f"t{i}" for i in range(n)] for n in lengths]),
            "shares": pa.array([[0.5 + i for i in range(n)] for n in lengths]),
            "importance": pa.array(rng.random(rows).astype(np.float32)),
            "user": pa.array(rng.integers(0, 9, rows)),
            "click": pa.array(rng.integers(0, 2, rows)),
            "stay": pa.array(rng.random(rows)),
        }
    )


SPECS: dict[str, dict[str, Any]] = {
    "one label": {
        "label": "click",
        "features": [*wd.numeric("age"), *wd.categorical("job", "tags"), wd.crossed("job", "tags")],
    },
    "weights, groups, two labels": {
        "label": {"click": "click", "stay": "stay"},
        "weight": "importance",
        "group": "user",
        "features": [wd.categorical("tags", weights="shares"), *wd.numeric("age")],
    },
    "no numbers": {"label": "click", "features": wd.categorical("job")},
    "numbers alone": {"label": "click", "features": wd.numeric("age")},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(table(), path, row_group_size=30)
    return path


def transform_of(name: str, path: Path) -> Transform:
    options = dict(SPECS[name])
    return Transform(wd.fit_schema(wd.FeatureSpec(**options), path))


def assert_same(one: Batch, two: Batch) -> None:
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(two, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def batches(path: Path, transform: Transform, cache: Path | None, **plan: Any) -> list[Batch]:
    with open_source(path, columns=transform.columns()) as source:
        read = None if cache is None else encoded_rows(cache, transform, source)[0].read
        order = EpochPlan(source, batch_size=16, seed=3, epoch=1, pool_rows=60, **plan)
        return list(BatchReader(source, transform, order, encoded=read, start_batch=2))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_those_of_the_raw_rows(
    path: Path, tmp_path: Path, spec: str, shuffle: bool
) -> None:
    transform = transform_of(spec, path)
    raw = batches(path, transform, None, shuffle=shuffle)
    assert len(raw) == 5
    for _ in range(2):  # written, then found
        kept = batches(path, transform, tmp_path / "encoded", shuffle=shuffle)
        for one, two in zip(raw, kept, strict=True):
            assert_same(one, two)


def test_what_is_read_may_be_written_to_without_changing_the_file(
    path: Path, tmp_path: Path
) -> None:
    transform = transform_of("one label", path)
    with open_source(path) as source:
        rows, _ = encoded_rows(tmp_path / "encoded", transform, source)
        before = rows.read(source.fragments[1]).unpack()
        scratch = rows.read(source.fragments[1]).unpack()
        for name in ARRAYS:
            if getattr(scratch, name) is not None:
                getattr(scratch, name)[...] = 0
        assert_same(rows.read(source.fragments[1]).unpack(), before)
        assert before.ids_N.max() > 0


def made(path: Sequence[Path] | Path, transform: Transform, cache: Path) -> bool:
    with open_source(path) as source:
        return encoded_rows(cache, transform, source)[1]


def test_rows_are_encoded_again_when_what_they_come_from_changed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, transform = tmp_path / "encoded", transform_of("one label", path)
    assert made(path, transform, cache)
    assert not made(path, transform, cache)
    assert not made(path, transform_of("one label", path), cache)
    other = transform_of("no numbers", path)
    assert made(path, other, cache)
    assert made(path, transform, cache)
    # The same bytes at another time: as many rows may stand there, but others.
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert made(path, transform, cache)
    second = tmp_path / "more.parquet"
    pq.write_table(table(20, 5), second)
    assert made([path, second], transform, cache)
    assert not made([path, second], transform, cache)
    monkeypatch.setattr(encoded_module, "__version__", "99")
    assert made([path, second], transform, cache)
    with open_source(split_rows(str(path), 0.5)[0]) as source:
        assert encoded_rows(cache, transform, source)[1]
    with open_source(split_rows(str(path), 0.5)[1]) as source:
        rows, new = encoded_rows(cache, transform, source)
        assert new
        assert len(rows.read(source.fragments[0])) == source.fragments[0].num_rows


@pytest.mark.parametrize("damage", ["a shorter file", "no file", "no key", "half a key"])
def test_a_folder_that_is_not_whole_is_written_again(
    path: Path, tmp_path: Path, damage: str
) -> None:
    cache, transform = tmp_path / "encoded", transform_of("one label", path)
    assert made(path, transform, cache)
    file, key = cache / "rows-000001.bin", cache / "key.json"
    if damage == "a shorter file":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "no file":
        file.unlink()
    elif damage == "no key":
        key.unlink()
    else:
        key.write_text(json.dumps({"key": None}))
    assert made(path, transform, cache)
    assert not made(path, transform, cache)


def test_a_file_damaged_meanwhile_is_named(path: Path, tmp_path: Path) -> None:
    transform = transform_of("one label", path)
    with open_source(path) as source:
        rows = EncodedRows.write(tmp_path / "encoded", transform, source)
        assert rows.nbytes == sum(f.stat().st_size for f in rows.path.glob("*.bin"))
        file = rows.path / "rows-000000.bin"
        file.write_bytes(b"?" * file.stat().st_size)
        with pytest.raises(DataError, match=r"rows-000000\.bin: cannot .* delete the folder"):
            rows.read(source.fragments[0])
        file.write_bytes(b"")
        with pytest.raises(DataError, match=r"rows-000000\.bin: .*it holds 0 bytes, expected"):
            rows.read(source.fragments[0])


def test_a_bad_row_leaves_the_folder_as_it_was(path: Path, tmp_path: Path) -> None:
    cache, transform = tmp_path / "encoded", transform_of("one label", path)
    assert made(path, transform, cache)
    before = (cache / "key.json").read_text()
    bad = tmp_path / "bad.parquet"
    pq.write_table(table(5).set_column(6, "click", pa.array([1, 0, 1, 0, None])), bad)
    with pytest.raises(FeatureError, match=r"row 4 of .*bad\.parquet"):
        made([path, bad], transform, cache)
    assert (cache / "key.json").read_text() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "bad.parquet",
        "encoded",
        "rows.parquet",
    ]


def test_data_in_memory_is_refused(tmp_path: Path) -> None:
    spec = wd.FeatureSpec(**SPECS["one label"])
    transform = Transform(wd.fit_schema(spec, table()))
    with (
        open_source(table()) as source,
        pytest.raises(DataError, match="got data in memory, expected files"),
    ):
        encoded_rows(tmp_path / "encoded", transform, source)


def test_a_folder_that_cannot_be_written_is_named(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/encoded: the encoded rows cannot be written"):
        made(path, transform_of("one label", path), tmp_path / "file" / "encoded")


def test_labels_in_another_order_are_encoded_anew(tmp_path: Path) -> None:
    """Two heads declared the other way round have the same fingerprint, and swapped columns."""
    rows = pa.table({"a": ["x", "y"] * 4, "p": [0, 1] * 4, "q": [5.0, 7.0] * 4})
    pq.write_table(rows, tmp_path / "rows.parquet")
    columns = {}
    for order in ({"one": "p", "two": "q"}, {"two": "q", "one": "p"}):
        schema = wd.fit_schema(wd.FeatureSpec(label=order, features=wd.categorical("a")), rows)
        transform = Transform(schema)
        with open_source(str(tmp_path / "rows.parquet"), columns=transform.columns()) as source:
            found, made = encoded_rows(tmp_path / "encoded", transform, source)
            (batch,) = [found.read(fragment).unpack() for fragment in source.fragments]
        assert made
        assert batch.labels_BL is not None
        columns[tuple(order)] = batch.labels_BL[:, list(order).index("two")].tolist()
    assert columns["one", "two"] == columns["two", "one"] == [5.0, 7.0] * 4
    schemas = [
        wd.fit_schema(wd.FeatureSpec(label=order, features=wd.categorical("a")), rows)
        for order in ({"one": "p", "two": "q"}, {"two": "q", "one": "p"})
    ]
    assert schemas[0] != schemas[1]
