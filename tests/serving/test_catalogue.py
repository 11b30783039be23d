"""A table of items: read from anything, looked up by id, named by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.serving.versions import publish
from widedeep.errors import DataError
from widedeep.serving.impression_rows import UserIds
from widedeep.serving.native_rows import log_shape

TABLE = pa.table({"app": ["maps", "mail", "игра"], "price": [0.0, 2.5, None]})


def test_files_frames_and_tables_are_one_catalogue(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "items.parquet", row_group_size=2)
    inputs: dict[str, Any] = {
        "table": TABLE,
        "path": tmp_path / "items.parquet",
        "text": str(tmp_path / "items.parquet"),
        "pandas": TABLE.to_pandas(),
        "columns": TABLE.to_pydict(),
    }
    for kind, items in inputs.items():
        read = wd.Catalogue.read(items, id_column="app")
        assert (read.ids, len(read)) == (["maps", "mail", "игра"], 3), kind
        assert read.positions(["игра", "maps", "?", "игра"]).tolist() == [2, 0, -1, 2]


def test_the_version_is_that_of_the_content() -> None:
    def version(table: pa.Table) -> str:
        return wd.Catalogue.read(table, id_column="app").version

    assert version(TABLE) == version(pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]))
    other = TABLE.set_column(1, "price", pa.array([0.0, 2.5, 0.0]))
    assert version(other) != version(TABLE)
    assert version(TABLE.slice(0, 2)) != version(TABLE)
    assert wd.Catalogue.read(TABLE, id_column="app", version="v7").version == "v7"


def test_integers_and_their_texts_find_each_other() -> None:
    numbers = wd.Catalogue.read({"app": [7, -9]}, id_column="app")
    assert numbers.positions([7, "7", "-9", "07", "--9", 8, True, 7.5]).tolist() == [
        *(0, 0, 1, -1, -1, -1, -1, -1)
    ]
    texts = wd.Catalogue.read({"app": ["7", "07"]}, id_column="app")
    assert texts.positions([7, "07", None, ["7"]]).tolist() == [0, 1, -1, -1]


def test_ids_are_told_apart_whatever_they_are() -> None:
    rng = np.random.default_rng(0)
    texts = [f"{'x' * int(n)}{i}" for i, n in enumerate(rng.integers(0, 40, 500))]
    for ids in (texts, list(range(500)), rng.permutation(2**62 // np.arange(1, 501)).tolist()):
        catalogue = wd.Catalogue.read({"app": ids}, id_column="app")
        asked = rng.integers(500, size=900)
        found, all_found = catalogue.find([ids[i] for i in asked])
        assert (found.tolist(), all_found) == (asked.tolist(), True)
    assert catalogue.find([]) == (pytest.approx([]), True)
    lone = wd.Catalogue.read({"app": texts}, id_column="app").find(["\ud800", b"x", 1.5, texts[3]])
    assert (lone[0].tolist(), lone[1]) == ([-1, -1, -1, 3], False)


def test_integers_that_are_too_large_are_refused() -> None:
    with pytest.raises(DataError, match="give ids beyond 64 bits as text"):
        wd.Catalogue(pa.table({"app": pa.array([2**63], pa.uint64())}), id_column="app")


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (pa.chunked_array([], pa.string()), pa.string()),
        (pa.chunked_array([["maps"], ["mail"]], pa.string_view()), pa.string()),
        (pa.chunked_array([pa.array(["maps", "mail"]).dictionary_encode()]), pa.string()),
        (pa.chunked_array([pa.array([7, 9]).dictionary_encode()]), pa.int64()),
        (pa.chunked_array([pa.array([7, 9], pa.uint8())]), pa.int64()),
    ],
)
def test_ids_are_texts_or_integers_in_the_log_whatever_column_holds_them(
    ids: pa.ChunkedArray, kind: pa.DataType, tmp_path: Path
) -> None:
    items = pa.table({"app": ids, "price": pa.nulls(len(ids), pa.float64())})
    catalogue = wd.Catalogue(items, id_column="app")
    assert (catalogue.id_values.type, catalogue.ids) == (kind, ids.to_pylist())
    ranker = wd.Ranker(publish(tmp_path, "1", seed=1))
    assert log_shape(ranker, catalogue, "1", UserIds(column="user", key=None), None) is not None


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (["maps", None], "1 nulls, the first in row 1"),
        (["maps", "mail", "maps"], "'maps' more than once"),
        ([1.5, 2.0], "expected ids of text or integers"),
        ([["maps"]], "expected ids of text or integers"),
    ],
)
def test_ids_must_tell_items_apart(column: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        wd.Catalogue.read({"app": column}, id_column="app")


def test_a_misspelt_id_column_gets_the_nearest_name() -> None:
    with pytest.raises(DataError, match="did you mean 'app'"):
        wd.Catalogue.read(TABLE, id_column="ap")


def test_ids_of_csv_are_the_texts_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("app,price\n1.0,2\n007,\n7,3\n")
    read = wd.Catalogue.read(tmp_path / "items.csv", id_column="app")
    assert read.ids == ["1.0", "007", "7"]
    assert read.positions(["7", "007", "1"]).tolist() == [2, 1, -1]
