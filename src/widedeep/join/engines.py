"""The SQL engines of a join: DuckDB, and Spark with the same SQL translated."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.paths import TABLE_FORMATS
from widedeep.errors import ConfigError, DataError, WideDeepError, install_hint, nearest
from widedeep.join.plan import literal, quoted
from widedeep.join.times import TIME_TEXT

MACROS = (
    "CREATE OR REPLACE TEMP MACRO wd_md5_60(x) AS CAST('0x' || substr(md5(x), 1, 15) AS BIGINT)",
    "CREATE OR REPLACE TEMP MACRO wd_micros(x) AS epoch_us(x)",
    "CREATE OR REPLACE TEMP MACRO wd_nanos(x) AS epoch_ns(x)",
    "CREATE OR REPLACE TEMP MACRO wd_floor_1000(x) AS (x - ((x % 1000) + 1000) % 1000) // 1000",
    "CREATE OR REPLACE TEMP MACRO wd_text_micros(x) AS epoch_us(TRY_CAST(x AS TIMESTAMPTZ))",
)
"""DuckDB's definitions of the join's own functions; :func:`for_spark` rewrites them for Spark."""

_ALLOWED = {
    *("Select", "From", "Join", "Where", "Group", "Order", "Ordered", "Having", "Distinct"),
    *("Union", "Subquery", "With", "CTE", "Limit", "Table", "TableAlias", "Column", "Identifier"),
    *("Alias", "Star", "Paren", "Literal", "Null", "Boolean", "Tuple", "And", "Or", "Not", "EQ"),
    *("NEQ", "LT", "LTE", "GT", "GTE", "Is", "In", "Add", "Sub", "Mul", "Div", "Mod", "Neg"),
    *("BitwiseAnd", "BitwiseRightShift", "Case", "If", "Coalesce", "Cast", "DataType"),
    *("DataTypeParam", "Array", "DPipe", "Count", "Sum", "Min", "Max", "ArrayAgg", "RowNumber"),
    *("Window", "WindowSpec", "Floor", "Anonymous", "RegexpLike"),
}
_FUNCTIONS = {"WD_MD5_60", "WD_MICROS", "WD_NANOS", "WD_FLOOR_1000", "WD_TEXT_MICROS"}


def _sqlglot() -> Any:
    """The package, which Spark alone needs."""
    try:
        import sqlglot
    except ModuleNotFoundError as error:
        raise DataError(install_hint("sqlglot", "spark")) from error
    return sqlglot


def _parsed(sql: str) -> Any:
    return _sqlglot().parse_one(sql, read="duckdb")


def check_constructs(sql: str) -> Any:
    """Parse a statement and hold it to the allow-list."""
    tree, exp = _parsed(sql), _sqlglot().exp
    for node in tree.walk():
        name = type(node).__name__
        if name not in _ALLOWED:
            raise ValueError(f"SQL construct {name} is not on the portable list: {node.sql()}")
        if isinstance(node, exp.ArrayAgg) and isinstance(node.this, exp.Order):
            raise ValueError(f"an order inside an aggregate is lost in translation: {node.sql()}")
        if isinstance(node, exp.ArrayAgg) and not isinstance(node.parent, exp.Window):
            raise ValueError(f"a grouped list has no order and does not spill: {node.sql()}")
        if isinstance(node, exp.Anonymous) and node.name.upper() not in _FUNCTIONS:
            raise ValueError(f"function {node.name} is not on the portable list")
    return tree


def for_spark(sql: str) -> str:
    """Translate a statement of the portable subset into Spark's SQL."""
    translated = check_constructs(sql).transform(_spark_functions)
    return str(translated.sql(dialect="spark"))


def _spark_functions(node: Any) -> Any:
    if not isinstance(node, _sqlglot().exp.Anonymous):
        return node
    inner = node.expressions[0].transform(_spark_functions).sql(dialect="spark")
    return _sqlglot().parse_one(_SPARK[node.name.upper()].replace("x!", inner), read="spark")


