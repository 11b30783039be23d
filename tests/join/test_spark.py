"""DuckDB and Spark make the same rows of the same definition: every column of every split."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import write_csv

import widedeep as wd
from tests.join.small_log import START, Row, actions, config, impressions
from tests.join.test_inputs import from_files
from tests.join.test_times import NO_TIMES, TEXTS
from widedeep.errors import ConfigError, DataError
from widedeep.join import (
    ActionLog,
    ImpressionLog,
    JoinConfig,
    JoinResult,
    Label,
    Negatives,
    Split,
    open_dataset,
    run_join,
)
from widedeep.join.engines import DuckDBEngine
from widedeep.join.times import TIME_TEXT, moment_text, moment_us

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'widedeep[spark]'")
pytestmark = [
    pytest.mark.skipif(
        shutil.which("java") is None and "JAVA_HOME" not in os.environ,
        reason="Spark needs Java 17, and there is no java here",
    ),
    # PySpark leaves sockets and pipes of its JVM to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SPLITS = ("train", "valid", "test")

# A small log gains nothing from compiled stages and many partitions, and waits for both.
SMALL = {
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.log.level": "ERROR",
}
# A user's settings, under which the join's SQL would read other times and forgive other errors.
USERS = {"spark.sql.session.timeZone": "Europe/Berlin", "spark.sql.ansi.enabled": "false"}
# Nothing here runs long enough to pay for the second compiler: half the processor's time.
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


@pytest.fixture(scope="module", autouse=True)
def one_session() -> Iterator[None]:
    """Start one JVM for all tests, with a user's session whose settings are not the join's."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]")
    for name, value in {**SMALL, "spark.ui.enabled": "false"}.items():
        builder = builder.config(name, value)
    for name, value in USERS.items():
        builder = builder.config(name, value)
    builder = builder.config("spark.driver.extraJavaOptions", JAVA)
    session = builder.getOrCreate()
    session.range(3).createOrReplaceTempView("wd_impressions")
    before = session.conf.getAll
    yield
    assert SparkSession.active().conf.getAll == before
    assert session.table("wd_impressions").columns == ["id"]
    session.stop()


def checksums(settings: JoinConfig) -> dict[str, Any]:
    """Return what two engines must agree on.

    The SHA-256 of each column of each split, its rows in the order they were written in; the
    statistics; and the vocabularies and quantiles that are fitted on train.
    """
    result = run_join(settings)
    found: dict[str, Any] = {
        "statistics": flat(json.loads((result.output / "report.json").read_text())),
        "schema": fitted(result, result.output / "train"),
    }
    for split in SPLITS:
        tables = [pq.read_table(path) for path in result.paths(split)]
        if not tables:
            continue
        table = pa.concat_tables(tables)
        rows = table.to_pylist()
        assert len(rows) == result.rows[split]
        found[split] = {
            name: hashlib.sha256(repr([row[name] for row in rows]).encode()).hexdigest()
            for name in table.column_names
        }
    return found


