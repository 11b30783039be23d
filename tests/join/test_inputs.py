"""CSV files and tables of a DuckDB file are joined as the same rows in memory are."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.join.small_log import START, Row, actions, config, impressions
from widedeep.data.join import ActionLog, ImpressionLog, JoinConfig, Split, run_join
from widedeep.errors import DataError


def rows_of(settings: JoinConfig) -> dict[str, list[Row]]:
    result = run_join(settings)
    splits = ("train", "valid", "test")
    return {name: pq.read_table(result.output / name).to_pylist() for name in splits}


def from_files(output: Path, shown: Any, taken: Any, **options: Any) -> JoinConfig:
    return config(
        output,
        impressions=ImpressionLog(path=shown, position="position", **options),
        actions=ActionLog(path=taken, kind="kind", value="price", **options),
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    return rows_of(config(tmp_path_factory.mktemp("memory") / "out"))


def test_csv_in_several_files(tmp_path: Path, expected: dict[str, list[Row]]) -> None:
    shown, taken = pa.Table.from_pylist(impressions()), pa.Table.from_pylist(actions())
    pa_csv.write_csv(shown.slice(0, 150), tmp_path / "shown-0.csv")
    pa_csv.write_csv(shown.slice(150), tmp_path / "shown-1.csv")
    pa_csv.write_csv(taken, tmp_path / "taken.csv")
    settings = from_files(
        tmp_path / "out", str(tmp_path / "shown-*.csv"), str(tmp_path / "taken.csv")
    )
    assert rows_of(settings) == expected


def test_csv_files_of_two_headers(tmp_path: Path) -> None:
    shown = pa.Table.from_pylist(impressions())
    pa_csv.write_csv(shown, tmp_path / "shown-0.csv")
    pa_csv.write_csv(shown.drop_columns(["device"]), tmp_path / "shown-1.csv")
    with pytest.raises(DataError, match=r"shown-1\.csv: no column 'device', which .*shown-0"):
        run_join(from_files(tmp_path / "out", str(tmp_path / "shown-*.csv"), actions()))


def test_a_csv_value_of_another_type_than_its_column(tmp_path: Path) -> None:
    pa_csv.write_csv(pa.Table.from_pylist(impressions(20_000)), tmp_path / "shown.csv")
    text = (tmp_path / "shown.csv").read_text().splitlines()
    text[-1] = text[-1].replace(str(START + 19_999 * 100), "soon")
    (tmp_path / "shown.csv").write_text("\n".join(text))
    with pytest.raises(DataError, match="event_time"):
        run_join(from_files(tmp_path / "out", str(tmp_path / "shown.csv"), actions()))


def test_tables_of_a_duckdb_file(tmp_path: Path, expected: dict[str, list[Row]]) -> None:
    place = tmp_path / "logs.duckdb"
    shown, taken = pa.Table.from_pylist(impressions()), pa.Table.from_pylist(actions())
    with duckdb.connect(str(place)) as base:
        base.register("shown", shown)
        base.register("taken", taken)
        base.execute("CREATE TABLE impressions AS SELECT * FROM shown")
        base.execute("CREATE TABLE actions AS SELECT * FROM taken")
    found = config(
        tmp_path / "out",
        impressions=ImpressionLog(path=str(place), table="impressions", position="position"),
        actions=ActionLog(path=str(place), table="actions", kind="kind", value="price"),
    )
    assert rows_of(found) == expected
    assert found.impressions is not None
    absent = dataclasses.replace(found.impressions, table="impression")
    with pytest.raises(DataError, match="no such table; did you mean 'impressions'"):
        run_join(dataclasses.replace(found, impressions=absent))


def test_a_csv_file_of_a_header_alone(tmp_path: Path, expected: dict[str, list[Row]]) -> None:
    table = pa.Table.from_pylist(impressions())
    pa_csv.write_csv(table.slice(0, 0), tmp_path / "a.csv")
    log = ImpressionLog(path=str(tmp_path / "*.csv"), position="position")
    with pytest.raises(DataError, match="impressions: got an empty log"):
        run_join(config(tmp_path / "out", impressions=log))
    pa_csv.write_csv(table, tmp_path / "b.csv")
    assert rows_of(config(tmp_path / "out", impressions=log)) == expected


def test_a_csv_line_that_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shown.csv"
    pa_csv.write_csv(pa.Table.from_pylist(impressions()), path)
    lines = path.read_text().splitlines()
    lines[7] = lines[7].replace('"u', 'x"u', 1)
    path.write_text("\n".join([*lines[:7], '"' + lines[7], *lines[8:]]))
    log = ImpressionLog(path=str(path), position="position")
    with pytest.raises(DataError, match=r"shown\.csv, line 8: got a quote that neither"):
        run_join(config(tmp_path / "out", impressions=log))


@pytest.mark.parametrize("unit", ["ms", "us", "timestamp", "text", "offset"])
def test_times_of_every_form(tmp_path: Path, expected: dict[str, list[Row]], unit: str) -> None:
    def told(seconds: int) -> Any:
        zone = datetime.timezone(datetime.timedelta(hours=2))
        moment = datetime.datetime.fromtimestamp(seconds, zone)
        return {
            "ms": seconds * 1_000,
            "us": seconds * 1_000_000,
            "timestamp": moment,
            "text": moment.isoformat(),
            "offset": moment.replace(tzinfo=None),
        }[unit]

    shown = [{**row, "event_time": told(row["event_time"])} for row in impressions()]
    taken = [{**row, "event_time": told(row["event_time"])} for row in actions()]
    options = {"timezone": "+02:00"} if unit == "offset" else {}
    assert rows_of(from_files(tmp_path / "out", shown, taken, **options)) == expected


def test_files_of_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "shown.json").write_text("[]")
    with pytest.raises(DataError, match=r"shown\.json: unknown kind .* allowed: \.parquet"):
        run_join(from_files(tmp_path / "out", str(tmp_path / "shown.json"), actions()))


def test_one_part_is_in_order_of_time_and_several_are_each(tmp_path: Path) -> None:
    log = ActionLog(path=actions(), kind="kind")
    for rows, falls in ((400, 0), (100, 3)):
        made = wd.join_actions(
            ImpressionLog(path=impressions(), position="position"),
            log,
            output=tmp_path / str(rows),
            split=Split(by="none"),
            partition_rows=rows,
            window="10m",
            kinds=["click"],
        )
        times = [
            row["event_time"]
            for path in made.paths("train")
            for row in pq.read_table(path).to_pylist()
        ]
        assert len(times) > 300
        assert sum(b < a for a, b in itertools.pairwise(times)) == falls