_SIGN = "GREATEST(INSTR(SUBSTR(x!, 12), '+'), INSTR(SUBSTR(x!, 12), '-'))"
_OFFSET = f"SUBSTR(x!, 11 + {_SIGN})"
# The session's zone is UTC: TIMESTAMP_NTZ is read as UTC. Nanoseconds are refused before. Of a text
# Spark reads the date and the time of day; the rest it would complete and round by its own rule.
_SPARK = {
    "WD_MD5_60": "CAST(CONV(SUBSTR(MD5(x!), 1, 15), 16, 10) AS BIGINT)",
    "WD_MICROS": "UNIX_MICROS(CAST(x! AS TIMESTAMP))",
    "WD_NANOS": "UNIX_MICROS(CAST(x! AS TIMESTAMP)) * 1000",
    "WD_FLOOR_1000": "((x! - ((x! % 1000) + 1000) % 1000) DIV 1000)",
    "WD_TEXT_MICROS": f"""CASE WHEN x! RLIKE '{TIME_TEXT}' THEN
  UNIX_MICROS(TRY_CAST(CONCAT(SUBSTR(x!, 1, 10), 'T', CASE WHEN SUBSTR(x!, 17, 1) = ':'
    THEN SUBSTR(x!, 12, 8) WHEN LENGTH(x!) > 10 THEN CONCAT(SUBSTR(x!, 12, 5), ':00')
    ELSE '00:00:00' END) AS TIMESTAMP))
  + CASE WHEN SUBSTR(x!, 20, 1) = '.' THEN CAST(SUBSTR(RPAD(
    REGEXP_EXTRACT(SUBSTR(x!, 21), '^([0-9]+)', 1), 6, '0'), 1, 6) AS BIGINT) ELSE 0 END
  - CASE WHEN {_SIGN} = 0 THEN 0 ELSE
    (CAST(SUBSTR({_OFFSET}, 2, 2) AS BIGINT) * 60 + CAST(CONCAT('0',
      CASE WHEN LENGTH({_OFFSET}) = 3 THEN '' ELSE RIGHT({_OFFSET}, 2) END) AS BIGINT))
    * CASE WHEN SUBSTR({_OFFSET}, 1, 1) = '-' THEN -60000000 ELSE 60000000 END END END""",
}


BATCH_ROWS = 65_536


class EngineError(DataError):
    """An engine's own error; a damaged input file may be its cause."""


