"""The verb `score`: reads rows and writes them with their scores, in bounded memory."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.bundle import Scores
from widedeep.cli.output import count, next_line, print_json, say
from widedeep.cli.parser import EXIT_OK, VerbParser, threads
from widedeep.cli.runs import load_bundle
from widedeep.data.arrow_types import logical_type
from widedeep.data.batch import Batch, count_values
from widedeep.data.fragments import column_stream, origin_of
from widedeep.data.paths import check_output, input_paths
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.files import atomic_file
from widedeep.remote import open_bytes, output_file

EXAMPLE = (
    "  widedeep score runs/ads/bundle test.parquet -o scores.parquet --keep user_id,ad_id\n"
    '  echo \'{"age": 39, "job": "Sales"}\' | widedeep score runs/ads/bundle -\n\n'
    "The input is JSON lines (a file or '-'), Parquet, CSV or Arrow files; the output is JSON\n"
    "lines or Parquet. Absent keys and values that training has not seen are counted."
)

_CHUNK_ROWS = 16_384
Keep = Literal["all", "none"] | Sequence[str]
Chunk = tuple[Any, Scores]
STANDARD_STREAM = "-"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
Kept: TypeAlias = "list[dict[str, Any]] | pa.Table"
Writer: TypeAlias = Callable[[Kept, Scores], None]
Columns: TypeAlias = "list[tuple[str, NDArray[np.float64]]]"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("model BUNDLE", "bundle or run folder")
    parser.option("data INPUT", "file or glob, or '-' for standard input")
    parser.option(
        "-o --out OUTPUT",
        ".parquet or .jsonl file (default: JSON lines on standard output)",
        default="-",
    )
    parser.option(
        "--keep COLUMNS",
        "input columns to write: 'all' (default), 'none', or names separated by commas",
        default="all",
    )
    parser.option("--name NAME", "name of the score column", default="score")
    parser.option("--strict", "refuse JSON rows that lack a key (default: read it as null)")
    parser.option("--threads N", "threads", type=threads, default=1)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if arguments.json and arguments.out == "-":
        raise ConfigError(
            "got --json without -o FILE: it prints a summary where the rows would go; the rows are "
            "JSON lines without it"
        )
    keep = arguments.keep
    bundle = load_bundle(arguments.model)
    started = time.perf_counter()
    report = score_rows(
        bundle,
        arguments.data,
        arguments.out,
        keep=keep if keep in ("all", "none") else [name.strip() for name in keep.split(",")],
        name=arguments.name,
        strict=arguments.strict,
        threads=arguments.threads,
    )
    seconds = time.perf_counter() - started
    if arguments.json:
        print_json({"output": arguments.out, "seconds": seconds, **dataclasses.asdict(report)})
    else:
        _say_score(report, arguments.out, seconds)
        if arguments.out != "-":
            say(next_line("serve", arguments.model))
    return EXIT_OK


def _say_score(report: ScoreReport, out: str, seconds: float) -> None:
    destination = "" if out == "-" else f", written to {out}"
    say(f"scored {count(report.rows, 'row')} in {seconds:.1f} s{destination}")
    for counts, what in (
        (report.absent, "keys that rows lack, read as null"),
        (report.unseen, "values not in training"),
        (report.truncated, "lists longer than maxlen, of which one end was read"),
    ):
        if counts:
            say(f"note: {what}: " + ", ".join(f"{name} ({n:,})" for name, n in counts.items()))
    for key, column in report.misspelt.items():
        say(f"note: the key {key!r} is unknown; did you mean {column!r}?")


@dataclass(kw_only=True)
class ScoreReport:
    """Counts of scored rows, absent keys and unseen values."""

    rows: int = 0  # Rows scored
    # Rows given as JSON that lacked a column, by column; it was read as null
    absent: dict[str, int] = field(default_factory=dict)
    # Values that were not in training, by feature
    unseen: dict[str, int] = field(default_factory=dict)
    # Lists that were longer than their feature's ``maxlen``, by feature
    truncated: dict[str, int] = field(default_factory=dict)
    # Keys of JSON rows that look like a column that they lack, with it
    misspelt: dict[str, str] = field(default_factory=dict)


def score_rows(
    bundle: Bundle,
    data: str,
    out: str,
    *,
    keep: Keep = "all",
    name: str = "score",
    strict: bool = False,
    threads: int = 1,
) -> ScoreReport:
    """Score a file or a stream of rows and write each row with its score."""
    scoring = _Scoring(bundle, keep, name, threads)
    if STANDARD_STREAM not in (data, out):
        check_output(out, data)
    is_lines = data == STANDARD_STREAM or data.lower().endswith(JSON_SUFFIXES)
    with scored_output(out, bundle, name) as write:
        for rows, scores in scoring.lines(data, strict) if is_lines else scoring.table(data):
            write(rows, scores)
        if not scoring.report.rows:
            raise DataError(f"{_source_name(data)}: got no rows to score; give at least one")
    scoring.report.absent = dict(scoring.transform.absent)
    scoring.report.truncated = scoring.transform.truncated
    return scoring.report


class _Scoring:
    """Yields rows with their scores, and counts what they hold."""

    def __init__(self, bundle: Bundle, keep: Keep, name: str, threads: int) -> None:
        self._bundle, self._keep, self._name, self._threads = bundle, keep, name, threads
        self.transform = Transform(bundle.schema, threads=threads)
        self.report = ScoreReport()

    def _score(self, batch: Batch) -> Scores:
        bundle, unseen = self._bundle, self.report.unseen
        self.report.rows += len(batch)
        for name, (unseen_count, _) in count_values(bundle.schema, batch).items():
            if unseen_count:
                unseen[name] = unseen.get(name, 0) + unseen_count
        return bundle.scores_of(bundle.logits(batch, threads=self._threads))

    def _check_name(self, origin: str, names: Container[str]) -> None:
        if self._name in names:
            raise DataError(
                f"{origin}: holds a column {self._name!r} already; give the score another name "
                "(--name), or choose the columns to keep (--keep)"
            )

    def lines(self, data: str, strict: bool) -> Iterator[Chunk]:
        """Score the JSON lines of files, or of standard input."""
        for origin, lines in _opened_lines(data):
            first_row = 0
            for rows in _row_chunks(lines, origin):
                batch = self.transform.rows(rows, strict=strict, origin=origin, first_row=first_row)
                if self.transform.absent:
                    self.report.misspelt |= self.transform.misspelt(rows)
                scores = self._score(batch)
                first_row += len(rows)
                if self._keep == "all":
                    for row in rows:
                        self._check_name(origin, row)
                    yield rows, scores
                else:
                    names = [] if self._keep == "none" else self._keep
                    yield [{key: row.get(key) for key in names} for row in rows], scores

    def table(self, data: str) -> Iterator[Chunk]:
        """Score the rows of files with columns."""
        needed = self.transform.columns(targets=False)
        copied = [] if self._keep == "none" else self._keep
        columns = None if copied == "all" else [*needed, *copied]
        types = self._bundle.schema.input_types()
        with open_source(data, columns=columns, column_types=types) as source:
            present = source.arrow_schema.names
            for column in needed:
                if column not in present:
                    raise DataError(f"{data}: no column {column!r}; {nearest(column, present)}")
            names = present if copied == "all" else list(copied)
            self._check_name(data, names)
            for table in column_stream(source):
                origin, first_row = origin_of(table) or ("", 0)
                for start in range(0, table.num_rows, _CHUNK_ROWS):
                    chunk = table.slice(start, _CHUNK_ROWS)
                    batch = self.transform(
                        chunk, targets=False, origin=origin, first_row=first_row + start
                    )
                    yield chunk.select(names), self._score(batch)


def _source_name(data: str) -> str:
    return "standard input" if data == STANDARD_STREAM else data


def _opened_lines(data: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the files of JSON lines that are named, one after the other."""
    if data == STANDARD_STREAM:
        yield _source_name(data), sys.stdin.buffer
        return
    try:
        for path in input_paths(data) or [Path(data)]:
            with open_bytes(path) as file:
                yield str(path), file
    except FileNotFoundError as error:
        raise DataError(f"{data}: no such file; check the path") from error