def flat(figures: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested figures by their paths."""
    if not isinstance(figures, dict | list):
        return {path: figures}
    listed = figures.items() if isinstance(figures, dict) else enumerate(figures)
    return {
        key: leaf for name, inner in listed for key, leaf in flat(inner, f"{path}/{name}").items()
    }


def fitted(result: JoinResult, data: Path) -> bytes:
    """Return the schema's file, fitted on examples or on the counts beside them."""
    columns = {column["name"] for column in result.manifest["columns"]}
    numbers = {"pair_since", "item_rate", "shown_before"} & columns
    categories = {"item_id", "user_id", "device", "brand", "last_items"} & columns
    features = list(wd.categorical(*sorted(categories)))
    if numbers:
        features += wd.numeric(*sorted(numbers))
    label = "spend" if "spend" in columns else "label"
    spec = wd.FeatureSpec(label=label, weight="weight", features=features, group="request_id")
    # Fewer rows than there are: sampled quantiles are alike only where the rows' order is.
    given = {"counts": data} if data.name == "counts" else {"data": data}
    wd.fit_schema(spec, **given, sample_rows=100).save(result.output / "schema.safetensors")
    return (result.output / "schema.safetensors").read_bytes()


def both(settings: JoinConfig, **of_spark: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = dataclasses.replace(settings, partition_rows=150)
    duckdb = dataclasses.replace(settings, output=settings.output + "-duckdb")
    spark = dataclasses.replace(
        settings,
        output=settings.output + "-spark",
        engine="spark",
        spark_options=SMALL,
        **of_spark,
    )
    one, other = checksums(duckdb), checksums(spark)
    # Sums of statistics are rounded in the order of the files, of which Spark writes fewer.
    one["statistics"] = {
        path: pytest.approx(leaf, rel=1e-12) if isinstance(leaf, float) else leaf
        for path, leaf in one["statistics"].items()
    }
    return one, other


def test_both_engines_read_the_same_texts_as_times(tmp_path: Path) -> None:
    from widedeep.join.engines import SparkEngine

    texts = [*TEXTS, *NO_TIMES, "2023-11-14T22:13:20.1239999Z", "2023-11-14 22:13:20.5-01:00"]
    rows = " UNION ALL ".join(f"SELECT '{text}' AS wd_text" for text in texts)
    matched = f"REGEXP_MATCHES(wd_text, '{TIME_TEXT}') AND WD_TEXT_MICROS(wd_text) IS NOT NULL"
    sql = (
        f"SELECT wd_text, CASE WHEN {matched} THEN WD_TEXT_MICROS(wd_text) END AS us FROM ({rows})"
    )
    engines = (DuckDBEngine(tmp_path / "spill"), SparkEngine(None, SMALL))
    one, other = ({row["wd_text"]: row["us"] for row in some.rows(sql)} for some in engines)
    assert one == other
    assert {text: one[text] for text in TEXTS} == {text: moment_us(text) for text in TEXTS}
    assert not any(one[text] for text in NO_TIMES)


def test_a_running_session_keeps_its_settings(tmp_path: Path) -> None:
    from pyspark.sql import SparkSession

    session = SparkSession.active()
    before = session.conf.getAll
    log = ActionLog(path=actions(), kind="sort", value="price")
    with pytest.raises(DataError, match="kind = 'sort', but there is no such column"):
        run_join(config(tmp_path / "out", engine="spark", actions=log))
    assert session.conf.getAll == before
    assert session.conf.get("spark.sql.session.timeZone") == "Europe/Berlin"
    assert session.sql("SELECT COUNT(*) FROM wd_impressions").collect()[0][0] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spark_master": "local[7]"}, r"got 'local\[7\]', but Spark runs .* on 'local\[2\]'"),
        ({"spark_options": {"spark.driver.memory": "9g"}}, "spark.driver.memory = '9g' is set"),
    ],
)
def test_a_running_session_is_not_another(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_join(config(tmp_path / "out", engine="spark", **settings))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (ImpressionLog(path="s3a://bucket/log/"), "s3a://bucket/log/: Spark cannot open it"),
        (ImpressionLog(path="file:///nowhere/*.parquet"), "PATH_NOT_FOUND"),
        (ImpressionLog(table="lake.shop.shown"), "lake.shop.shown: Spark cannot open it"),
    ],
)
def test_what_spark_cannot_open_is_named(tmp_path: Path, log: ImpressionLog, message: str) -> None:
    with pytest.raises(DataError, match=f"impressions: .*{message}"):
        run_join(config(tmp_path / "out", engine="spark", impressions=log))


@pytest.mark.parametrize("mark", ["_delta_log/0.json", "metadata/v1.metadata.json"])
def test_spark_reads_no_files_of_a_table_format(tmp_path: Path, mark: str) -> None:
    """Deleted rows lie in its files too."""
    folder = tmp_path / "shown"
    (folder / mark).parent.mkdir(parents=True)
    (folder / mark).touch()
    (folder / "day=1").mkdir()
    pq.write_table(pa.Table.from_pylist(impressions()), folder / "day=1" / "a.parquet")
    for path in (folder, folder / "day=1"):
        log = ImpressionLog(path=f"file://{path}")
        with pytest.raises(DataError, match=r"shown: the folder of a .* as table = 'CATALOGUE\."):
            run_join(config(tmp_path / "out", engine="spark", impressions=log))