class DuckDBEngine:
    """DuckDB in this process."""

    name = "duckdb"
    parallel = False  # One statement takes one partition

    def __init__(
        self, spill_folder: Path, *, memory_limit: str | None = None, threads: int | None = None
    ) -> None:
        try:
            import duckdb
        except ModuleNotFoundError as error:
            raise DataError(install_hint("duckdb", "join")) from error
        self._errors = duckdb.Error
        self.version = duckdb.__version__
        self._connection = duckdb.connect(":memory:")
        self._spill_folder = spill_folder
        spill_folder.mkdir(parents=True, exist_ok=True)
        self._set("temp_directory", str(spill_folder))
        if memory_limit is not None:
            self._set("memory_limit", memory_limit)
        if threads is not None:
            self._connection.execute(f"SET threads = {threads}")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute("SET preserve_insertion_order = false")
        # Rows wait for their partition's file, of each thread so many: half a million by default,
        # which is more than a pass over a partition needs.
        self._connection.execute("SET partitioned_write_flush_threshold = 16384")
        self._connection.execute("SET partitioned_write_max_open_files = 64")
        for macro in MACROS:
            self._connection.execute(macro)

    def _set(self, name: str, value: str) -> None:
        try:
            self._connection.execute(f"SET {name} = {literal(value)}")
        except self._errors as error:
            raise DataError(f"{name}: got {value!r}, which DuckDB refuses: {error}") from error

    def open_parquet(self, view: str, files: Sequence[Path]) -> None:
        """Make Parquet files readable as the relation ``view``."""
        listed = ", ".join(literal(glob.escape(str(file))) for file in files)
        self._create(view, f"SELECT * FROM read_parquet([{listed}], hive_partitioning = false)")

    def open_table(self, view: str, database: Path, table: str) -> pa.Schema:
        """Make a table of a DuckDB file readable; return its columns."""
        attached = f"wd_file_{view}"
        with self._translated(f"{database}, table {table!r}"):
            self._connection.execute(f"ATTACH {literal(str(database))} AS {attached} (READ_ONLY)")
            tables = self._connection.execute(
                f"SELECT table_name FROM information_schema.tables "
                f"WHERE table_catalog = {literal(attached)} AND table_schema = 'main'"
            ).fetchall()
            if table not in [name for (name,) in tables]:
                raise DataError(
                    f"{database}: table = {table!r}, but there is no such table; "
                    f"{nearest(table, [name for (name,) in tables])}"
                )
            self._create(view, f"SELECT * FROM {attached}.{quoted(table)}")
            empty = self._connection.sql(f"SELECT * FROM {view} LIMIT 0")
            return empty.to_arrow_table().schema

    def _create(self, view: str, select: str) -> None:
        with self._translated(f"opening {view}"):
            self._connection.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS {select}")

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a small result."""
        with self._translated("reading the inputs"):
            records: list[dict[str, Any]] = self._connection.sql(sql).to_arrow_table().to_pylist()
            return records

    def stage(self, view: str, sql: str, folder: Path, partitioned: bool) -> None:
        """Write a result into ``folder`` as Parquet and make it readable as ``view``."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        options = "FORMAT parquet, COMPRESSION lz4_raw"
        if partitioned:
            options += ", PARTITION_BY (wd_part), WRITE_PARTITION_COLUMNS true"
            target = folder
        else:
            target = folder / "all.parquet"
        with self._translated(f"staging {view}"):
            self._connection.execute(f"COPY ({sql}) TO {literal(str(target))} ({options})")
        self.open_staged(view, folder)

    def open_staged(self, view: str, *folders: Path) -> None:
        """Make what :meth:`stage` wrote readable again."""
        filled = [folder for folder in folders if any(folder.rglob("*.parquet"))]
        if not filled:  # A partition without rows; another has some.
            return
        patterns = ", ".join(
            literal(f"{glob.escape(str(folder))}/**/*.parquet") for folder in filled
        )
        # The partition stands in the folder names, so that a pass opens its own files only.
        split = any(filled[0].glob("wd_part=*"))
        options = "hive_partitioning = true, hive_types = {'wd_part': BIGINT}" if split else ""
        listed = f"[{patterns}]{', ' if split else ''}{options}"
        self._create(view, f"SELECT * FROM read_parquet({listed})")

    def stream(self, sql: str) -> Iterator[pa.RecordBatch]:
        """Yield an ordered result in batches."""
        with self._translated("joining"):
            yield from self._connection.sql(sql).to_arrow_reader(BATCH_ROWS)

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn the engine's errors into ours."""
        try:
            yield
        except WideDeepError:
            raise
        except self._errors as error:
            raise EngineError(explained(doing, str(error))) from error
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, pa.ArrowException):
                raise
            raise EngineError(explained(doing, str(error))) from error

    def close(self) -> None:
        """Close the connection and delete what was spilled."""
        self._connection.close()
        shutil.rmtree(self._spill_folder, ignore_errors=True)


def explained(doing: str, message: str) -> str:
    """Return an engine's message with what to do about it."""
    lowered = message.lower()
    if "no space left" in lowered or "disk full" in lowered or "file too large" in lowered:
        advice = "the disk is full: free some space, or name another spill_folder or output"
    elif "out of memory" in lowered or "memory limit" in lowered:
        advice = "raise memory_limit, or lower partition_rows so that a pass needs less"
    elif "could not convert" in lowered or "conversion" in lowered or "cast_invalid" in lowered:
        advice = "a value does not fit its column's type; correct the row"
    else:
        advice = "check the inputs ('widedeep check' samples them)"
    # What follows a blank line is the engine's own advice, in the engine's own terms.
    lines = message.strip().split("\n\n")[0].splitlines()
    file = re.search(r"^  file = (.+)$", message, re.MULTILINE)
    text = "; ".join([*lines, *([f"in {file[1]}"] if file else [])])
    return f"{doing}: {text}; {advice}"


_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.parquet.compression.codec": "snappy",
    # Staged results name their columns with care; files of one table share one schema.
    "spark.sql.parquet.mergeSchema": "false",
}
"""Settings of the join's own session, whatever those of other sessions are."""
_DEFAULTS = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
"""Settings of a Spark that the join itself starts."""


def check_spark() -> None:
    """Raise DataError if PySpark or Java is not installed here."""
    if importlib.util.find_spec("pyspark") is None:
        raise DataError(install_hint("pyspark", "spark"))
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise DataError("Spark needs Java 17, and there is no 'java' here; install a JDK 17")