def _row_chunks(lines: IO[bytes], origin: str) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (RecursionError, ValueError) as error:
            raise DataError(
                f"{origin}, line {number}: got text that is no JSON ({error}), expected one object "
                'a line such as {"age": 39}'
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{origin}, line {number}: got {type(row).__name__}, expected one object a line "
                'such as {"age": 39}'
            )
        rows.append(row)
        if len(rows) == _CHUNK_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


# ---- what is written ----------------------------------------------------------------------------


@contextlib.contextmanager
def scored_output(out: str, bundle: Bundle, name: str) -> Iterator[Writer]:
    """Give a function that writes rows and their scores."""
    heads = [head.name for head in bundle.model.heads]

    def columns(scores: Scores) -> Columns:
        if isinstance(scores, dict):
            return [(f"{name}/{head}", scores[head]) for head in heads]
        return [(name, scores)]

    if out == STANDARD_STREAM:
        yield lambda rows, scores: _write_lines(sys.stdout, rows, columns(scores))
        sys.stdout.flush()
        return
    try:
        with output_file(out) as path, atomic_file(_checked_file(path)) as temporary:
            if path.suffix.lower() in JSON_SUFFIXES:
                with open(temporary, "w", encoding="utf-8") as file:
                    yield lambda rows, scores: _write_lines(file, rows, columns(scores))
            else:
                types = {column: kind.arrow() for column, kind in bundle.schema.columns.items()}
                with contextlib.closing(_ParquetOut(temporary, types)) as parquet:
                    yield lambda rows, scores: parquet.write(rows, columns(scores))
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); make room, or choose another "
            "file; no partial file is left"
        ) from error


