"""Spark as the engine: the same SQL, translated, on this machine or a cluster."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.join.engine import BATCH_ROWS, EngineError, explained
from widedeep.data.join.portable_sql import for_spark
from widedeep.errors import ConfigError, DataError, install_hint

_DEFAULTS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.parquet.compression.codec": "snappy",
    # Staged results name their columns with care; files of one table share one schema.
    "spark.sql.parquet.mergeSchema": "false",
}


def check_spark() -> None:
    """Raise DataError if PySpark or Java is not installed here."""
    if importlib.util.find_spec("pyspark") is None:
        raise DataError(install_hint("pyspark", "spark"))
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise DataError("Spark needs Java 17, and there is no 'java' here; install a JDK 17")


class SparkEngine:
    """Runs the join on Spark; workers must be able to read the files and the output's folder."""

    name = "spark"
    parallel = True

    def __init__(self, master: str, options: Mapping[str, str]) -> None:
        check_spark()
        import pyspark
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession

        self.version = pyspark.__version__
        self._errors = (PySparkException, Py4JJavaError)
        self._owned = SparkSession.getActiveSession() is None
        builder = SparkSession.builder.master(master).appName("widedeep join")
        for name, value in {**_DEFAULTS, **dict(options)}.items():
            builder = builder.config(name, value)
        # Workers run the same Python; nothing here does, but PySpark checks it.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._session = builder.getOrCreate()

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

    def open_table(self, view: str, database: Path, table: str) -> pa.Schema:
        """Refuse: Spark does not read DuckDB's files."""
        raise ConfigError(
            f"{database}: Spark does not read DuckDB files; write table {table!r} as Parquet, or "
            "use engine = 'duckdb'"
        )

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a small result."""
        found = self._do("reading the inputs", lambda: self._sql(sql).collect())
        return [row.asDict(recursive=True) for row in found]

    def _sql(self, sql: str) -> Any:
        return self._session.sql(for_spark(sql))

    def stage(self, view: str, sql: str, folder: Path, partitioned: bool) -> None:
        """Write a result into ``folder`` as Parquet and make it readable as ``view``."""
        shutil.rmtree(folder, ignore_errors=True)
        self._do(f"staging {view}", lambda: self._sql(sql).write.parquet(str(folder)))
        self.open_staged(view, folder)

    def open_staged(self, view: str, *folders: Path) -> None:
        """Make what :meth:`stage` wrote readable again, as one relation."""
        self._session.read.parquet(*map(str, folders)).createOrReplaceTempView(view)

    def stream(self, sql: str, folder: Path) -> Iterator[pa.RecordBatch]:
        """Yield an ordered result in batches, by way of Parquet files in ``folder``."""
        shutil.rmtree(folder, ignore_errors=True)
        self._do("joining", lambda: self._sql(sql).write.parquet(str(folder)))
        # Spark names the files of a sorted result in its order.
        for file in sorted(folder.glob("part-*.parquet")):
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(batch_size=BATCH_ROWS)
        shutil.rmtree(folder)

    def _do(self, doing: str, action: Any) -> Any:
        try:
            return action()
        except self._errors as error:
            lines = str(error).strip().splitlines()
            raise EngineError(explained(doing, lines[0] if lines else str(error))) from error

    def close(self) -> None:
        """Stop the session if this engine started it."""
        if self._owned:
            self._session.stop()