def _cause(error: Exception) -> str:
    """Return the first line of Spark's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("An error occurred while calling"):
        return lines[1].removeprefix(": ")
    return lines[0] if lines else type(error).__name__


def _running_session() -> Any:
    """Return a session of the Spark that runs in this process, or None."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def _own_session(active: Any, master: str | None, options: Mapping[str, str]) -> Any:
    """Return a session beside one that runs, which keeps its settings, views and catalogue."""
    running = active.sparkContext.master
    if master not in (None, running):
        raise ConfigError(
            f"spark_master: got {master!r}, but Spark runs in this process on {running!r}; leave "
            "spark_master out to use it, or stop its session before the join"
        )
    session = active.newSession()
    for name, value in active.conf.getAll.items():
        if session.conf.isModifiable(name):
            session.conf.set(name, value)
    for name, value in {**_SETTINGS, **options}.items():
        if session.conf.isModifiable(name):
            session.conf.set(name, value)
        elif session.conf.get(name, None) != value:
            raise ConfigError(
                f"spark_options: {name} = {value!r} is set when Spark starts, and Spark runs in "
                f"this process with {session.conf.get(name, None)!r}; leave it out, or stop the "
                "session before the join"
            )
    session.catalog.setCurrentCatalog(active.catalog.currentCatalog())
    session.catalog.setCurrentDatabase(active.catalog.currentDatabase())
    return session


