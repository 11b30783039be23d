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
from widedeep.errors import ConfigError, DataError
from widedeep.join import (
    ActionLog,
    Attributes,
    ImpressionLog,
    JoinConfig,
    Label,
    Split,
    load_join_config,
    run_join,
)


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


def test_words_for_missing_values_in_csv(tmp_path: Path, expected: dict[str, list[Row]]) -> None:
    paths = [str(tmp_path / f"{name}.csv") for name in ("shown", "taken")]
    for path, rows in zip(paths, (impressions(), actions()), strict=True):
        text = pa.BufferOutputStream()
        pa_csv.write_csv(pa.Table.from_pylist(rows), text)
        lines = text.getvalue().to_pybytes().decode().replace(",,", ",NA,").replace(",\n", ",-\n")
        Path(path).write_text(lines)
    settings = from_files(tmp_path / "out", *paths, null_values=("NA", "-"))
    assert rows_of(settings) == expected
    with pytest.raises(DataError, match=r"'shown_before' is of type VARCHAR.*null_values"):
        run_join(from_files(tmp_path / "words", *paths))
    toml = tmp_path / "join.toml"
    toml.write_text(f"[actions]\npath = '{paths[1]}'\nnull_values = 'NA'\n[labels.click]\n")
    with pytest.raises(ConfigError, match=r"null_values"):
        load_join_config(toml)


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
    with pytest.raises(DataError, match=r"'event_time'.*'soon' in line 80,001 of .*shown\.csv"):
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


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("User_ID", "columns 'user_id' and 'User_ID' differ in case alone"),
        ("wd_split", "begins with 'wd_'"),
        ("WD_time", "begins with 'wd_'"),
    ],
)
@pytest.mark.parametrize("form", ["memory", "csv", "parquet"])
def test_names_that_the_engine_cannot_tell_apart(
    tmp_path: Path, column: str, told: str, form: str
) -> None:
    table = pa.Table.from_pylist([{**row, column: "x"} for row in impressions()])
    log = ImpressionLog(path=written(table, tmp_path / f"a.{form}", form), position="position")
    with pytest.raises(DataError, match=told):
        run_join(config(tmp_path / "out", impressions=log))


def written(table: pa.Table, path: Path, form: str) -> Any:
    """A table in memory, or the file that holds it."""
    if form == "memory":
        return table
    (pa_csv.write_csv if form == "csv" else pq.write_table)(table, path)
    return str(path)


@pytest.mark.parametrize("form", ["memory", "csv", "parquet"])
def test_an_output_that_differs_from_another_in_case(tmp_path: Path, form: str) -> None:
    table = pa.Table.from_pylist([{**row, "Click": 7} for row in impressions()])
    log = ImpressionLog(path=written(table, tmp_path / f"a.{form}", form), position="position")
    rows = rows_of(config(tmp_path / "out", impressions=log))["train"]
    assert {row["Click"] for row in rows} == {7}
    assert {row["click"] for row in rows} == {0, 1}


def lines(path: Path, head: str, *rows: str) -> str:
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


def small(folder: Path, shown: Any, taken: Any, **options: Any) -> list[Row]:
    made = wd.join_actions(
        shown,
        taken,
        output=folder / "out",
        split=Split(by="none"),
        open_windows="keep",
        window="100s",
        **options,
    )
    return [row for path in made.paths("train") for row in pq.read_table(path).to_pylist()]


SHOWN = "request_id,user_id,item_id,event_time,x"
TAKEN = "user_id,item_id,event_time"


@pytest.mark.parametrize("codes", [("007", "7"), ("7", "abc"), ("1e3", "1000"), ("5.0", "5")])
@pytest.mark.parametrize("column", [0, 1])
def test_ids_are_the_texts_of_the_file(tmp_path: Path, codes: tuple[str, str], column: int) -> None:
    """Of two ids, one acted; the actions' file holds that one alone, whatever it looks like."""
    for code in codes:
        keys = [["u", "a"], ["u", "a"]]
        keys[0][column], keys[1][column] = codes
        rows = [f"{n},{u},{i},{START + n},1" for n, (u, i) in enumerate(keys)]
        key = ["u", "a"]
        key[column] = code
        shown = lines(tmp_path / "shown.csv", SHOWN, *rows)
        taken = lines(tmp_path / "taken.csv", TAKEN, f"{key[0]},{key[1]},{START + 9}")
        name = ("user_id", "item_id")[column]
        labels = {str(row[name]): row["label"] for row in small(tmp_path, shown, taken)}
        assert labels == {one: int(one == code) for one in codes}


