"""Every form of time is read by one rule, in settings and in columns; the rest is refused."""

from __future__ import annotations

import datetime
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from widedeep.errors import ConfigError, DataError
from widedeep.join import (
    ActionLog,
    Attributes,
    History,
    ImpressionLog,
    JoinConfig,
    JoinResult,
    Label,
    Negatives,
    Split,
    load_join_config,
)
from widedeep.join.engines import DuckDBEngine
from widedeep.join.times import TIME_TEXT, duration_us, moment_text, moment_us

SECOND = 1_000_000
T = 1_700_000_000

TEXTS = {
    "2023-11-14": "2023-11-14T00:00:00+00:00",
    "2023-11-14 22:13": "2023-11-14T22:13:00+00:00",
    "2023-11-14T22:13:20.5Z": "2023-11-14T22:13:20.500000+00:00",
    "2023-11-14T22:13:20+02": "2023-11-14T20:13:20+00:00",
    "2023-11-14 22:13:20 UTC": "2023-11-14T22:13:20+00:00",
    "2023-11-14T22:13:20-0530": "2023-11-15T03:43:20+00:00",
    "2023-11-14T22:13-00:30": "2023-11-14T22:43:00+00:00",
    "2023-10-29T02:30:00+02:00": "2023-10-29T00:30:00+00:00",
    "2023-10-29T02:30:00+01:00": "2023-10-29T01:30:00+00:00",
    "2024-02-29T23:59:59.999999+14:00": "2024-02-29T09:59:59.999999+00:00",
}
NO_TIMES = [
    *("soon", "", "2023", "2023-11", "20231114", "14.11.2023", "11/14/2023", "2023-02-29"),
    *("2023-11-14T24:00:00", "2023-11-14T22:13:60", "2023-11-14T22", " 2023-11-14"),
    *("2023-11-14T22:13:20 Europe/Berlin", "2023-11-14T22:13:20+15:00", "now", "infinity"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DuckDBEngine:
    return DuckDBEngine(tmp_path_factory.mktemp("spill"))


@pytest.mark.parametrize(("text", "moment"), TEXTS.items())
def test_settings_and_columns_read_a_text_alike(
    engine: DuckDBEngine, text: str, moment: str
) -> None:
    assert moment_text(moment_us(text)) == moment
    row = engine.rows(f"SELECT WD_TEXT_MICROS('{text}') AS us")[0]
    assert row["us"] == moment_us(text)


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_is_no_time_is_none_anywhere(engine: DuckDBEngine, text: str) -> None:
    with pytest.raises(ConfigError, match="expected a date or time"):
        moment_us(text)
    readable = f"REGEXP_MATCHES('{text}', '{TIME_TEXT}')"
    row = engine.rows(f"SELECT {readable} AND WD_TEXT_MICROS('{text}') IS NOT NULL AS read")[0]
    assert row["read"] is False


def test_settings_take_no_digits_below_a_microsecond() -> None:
    assert moment_us("2023-11-14T22:13:20.123456000Z") == T * SECOND + 123_456
    with pytest.raises(ConfigError, match="whole microseconds"):
        moment_us("2023-11-14T22:13:20.1234567Z")


@pytest.mark.parametrize(
    ("duration", "told"),
    [
        ("0.5us", "0.5 microseconds"),
        ("1.5us", "1.5 microseconds"),
        ("0.0000001s", "0.1 microseconds"),
        (1e-7, "0.1 microseconds"),
        ("99999999w", "at most 1,000,000 days"),
        (1e300, "at most"),
        (float("nan"), "expected a duration"),
        ("1 day", "a number with a unit"),
    ],
)
def test_durations_that_are_no_whole_microseconds(duration: str | float, told: str) -> None:
    with pytest.raises(ConfigError, match=f"window: .*{told}"):
        duration_us(duration, "window")


def test_durations() -> None:
    assert duration_us(0.1) == duration_us("0.1s") == duration_us("100ms") == 100_000
    assert duration_us(datetime.timedelta(hours=1)) == duration_us("1h")
    assert Label(window=datetime.timedelta(hours=1)).window_us == 3600 * SECOND


# ---- columns ------------------------------------------------------------------------------------


def shown(times: Any, **columns: Any) -> pa.Table:
    rows = len(times)
    return pa.table(
        {
            "request_id": list(range(rows)),
            "user_id": [f"u{n}" for n in range(rows)],
            "item_id": ["i"] * rows,
            "event_time": times,
            **columns,
        }
    )


def joined(folder: Path, impressions: Any, **options: Any) -> JoinResult:
    taken = [{"user_id": "u0", "item_id": "i", "event_time": "2023-11-14T22:13:21Z"}]
    return wd.join_actions(
        impressions if isinstance(impressions, ImpressionLog) else ImpressionLog(path=impressions),
        taken,
        output=folder / "out",
        window="1d",
        split=Split(by="none"),
        open_windows="keep",
        **options,
    )


def times_of(result: JoinResult, column: str = "event_time") -> list[int]:
    values = pq.read_table(result.paths("train"))[column].to_pylist()
    return sorted(value for value in values if value is not None)


FORMS: dict[str, Callable[[list[int]], Any]] = {
    "s": lambda t: pa.array(t, pa.int64()),
    "ms": lambda t: pa.array([x * 1_000 for x in t], pa.int64()),
    "us": lambda t: pa.array([x * 10**6 for x in t], pa.int64()),
    "ns": lambda t: pa.array([x * 10**9 for x in t], pa.int64()),
    "uint64": lambda t: pa.array([x * 10**9 for x in t], pa.uint64()),
    "int32": lambda t: pa.array(t, pa.int32()),
    "digits": lambda t: pa.array([str(x) for x in t]),
    "timestamp[s]": lambda t: pa.array(t, pa.timestamp("s", "UTC")),
    "timestamp[ms]": lambda t: pa.array([x * 1_000 for x in t], pa.timestamp("ms", "UTC")),
    "timestamp[ns]": lambda t: pa.array([x * 10**9 for x in t], pa.timestamp("ns", "UTC")),
    "zone": lambda t: pa.array(t, pa.timestamp("s", "America/New_York")),
    "text": lambda t: pa.array([moment_text(x * SECOND) for x in t]),
    "offsets": lambda t: pa.array(
        [
            datetime.datetime.fromtimestamp(
                x, datetime.timezone(datetime.timedelta(hours=n % 9 - 4))
            ).isoformat()
            for n, x in enumerate(t)
        ]
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parquet", [False, True])
def test_one_column_in_every_form(tmp_path: Path, form: str, parquet: bool) -> None:
    table = shown(FORMS[form]([T, T + 3_600, T + 86_400]))
    source: Any = table
    if parquet:
        pq.write_table(table, tmp_path / "shown.parquet")
        source = str(tmp_path / "shown.parquet")
    result = joined(tmp_path, source)
    assert times_of(result) == [x * SECOND for x in (T, T + 3_600, T + 86_400)]
    assert not any("impressions" in note for note in result.notes)


@pytest.mark.parametrize("form", ["timestamp", "text", "date", "date64"])
def test_times_without_a_zone_are_utc_and_said(tmp_path: Path, form: str) -> None:
    day = T // 86_400 * 86_400
    column = {
        "timestamp": pa.array([day], pa.timestamp("s")),
        "text": pa.array(["2023-11-14T00:00:00"]),
        "date": pa.array([day // 86_400], pa.date32()),
        "date64": pa.array([day * 1_000], pa.date64()),
    }[form]
    taken = {"user_id": ["u0"], "item_id": ["i"], "event_time": column}
    result = wd.join_actions(
        shown(column), pa.table(taken), output=tmp_path / "out", open_windows="keep"
    )
    assert times_of(result) == [day * SECOND]
    for log in ("impressions", "actions"):
        assert any(f"{log}: column 'event_time': its times name no zone" in n for n in result.notes)
    told = joined(tmp_path, ImpressionLog(path=shown(column), timezone="+02:00"))
    assert times_of(told) == [(day - 7_200) * SECOND]
    assert not any("no zone" in note for note in told.notes)


@pytest.mark.parametrize("parquet", [False, True])
def test_nanoseconds_are_cut_off_and_counted(tmp_path: Path, parquet: bool) -> None:
    fine = pa.array([T * 10**9 + 1_999, T * 10**9 + 2_000], pa.timestamp("ns", "UTC"))
    table = shown(fine, seen=fine)
    source: Any = table
    if parquet:
        pq.write_table(table, tmp_path / "shown.parquet")
        source = str(tmp_path / "shown.parquet")
    result = joined(tmp_path, source)
    for column in ("event_time", "seen"):
        assert times_of(result, column) == [T * SECOND + 1, T * SECOND + 2]
        told = f"impressions: column '{column}': 1 times have digits below a microsecond"
        assert any(told in note for note in result.notes)


def test_nanoseconds_as_numbers_and_text(tmp_path: Path) -> None:
    for times in ([T * 10**9 + 1_999], ["2023-11-14T22:13:20.000001999Z"]):
        result = joined(tmp_path, shown(times))
        assert times_of(result) == [T * SECOND + 1]
        assert any("1 times have digits below a microsecond" in note for note in result.notes)


@pytest.mark.parametrize(
    ("times", "told"),
    [
        (["2023-11-14T22:13:20Z", "soon"], "'soon' in row 2 of the table"),
        (["2023-11-14T22:13:20Z", ""], "'' in row 2"),
        (["1700000000", "2023-11-14T22:13:20Z"], "'1700000000' in row 1"),
        (["2023-11-14T22:13:20Z", "2023-02-30T00:00:00Z"], "'2023-02-30T00:00:00Z' in row 2"),
        (["2023-11-14T22:13:20Z", "2023-11-14T22:13:20"], "1 of 2 times name a zone"),
        ([T, T * 1_000], "units are mixed"),
        ([T, T * 10**9], "units are mixed"),
        ([T, 0], "0 in row 2 of the table"),
        ([T, -1], "no plausible seconds"),
        ([1.7e9, 1.8e9], "is of type double"),
        ([datetime.time(1), datetime.time(2)], "is of type time"),
        ([True, False], "is of type bool"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, times: list[Any], told: str) -> None:
    with pytest.raises(DataError, match="impressions: column 'event_time'") as raised:
        joined(tmp_path, shown(times))
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("unit", "times", "told"),
    [
        ("s", [T, T * 1_000], "plausible as ms"),
        ("ms", [T, T * 1_000], "plausible as s"),
        ("s", [T, 5 * 10**13], "beyond all times"),
        ("us", [T * 10**9], "plausible as ns"),
    ],
)
def test_a_named_unit_is_held_against_every_number(
    tmp_path: Path, unit: Any, times: list[int], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        joined(tmp_path, ImpressionLog(path=shown(times), time_unit=unit))


@pytest.mark.parametrize("packed", [False, True])
def test_the_line_of_a_csv_file_is_named(tmp_path: Path, packed: bool) -> None:
    lines = ["request_id,user_id,item_id,event_time"]
    lines += [f'{n},"u{n}","i",2023-11-14T22:13:{n:02d}Z' for n in range(9)]
    lines[7] = lines[7].replace("2023", "23")
    path = tmp_path / ("shown.csv.gz" if packed else "shown.csv")
    text = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    with pytest.raises(DataError, match=r"'23-11-14T22:13:06Z' in line 8 of .*shown\.csv"):
        joined(tmp_path, str(path))


def test_versions_are_read_by_the_same_rule(tmp_path: Path) -> None:
    versions = [{"user_id": "u0", "from": "2023-11-14T23:13:20+01:00", "age": 1}]
    result = joined(
        tmp_path,
        shown([T, T + 1]),
        user_attributes=Attributes(path=versions, key="user_id", valid_from="from"),
    )
    assert pq.read_table(result.paths("train"))["age"].to_pylist() == [1, None]
    with pytest.raises(DataError, match=r"user_attributes: column 'from'.*'soon' in row 1"):
        joined(
            tmp_path,
            shown([T]),
            user_attributes=Attributes(
                path=[{**versions[0], "from": "soon"}], key="user_id", valid_from="from"
            ),
        )


# ---- settings -----------------------------------------------------------------------------------

TOML = """
join = {{ output = "out", log_end = {end} }}
impressions.path = "i.parquet"
actions.path = "a.parquet"
split.boundaries = [{first}, {second}]
"""


@pytest.mark.parametrize(
    ("first", "second", "end"),
    [
        ('"2023-11-14"', '"2023-11-15"', '"2023-11-16"'),
        ("2023-11-14", "2023-11-15", "2023-11-16"),
        ("2023-11-14T00:00:00", "2023-11-15 00:00:00", "2023-11-16T00:00:00.000"),
        ("2023-11-14T00:00:00Z", "2023-11-15T02:00:00+02:00", "2023-11-15T23:00:00-01:00"),
        ('"2023-11-14T00:00Z"', "2023-11-15", '"2023-11-16 00:00:00 UTC"'),
    ],
)
def test_toml_dates_and_times(tmp_path: Path, first: str, second: str, end: str) -> None:
    (tmp_path / "join.toml").write_text(TOML.format(first=first, second=second, end=end))
    config = load_join_config(tmp_path / "join.toml")
    days = [moment_us(f"2023-11-{day}") for day in (14, 15, 16)]
    assert config.split.boundaries_us == (days[0], days[1])
    assert config.log_end is not None
    assert moment_us(config.log_end) == days[2]
    assert all(isinstance(text, str) for text in config.to_table()["split"]["boundaries"])


@pytest.mark.parametrize("moment", ["12:00:00", "true", "20231114", '"soon"', "[]"])
def test_toml_that_is_no_moment(tmp_path: Path, moment: str) -> None:
    text = TOML.format(first="2023-11-14", second="2023-11-15", end=moment)
    (tmp_path / "join.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"log_end.*expected"):
        load_join_config(tmp_path / "join.toml")


# ---- lists where tuples are declared ------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (lambda of: Label(kinds=of(["a", "b"])), "kinds"),
        (lambda of: History(name="h", feature="count", kinds=of(["a", "b"])), "kinds"),
        (lambda of: Split(fractions=of([0.5, 0.25, 0.25])), "fractions"),
        (lambda of: Split(boundaries=of(["2023-11-14", "2023-11-15"])), "boundaries"),
        (lambda of: Negatives(splits=of(["train", "valid"])), "splits"),
        (lambda of: ImpressionLog(path="i", columns=of(["a", "b"])), "columns"),
        (lambda of: Attributes(path="u", key="k", columns=of(["a"])), "columns"),
        (lambda of: logs(labels=of([Label()])), "labels"),
        (lambda of: logs(history=of([History(name="h", feature="count")])), "history"),
    ],
)
def test_lists_become_tuples(made: Callable[[Any], Any], field: str) -> None:
    assert made(list) == made(tuple)
    assert isinstance(getattr(made(list), field), tuple)
    with pytest.raises(ConfigError, match=f"{field} = .*expected a list"):
        made(set)


def logs(**changes: Any) -> JoinConfig:
    return JoinConfig(
        output="o", impressions=ImpressionLog(path="i"), actions=ActionLog(path="a"), **changes
    )


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Label(kinds=["a", "a"]), "kinds with 'a' twice"),
        (lambda: ImpressionLog(path="i", columns=["x", "y", "x"]), "columns with 'x' twice"),
        (lambda: Negatives(splits=["train", "train"]), "splits with 'train' twice"),
        (lambda: Label(kinds=[1]), "expected a list of texts"),
        (lambda: Label(name=3), r"name = 3 .*expected text"),
        (lambda: Label(window=None), "window = None"),
        (lambda: History(name="h", feature="last", k=2.5), r"k = 2.5 .*expected an integer"),
        (lambda: Split(fractions=["a", "b", "c"]), "expected a list of numbers"),
        (lambda: logs(labels=[]), "at least one"),
        (lambda: logs(labels="click"), "labels = 'click'"),
        (lambda: logs(seed="1"), "seed = '1', expected an integer"),
        (lambda: logs(log_end=5), "log_end = 5"),
    ],
)
def test_fields_of_another_type(made: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        made()


def test_one_label_and_one_history_feature(tmp_path: Path) -> None:
    result = joined(
        tmp_path, shown([T]), labels=Label(name="y"), history=History(name="h", feature="count")
    )
    assert pq.read_table(result.paths("train")).select(["y", "h"]).to_pylist() == [{"y": 1, "h": 0}]
