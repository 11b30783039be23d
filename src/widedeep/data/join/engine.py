"""What a join asks of an SQL engine, and DuckDB's answer."""

from __future__ import annotations

import contextlib
import glob
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from widedeep.data.join.plan import literal, quoted
from widedeep.data.join.portable_sql import MACROS
from widedeep.errors import DataError, WideDeepError, install_hint, nearest

BATCH_ROWS = 65_536


class EngineError(DataError):
    """What an engine itself complains of; a damaged file may be behind it."""


class Engine(Protocol):
    """Runs portable SQL over Parquet files."""

    name: str
    version: str
    parallel: bool
    """True if one statement takes all partitions, spread over many machines."""

    def open_parquet(self, view: str, files: Sequence[Path]) -> None:
        """Make Parquet files readable as the relation ``view``."""

    def open_table(self, view: str, database: Path, table: str) -> pa.Schema:
        """Make a table of a DuckDB file readable; return its columns."""

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of a small result."""

    def stage(self, view: str, sql: str, folder: Path, partitioned: bool) -> None:
        """Write a result into ``folder`` as Parquet and make it readable as ``view``."""

    def open_staged(self, view: str, *folders: Path) -> None:
        """Make what :meth:`stage` wrote readable again, as one relation."""

    def stream(self, sql: str, folder: Path) -> Iterator[pa.RecordBatch]:
        """Yield an ordered result in batches; ``folder`` may be used in between."""

    def close(self) -> None:
        """Let go of everything."""


class DuckDBEngine:
    """DuckDB in this process."""

    name = "duckdb"
    parallel = False

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
            there = self._connection.execute(
                f"SELECT table_name FROM information_schema.tables "
                f"WHERE table_catalog = {literal(attached)} AND table_schema = 'main'"
            ).fetchall()
            if table not in [name for (name,) in there]:
                raise DataError(
                    f"{database}: table = {table!r}, but there is no such table; "
                    f"{nearest(table, [name for (name,) in there])}"
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
            found: list[dict[str, Any]] = self._connection.sql(sql).to_arrow_table().to_pylist()
            return found

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

    def stream(self, sql: str, folder: Path) -> Iterator[pa.RecordBatch]:
        """Yield an ordered result in batches; nothing is written to ``folder``."""
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
    told = "; ".join([*lines, *([f"in {file[1]}"] if file else [])])
    return f"{doing}: {told}; {advice}"