def _checked_file(path: Path) -> Path:
    if path.suffix.lower() not in (".parquet", *JSON_SUFFIXES):
        raise DataError(f"{path}: got the suffix {path.suffix!r}, expected .parquet or .jsonl")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no folder {path.parent}; make it first")
    return path


def _write_lines(file: IO[str], chunk: Kept, columns: Columns) -> None:
    rows = chunk if isinstance(chunk, list) else chunk.to_pylist()
    if not rows:
        rows = [{} for _ in columns[0][1]]
    lists = [(name, scores.tolist()) for name, scores in columns]
    for index, row in enumerate(rows):
        scored = {**row, **{name: scores[index] for name, scores in lists}}
        file.write(_line(scored))


def _line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text) + "\n"
    except ValueError:  # JSON lacks NaN and infinity
        return json.dumps(_without_nan(row), ensure_ascii=False, default=_as_text) + "\n"


def _as_text(value: Any) -> str:
    """Return text for values that JSON lacks: times, decimals, bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _ParquetOut:
    """A Parquet file whose columns are those of the first rows written."""

    def __init__(self, path: Path, types: Mapping[str, pa.DataType]) -> None:
        self._path = path
        self._types = types
        self._file: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            self._file.close()

    def write(self, chunk: Kept, columns: Columns) -> None:
        """Write rows with their scores."""
        arrays = self._rows_columns(chunk) if isinstance(chunk, list) else _plain_columns(chunk)
        for name, scores in columns:
            arrays[name] = pa.array(scores.tolist() if scores.ndim > 1 else scores)
        table = pa.table(arrays)
        if self._file is None:
            self._schema = table.schema
            self._file = pq.ParquetWriter(self._path, table.schema)
        try:
            self._file.write_table(_like(table, self._schema))
        except (KeyError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"rows hold other columns or types than those before them ({error}); write "
                ".jsonl, or keep only columns that all rows have (--keep)"
            ) from error

    def _rows_columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = dict.fromkeys(key for row in rows for key in row)
        return {name: self._column(name, [row.get(name) for row in rows]) for name in names}

    def _column(self, name: str, values: list[Any]) -> pa.Array:
        try:
            array = pa.array(values)
        except (pa.ArrowException, OverflowError) as error:
            raise DataError(
                f"column {name!r} holds values of several types ({error}), which Parquet cannot "
                "hold; write .jsonl, or leave the column out (--keep)"
            ) from error
        if pa.types.is_null(array.type) and name in self._types:
            return array.cast(self._types[name])
        return array


def _plain_columns(table: pa.Table) -> dict[str, Any]:
    """Dictionaries differ from fragment to fragment; plain columns do not."""
    types = [logical_type(column.type) for column in table.columns]
    return {
        name: column if column.type == plain else column.cast(plain)
        for name, column, plain in zip(table.column_names, table.columns, types, strict=True)
    }


def _like(table: pa.Table, schema: pa.Schema | None) -> pa.Table:
    assert schema is not None
    for name in table.column_names:
        if name not in schema.names:
            raise KeyError(f"{name} is new")
    rows = table.num_rows
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