def test_attributes_of_csv_meet_ids_that_are_text_elsewhere(tmp_path: Path) -> None:
    shown = lines(tmp_path / "s.csv", SHOWN, f"1,7,a,{START},1", f"2,x,a,{START + 1},1")
    taken = lines(tmp_path / "t.csv", TAKEN, f"7,a,{START + 9}")
    users = lines(tmp_path / "u.csv", "user_id,age", "7,30", "8,40")
    made = small(tmp_path, shown, taken, user_attributes=Attributes(path=users, key="user_id"))
    assert {row["user_id"]: row["age"] for row in made} == {"7": 30, "x": None}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("1", "1.5"), [1.0, 1.5]),
        (("007", "7"), ["007", "7"]),
        (("", "2"), [None, 2]),
        (('""', "NA"), ["", "NA"]),
        (("9007199254740993", "1"), [2**53 + 1, 1]),
        (("9007199254740993", "1.5"), ["9007199254740993", "1.5"]),
        (("true", "false"), [True, False]),
        (('"two\nlines"', '"a ""b"""'), ["two\nlines", 'a "b"']),
        (("", ""), [None, None]),
        (("-0.5", "1e-07"), [-0.5, 1e-07]),
    ],
)
def test_columns_that_pass_through_keep_their_values(
    tmp_path: Path, values: tuple[str, str], expected: list[Any]
) -> None:
    rows = [f"{n},u{n},a,{START + n},{value}" for n, value in enumerate(values)]
    shown = lines(tmp_path / "s.csv", SHOWN, *rows)
    made = small(tmp_path, shown, [{"user_id": "u0", "item_id": "a", "event_time": START + 9}])
    assert [row["x"] for row in sorted(made, key=lambda row: row["user_id"])] == expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"price": "9,99"}, r"taken\.csv, line 70002, column 'price'.*decimal comma"),
        ({"price": "NA"}, r"taken\.csv, line 70002, column 'price': got 'NA'"),
        ({"price": str(2**53 + 1)}, r"line 70002, column 'price'.*would become"),
    ],
)
def test_a_late_value_that_is_no_number(tmp_path: Path, change: Row, told: str) -> None:
    rows = [f"u{n % 9},a,{START + n},1" for n in range(70_000)]
    taken = lines(
        tmp_path / "taken.csv", TAKEN + ",price", *rows, f'u1,a,{START},"{change["price"]}"'
    )
    log = ActionLog(path=taken, value="price")
    labels = [Label(name="spend", window="100s", value=True)]
    shown = [{"request_id": 1, "user_id": "u1", "item_id": "a", "event_time": START}]
    with pytest.raises(DataError, match=told):
        wd.join_actions(shown, log, output=tmp_path / "out", labels=labels)


WIDER: dict[str, pa.DataType] = {"item_id": pa.int32(), "shown_before": pa.int8()}


@pytest.mark.parametrize(
    "second",
    [
        lambda t: t.cast(pa.schema([f.with_nullable(f.name == "device") for f in t.schema])),
        lambda t: t.cast(pa.schema([(f.name, WIDER.get(f.name, f.type)) for f in t.schema])),
        lambda t: t.select(t.column_names[::-1]),
        lambda t: t.set_column(1, "user_id", t["user_id"].dictionary_encode()),
        lambda t: t.set_column(1, "user_id", t["user_id"].cast(pa.large_string())),
        lambda t: t.replace_schema_metadata({"made by": "another writer"}),
        lambda t: t.slice(0, 0).set_column(5, "device", pa.nulls(0)),
    ],
    ids=["not null", "widths", "order", "dictionary", "large", "metadata", "null"],
)
@pytest.mark.parametrize("order", [1, -1])
def test_files_that_declare_the_same_values_otherwise(
    tmp_path: Path, expected: dict[str, list[Row]], second: Any, order: int
) -> None:
    table = pa.Table.from_pylist(
        [{**row, "shown_before": row["shown_before"] or 3} for row in impressions()]
    )
    whole = second(table).num_rows
    halves = [table.slice(0, 150), second(table.slice(150))] if whole else [table, second(table)]
    for number, half in enumerate(halves[::order]):
        pq.write_table(half, tmp_path / f"{number}.parquet")
    settings = from_files(tmp_path / "out", str(tmp_path / "*.parquet"), actions())
    plain = from_files(tmp_path / "plain", table, actions())
    assert rows_of(settings) == rows_of(plain)


def test_files_of_two_types_are_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(impressions())
    pq.write_table(table, tmp_path / "a.parquet")
    text = table.set_column(2, "item_id", table["item_id"].cast(pa.string()))
    pq.write_table(text, tmp_path / "b.parquet")
    told = r"impressions: .*b\.parquet: column 'item_id' is string, but int64 in .*a\.parquet"
    with pytest.raises(DataError, match=told):
        run_join(from_files(tmp_path / "out", str(tmp_path / "*.parquet"), actions()))


def test_bytes_of_a_log_that_are_no_text(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(impressions())
    device = pa.array([b"desk"] * 399 + ["th\u00e9".encode("latin-1")])
    broken = pa.Array.from_buffers(pa.string(), 400, device.buffers())
    pq.write_table(table.set_column(5, "device", broken), tmp_path / "a.parquet")
    told = r"impressions: .*a\.parquet, row 399, column 'device': got .*not UTF-8"
    with pytest.raises(DataError, match=told):
        run_join(from_files(tmp_path / "out", str(tmp_path / "a.parquet"), actions()))
    shown = [{**row, "device": "\ud83d"} for row in impressions()]
    with pytest.raises(DataError, match=r"impressions: .*'device', row 0: .*surrogate"):
        run_join(from_files(tmp_path / "out", shown, actions()))