class SparkEngine:
    """Runs the join on Spark; workers must be able to read the files and the output's folder."""

    name = "spark"
    parallel = True

    def __init__(self, master: str | None, options: Mapping[str, str]) -> None:
        check_spark()
        import pyspark
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException

        self.version = pyspark.__version__
        self._errors = (PySparkException, Py4JJavaError)
        self._owned = False
        self._frames: dict[str, Any] = {}  # What was opened where it is, by its view
        try:
            self._session = self._start(master, options)
        except self._errors as error:
            where = "" if master is None else f" on {master}"
            raise DataError(
                f"starting Spark{where}: {_cause(error)}; check spark_master and spark_options, "
                "and that the cluster runs and is reached from here"
            ) from error

    def _start(self, master: str | None, options: Mapping[str, str]) -> Any:
        """Return a session of the join's own, in the Spark that runs here or in a new one."""
        from pyspark.sql import SparkSession

        active = _running_session()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if active is not None:
                return _own_session(active, master, options)
            builder = SparkSession.builder.appName("widedeep join")
            # Without one, the master is that of spark-submit or spark-defaults.conf, or local[*].
            if master is not None:
                builder = builder.master(master)
            for name, value in {**_DEFAULTS, **_SETTINGS, **dict(options)}.items():
                builder = builder.config(name, value)
            self._owned = True
            return builder.getOrCreate()

    def open_parquet(self, view: str, files: Sequence[Path]) -> None:
        """Make Parquet files readable as the relation ``view``."""
        for field in pq.read_schema(files[0]):
            if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
                raise DataError(
                    f"{files[0]}: column {field.name!r} has nanosecond timestamps, which Spark "
                    "does not read; write microseconds"
                )
        frame = self._do("opening", lambda: self._session.read.parquet(*map(str, files)))
        frame.createOrReplaceTempView(view)

    def open_address(self, view: str, address: Sequence[str] | str) -> pa.Schema:
        """Make Parquet files behind URLs, or a table of the catalogue, readable as ``view``."""
        from pyspark.sql.pandas.types import to_arrow_schema

        try:
            if isinstance(address, str):
                frame = self._session.table(address)
            else:
                for url in address:
                    self._refuse_table_format(url)
                # A column that only some files have is null in the others.
                reader = self._session.read.option("mergeSchema", "true")
                frame = reader.parquet(*address)
        except self._errors as error:
            where = address if isinstance(address, str) else ", ".join(address)
            raise DataError(
                f"{where}: Spark cannot open it ({_cause(error)}); check the name, and that Spark "
                "has its file system or catalogue (spark_options: spark.jars.packages and the like)"
            ) from error
        frame.createOrReplaceTempView(view)
        self._frames[view] = frame
        return to_arrow_schema(frame.schema, timezone="UTC")

    def _refuse_table_format(self, url: str) -> None:
        """Refuse the folder of a table format, whose deleted rows lie in its files too."""
        new_path = self._session._jvm.org.apache.hadoop.fs.Path
        folder = new_path(url)
        fs = folder.getFileSystem(self._session._jsparkSession.sessionState().newHadoopConf())
        while folder is not None:
            for mark, name, _ in TABLE_FORMATS:
                if fs.globStatus(new_path(folder, mark)):
                    raise DataError(
                        f"{folder.toString()}: the folder of a {name} table, whose log says which "
                        "of its files count; give it as table = 'CATALOGUE.SCHEMA.TABLE', which "
                        "Spark reads by the format's own package (spark_options)"
                    )
            folder = folder.getParent()

    def file_records(self, view: str) -> list[dict[str, Any]]:
        """Return path, bytes and time of the last change of each file of what was opened."""
        frame = self._frames[view]
        files = "_metadata.file_path AS path", "_metadata.file_size AS bytes"
        changed = "UNIX_MICROS(_metadata.file_modification_time) AS modified_us"
        try:
            select = frame.selectExpr(*files, changed).distinct().orderBy("path")
        except self._errors:  # A table that is not made of files.
            return [{"rows": frame.count()}]
        return [row.asDict() for row in self._do("listing the files", select.collect)]

    def open_table(self, view: str, database: Path, table: str) -> pa.Schema:
        """Refuse: Spark does not read DuckDB's files."""
        raise ConfigError(
            f"{database}: Spark does not read DuckDB files; write table {table!r} as Parquet, or "
            "use engine = 'duckdb'"
        )

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a small result."""
        records = self._do("reading the inputs", lambda: self._sql(sql).collect())
        return [row.asDict(recursive=True) for row in records]

    def _sql(self, sql: str) -> Any:
        return self._session.sql(for_spark(sql))

    def stage(self, view: str, sql: str, folder: Path, partitioned: bool) -> None:
        """Write a result into ``folder`` as Parquet and make it readable as ``view``."""
        shutil.rmtree(folder, ignore_errors=True)
        self._do(f"staging {view}", lambda: self._sql(sql).write.parquet(str(folder)))
        if not any(folder.glob("part-*")):
            raise DataError(
                f"{folder}: the workers wrote no file there that this machine sees; choose an "
                "output in a folder that all of them share"
            )
        self.open_staged(view, folder)

    def open_staged(self, view: str, *folders: Path) -> None:
        """Make what :meth:`stage` wrote readable again, as one relation."""
        self._session.read.parquet(*map(str, folders)).createOrReplaceTempView(view)

    def write_ordered(self, sql: str, folder: Path, *, by: str, rows: int, group: int) -> None:
        """Let the executors write an ordered result: a folder for each value of ``by``.

        The files of a folder are in order by name; ``rows`` is the most of a file, ``group`` of a
        row group.
        """
        shutil.rmtree(folder, ignore_errors=True)
        frame = self._do("joining", lambda: self._sql(sql))
        writer = frame.write.option("maxRecordsPerFile", rows).partitionBy(by)
        writer = writer.option("parquet.block.row.count.limit", group)
        self._do("writing the examples", lambda: writer.parquet(str(folder)))

    def query(self, doing: str, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a small result of SQL that is Spark's own."""
        records = self._do(doing, lambda: self._session.sql(sql).collect())
        return [row.asDict() for row in records]

    def column_types(self, view: str) -> dict[str, str]:
        """Return the type of each column of a relation, as Spark writes it."""
        return dict(self._session.table(view).dtypes)

    def write(self, doing: str, sql: str, folder: Path, by: Sequence[str]) -> None:
        """Write a result of SQL that is Spark's own, with a folder for each value of ``by``."""
        shutil.rmtree(folder, ignore_errors=True)
        frame = self._do(doing, lambda: self._session.sql(sql))
        self._do(doing, lambda: frame.write.partitionBy(*by).parquet(str(folder)))

    def checksums(self, folder: Path) -> dict[str, tuple[int, str]]:
        """Return size and SHA-256 of each Parquet file below a folder, read by the executors."""
        reader = self._session.read.format("binaryFile").option("pathGlobFilter", "*.parquet")
        files = reader.option("recursiveFileLookup", "true").load(str(folder))
        name = "SUBSTRING_INDEX(path, '/', -2) AS file"
        select = files.selectExpr(name, "length AS bytes", "SHA2(content, 256) AS sha256")
        records = self._do("checking the examples", select.collect)
        return {row["file"]: (row["bytes"], row["sha256"]) for row in records}

    def _do(self, doing: str, action: Any) -> Any:
        try:
            return action()
        except self._errors as error:
            raise EngineError(explained(doing, _cause(error))) from error

    def close(self) -> None:
        """Stop the session if this engine started it."""
        if self._owned:
            self._session.stop()


Engine: TypeAlias = DuckDBEngine | SparkEngine
"""Runs portable SQL over Parquet files."""