@pytest.mark.slow
def test_both_engines_end_a_log_alike(tmp_path: Path) -> None:
    """Actions that stop, strays in both logs, times as text, values of every size."""
    far = START + 90_000_000
    shown = [*impressions(), {**impressions()[0], "request_id": "far", "event_time": far}]
    taken = [
        {**row, "price": 10.0 ** (n % 20 - 9)}
        for n, row in enumerate(actions(900))
        if row["event_time"] < START + 6_000
    ]
    taken.append({**taken[0], "event_time": far})
    for row in (*shown, *taken):
        row["event_time"] = moment_text(int(row["event_time"]) * 1_000_000 + 250)
    settings = config(
        tmp_path / "out",
        impressions=ImpressionLog(path=shown, position="position"),
        actions=ActionLog(path=taken, kind="kind", value="price"),
    )
    one, other = both(settings)
    assert one == other
    notes = [note for path, note in one["statistics"].items() if path.startswith("/notes")]
    assert sum("1 of the events lie far from all others" in note for note in notes) == 2


def test_both_engines_make_the_same_rows(tmp_path: Path) -> None:
    """DuckDB reads tables in memory, Spark the same from a URL and from its catalogue."""
    from pyspark.sql import SparkSession

    for name, rows in (("shown", impressions()), ("taken", actions())):
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / "part.parquet")
    location = tmp_path / "taken"
    SparkSession.active().sql(f"CREATE TABLE taken USING parquet LOCATION '{location}'")
    settings = config(tmp_path / "out", split=Split(by="time", fractions=(0.6, 0.2, 0.2)))
    one, other = both(
        settings,
        impressions=ImpressionLog(path=(tmp_path / "shown").as_uri(), position="position"),
        actions=ActionLog(table="taken", kind="kind", value="price"),
    )
    examples = open_dataset(tmp_path / "out-spark")
    assert fitted(examples, examples.output / "counts") == one["schema"]
    manifest = examples.manifest
    inputs = {entry["input"]: entry for entry in manifest["inputs"][:2]}
    assert inputs["impressions"]["path"] == f"file:{tmp_path / 'shown' / 'part.parquet'}"
    size = (tmp_path / "taken" / "part.parquet").stat().st_size
    assert inputs["actions"]["bytes"] == size
    assert inputs["actions"]["modified_us"] > START * 1_000_000
    assert set(one) == {"train", "valid", "test", "statistics", "schema"}
    assert one == other


@pytest.mark.slow
def test_both_engines_read_csv_alike(tmp_path: Path) -> None:
    """Texts that look like numbers, quotes and line breaks in values, nulls, times as text."""
    devices = ["007", "7", "1.50", "a,b", 'a "b"', "two\nlines", "", None, "NULL", " x ", "ά"]
    shown, taken = impressions(), actions()
    for row in (*shown, *taken):
        row["user_id"] = row["user_id"].replace("u", "00")
        row["event_time"] = moment_text(int(row["event_time"]) * 1_000_000 + 250)
    for number, row in enumerate(shown):
        row["device"] = devices[number % len(devices)]
    table = pa.Table.from_pylist(shown)
    write_csv(table.slice(0, 150), tmp_path / "shown-0.csv")
    write_csv(table.slice(150), tmp_path / "shown-1.csv")
    write_csv(pa.Table.from_pylist(taken), tmp_path / "taken.csv")
    settings = from_files(
        tmp_path / "csv", str(tmp_path / "shown-*.csv"), str(tmp_path / "taken.csv")
    )
    one, other = both(dataclasses.replace(settings, user_attributes=None))
    assert one == other
    settings = from_files(tmp_path / "memory", shown, taken)
    rows, _ = both(dataclasses.replace(settings, user_attributes=None))
    assert {name: one[name] for name in SPLITS} == {name: rows[name] for name in SPLITS}


@pytest.mark.slow
@pytest.mark.parametrize("touch", ["first", "all"])
def test_a_medium_log(tmp_path: Path, touch: Any) -> None:
    settings = config(
        tmp_path / "out",
        impressions=ImpressionLog(path=impressions(5_000), position="position"),
        actions=ActionLog(path=actions(20_000), kind="kind", value="price"),
        touch=touch,
        split=Split(by="both", fractions=(0.5, 0.2, 0.3)),
        negatives=Negatives(rate=0.3, by="request"),
    )
    one, other = both(settings)
    assert one == other


@pytest.mark.slow
def test_drawn_negatives(tmp_path: Path) -> None:
    baskets: list[Row] = [
        {key: row[key] for key in ("user_id", "item_id", "event_time")} for row in actions(2_000)
    ]
    settings = config(
        tmp_path / "out",
        impressions=None,
        actions=ActionLog(path=baskets),
        labels=(Label(window="1m"),),
        history=(),
        negatives=Negatives(per_positive=3),
    )
    one, other = both(settings)
    assert one == other
