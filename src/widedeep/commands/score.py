"""Rows in, rows with scores out, in the order they came, however many there are."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from widedeep.bundle import Bundle
from widedeep.bundle.scoring import Scores
from widedeep.commands.scored_output import JSON_SUFFIXES, STANDARD_STREAM, scored_output
from widedeep.data.batch import Batch, count_values
from widedeep.data.fragments import Source, column_stream, origin_of
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.errors import DataError, nearest

_CHUNK_ROWS = 16_384
Keep = Literal["all", "none"] | Sequence[str]
Chunk = tuple[Any, Scores]


@dataclass(kw_only=True)
class ScoreReport:
    """What was scored, and what in the rows the model did not know."""

    rows: int = 0  # Rows scored
    # Rows given as JSON that lacked a column, by column; it was read as null
    absent: dict[str, int] = field(default_factory=dict)
    # Values that were not in training, by feature
    unseen: dict[str, int] = field(default_factory=dict)
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
    report = ScoreReport()
    transform = Transform(bundle.schema, threads=threads)

    def score(batch: Batch) -> Scores:
        report.rows += len(batch)
        _count_unseen(bundle, batch, report.unseen)
        return bundle.scores_of(bundle.logits(batch, threads=threads))

    with contextlib.ExitStack() as stack:
        chunks: Iterator[Chunk]
        if data == STANDARD_STREAM or data.lower().endswith(JSON_SUFFIXES):
            lines = stack.enter_context(_open_lines(data))
            chunks = _score_lines(lines, _told(data), transform, score, keep, name, strict, report)
        else:
            chunks = _score_table(stack, bundle, data, transform, score, keep, name)
        writer = stack.enter_context(scored_output(out, bundle, name))
        for kept, scores in chunks:
            writer(kept, scores)
        if not report.rows:
            raise DataError(f"{_told(data)}: got no rows to score; give at least one")
    report.absent = dict(transform.absent)
    return report


def _told(data: str) -> str:
    return "standard input" if data == STANDARD_STREAM else data


def _count_unseen(bundle: Bundle, batch: Batch, unseen: dict[str, int]) -> None:
    for name, (count, _) in count_values(bundle.schema, batch).items():
        if count:
            unseen[name] = unseen.get(name, 0) + count


# ---- JSON lines in ------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_lines(data: str) -> Iterator[IO[bytes]]:
    if data == STANDARD_STREAM:
        yield sys.stdin.buffer
        return
    try:
        with open(data, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{data}: no such file; check the path") from error


def _score_lines(
    lines: IO[bytes],
    origin: str,
    transform: Transform,
    score: Callable[[Batch], Scores],
    keep: Keep,
    name: str,
    strict: bool,
    report: ScoreReport,
) -> Iterator[Chunk]:
    first_row = 0
    for rows in _row_chunks(lines, origin):
        batch = transform.rows(rows, strict=strict, origin=origin, first_row=first_row)
        if transform.absent:
            report.misspelt |= transform.misspelt(rows)
        scores = score(batch)
        first_row += len(rows)
        if keep == "all":
            for row in rows:
                if name in row:
                    raise _name_taken(origin, name)
            yield rows, scores
        else:
            names = [] if keep == "none" else keep
            yield [{key: row.get(key) for key in names} for row in rows], scores


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


def _name_taken(origin: str, name: str) -> DataError:
    return DataError(
        f"{origin}: holds a column {name!r} already; give the score another name (--name), or "
        "choose the columns to keep (--keep)"
    )


# ---- tables in ----------------------------------------------------------------------------------


def _score_table(
    stack: contextlib.ExitStack,
    bundle: Bundle,
    data: str,
    transform: Transform,
    score: Callable[[Batch], Scores],
    keep: Keep,
    name: str,
) -> Iterator[Chunk]:
    needed = transform.columns(targets=False)
    types = bundle.schema.input_types()
    columns = None if keep == "all" else [*needed, *(() if keep == "none" else keep)]
    source = stack.enter_context(open_source(data, columns=columns, column_types=types))
    present = source.arrow_schema.names
    for column in needed:
        if column not in present:
            raise DataError(f"{data}: no column {column!r}; {nearest(column, present)}")
    kept = present if keep == "all" else [] if keep == "none" else list(keep)
    if name in kept:
        raise _name_taken(data, name)
    yield from _score_fragments(source, kept, transform, score)


def _score_fragments(
    source: Source,
    kept: Sequence[str],
    transform: Transform,
    score: Callable[[Batch], Scores],
) -> Iterator[Chunk]:
    for table in column_stream(source):
        origin, first_row = origin_of(table) or ("", 0)
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            chunk = table.slice(start, _CHUNK_ROWS)
            batch = transform(chunk, targets=False, origin=origin, first_row=first_row + start)
            yield chunk.select(kept), score(batch)
