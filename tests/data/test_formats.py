"""A file format is one entry: paths, globs, joins and errors know it then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
import pytest

import widedeep as wd
from widedeep.data import formats
from widedeep.data.fragments import Input, InputFormat, Spool, table_input
from widedeep.data.sources import open_source
from widedeep.errors import DataError
from widedeep.features.learned import ColumnTypes

ROWS = [{"age": 30 + n, "job": "ab"[n % 2], "click": n % 2} for n in range(8)]


def open_json_lines(
    paths: Sequence[Path],
    columns: Sequence[str] | None,
    spool: Spool,
    declared: ColumnTypes,
) -> list[Input]:
    return [table_input(pa.json.read_json(path), str(path), columns) for path in paths]


@pytest.fixture
def json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = InputFormat(suffixes=(".rows",), open=open_json_lines)
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, toy))


def write(path: Path, rows: Sequence[Mapping[str, object]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("json_lines")
def test_a_new_format_is_read_beside_the_others(tmp_path: Path) -> None:
    write(tmp_path / "0.rows")
    (tmp_path / "1.csv").write_text("click,job,age\n1,c,39\n")
    pa.parquet.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "2.parquet")
    with open_source(str(tmp_path / "*.*")) as source:
        rows = [row for part in source.fragments for row in source.read(part).to_pylist()]
    assert rows == [*ROWS, {"age": 39, "job": "c", "click": 1}, ROWS[0]]
    spec = wd.FeatureSpec(label="click", features=[*wd.numeric("age"), *wd.categorical("job")])
    schema = wd.fit_schema(spec, str(tmp_path / "*.rows"))
    assert schema.rows == len(ROWS)


@pytest.mark.usefixtures("json_lines")
def test_a_new_format_is_an_input_of_a_join(tmp_path: Path) -> None:
    times = [1_700_000_000 + n for n in range(10)]
    shown = [
        {"request_id": n, "user_id": 7, "item_id": n % 3, "event_time": time}
        for n, time in enumerate(times)
    ]
    taken = [{"user_id": 7, "item_id": n % 3, "event_time": times[n]} for n in (5, 9)]
    files = write(tmp_path / "shown.rows", shown), write(tmp_path / "taken.rows", taken)
    result = wd.join_actions(*files, output=tmp_path / "examples", window="2s")
    assert result.rows == {"train": 7, "valid": 1, "test": 0}


@pytest.mark.usefixtures("json_lines")
def test_errors_list_the_new_format(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"allowed: \.parquet.*\.tfrecords\.gz, \.rows; convert"):
        open_source(tmp_path / "rows.xlsx")
    write(tmp_path / "rows.rows")
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.rows too"):
        open_source(tmp_path)
