"""Writes the examples of a pass as Parquet shards, one set a split."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from widedeep.data.exact_sum import ExactSum
from widedeep.data.join.config import SPLITS
from widedeep.directory import file_sha256

ROW_GROUP = 65_536


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of examples."""

    split: str  # ``"train"``, ``"valid"`` or ``"test"``
    file: str  # Its path in the dataset
    rows: int  # Number of examples
    labels: dict[str, Fraction]  # Sum of each label, without rounding
    weight: Fraction  # Sum of the weights, likewise
    first_us: int | None  # The first event time; None if it has no row
    last_us: int | None  # The last event time
    bytes: int  # Its size
    sha256: str  # Of its contents


def write_part(
    batches: Iterable[pa.RecordBatch],
    folder: Path,
    part: int,
    *,
    labels: Sequence[str],
    shard_rows: int,
) -> list[Shard]:
    """Write the examples of a pass."""
    writers: dict[str, _SplitWriter] = {}
    for batch in batches:
        split_B = batch.column("wd_split").to_numpy(zero_copy_only=False)
        for code in np.unique(split_B).tolist():
            name = SPLITS[code]
            if name not in writers:
                writers[name] = _SplitWriter(name, folder, part, labels, shard_rows)
            rows = batch if (split_B == code).all() else batch.filter(pa.array(split_B == code))
            writers[name].add(rows)
    return [shard for name in SPLITS if name in writers for shard in writers[name].close()]


class _SplitWriter:
    """Collects a split's rows and writes them as row groups of a fixed size."""

    def __init__(
        self, split: str, folder: Path, part: int, labels: Sequence[str], shard_rows: int
    ) -> None:
        self.split, self.folder, self.part = split, folder, part
        self.labels, self.shard_rows = labels, shard_rows
        self.group = min(ROW_GROUP, shard_rows)
        self.held: list[pa.RecordBatch] = []
        self.held_rows = 0
        self.shards: list[Shard] = []
        self.writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.RecordBatch) -> None:
        self.held.append(rows)
        self.held_rows += rows.num_rows
        while self.held_rows >= self.group:
            self._write(self.group)

    def _write(self, count: int) -> None:
        table = pa.Table.from_batches(self.held)
        room = self.shard_rows - (self.rows if self.writer is not None else 0)
        count = min(count, room)
        rows, rest = table.slice(0, count), table.slice(count)
        self.held = rest.to_batches()
        self.held_rows = rest.num_rows
        self._append(rows)
        if self.rows >= self.shard_rows:
            self._finish()

    def _append(self, table: pa.Table) -> None:
        times = table.column("wd_event_time")
        examples = table.drop_columns(["wd_split", "wd_event_time"]).combine_chunks()
        if self.writer is None:
            self.file = f"{self.split}/part-{self.part:05d}-{len(self.shards):05d}.parquet"
            (self.folder / self.split).mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(
                self.folder / self.file, examples.schema, compression="snappy"
            )
            self.rows = 0
            self.sums = {name: ExactSum() for name in (*self.labels, "weight")}
            self.range: list[int] = []
        self.writer.write_table(examples, row_group_size=ROW_GROUP)
        self.rows += table.num_rows
        for name, total in self.sums.items():
            total.add(examples.column(name).to_numpy().astype(np.float64))
        bounds = pc.min_max(times).as_py()
        found = [*self.range, bounds["min"], bounds["max"]]
        self.range = [min(found), max(found)]

    def _finish(self) -> None:
        assert self.writer is not None
        self.writer.close()
        self.writer = None
        path = self.folder / self.file
        self.shards.append(
            Shard(
                split=self.split,
                file=self.file,
                rows=self.rows,
                labels={name: self.sums[name].value for name in self.labels},
                weight=self.sums["weight"].value,
                first_us=self.range[0],
                last_us=self.range[1],
                bytes=os.path.getsize(path),
                sha256=file_sha256(path),
            )
        )

    def close(self) -> list[Shard]:
        """Write what is held and return the shards."""
        while self.held_rows:
            self._write(self.held_rows)
        if self.writer is not None:
            self._finish()
        return self.shards


def read_part(path: Path) -> tuple[list[Shard], dict[str, Any]] | None:
    """Return a finished pass's shards and counts, or None if it is not finished or was changed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    shards = [_shard(told) for told in record["shards"]]
    for shard in shards:
        file = path.with_suffix("") / shard.file
        if not file.exists() or file_sha256(file) != shard.sha256:
            return None
    return shards, record["counts"]


def record_part(path: Path, shards: Sequence[Shard], counts: dict[str, Any]) -> None:
    """Write down that a pass is finished."""
    record = {"shards": [dataclasses.asdict(shard) for shard in shards], "counts": counts}
    temporary = path.with_suffix(".tmp")
    # A sum is told as a fraction: rounded, its shards would not add up to the whole.
    temporary.write_text(json.dumps(record, default=str), encoding="utf-8")
    os.replace(temporary, path)


def _shard(told: dict[str, Any]) -> Shard:
    labels = {name: Fraction(total) for name, total in told["labels"].items()}
    return Shard(**{**told, "labels": labels, "weight": Fraction(told["weight"])})


def split_rows(shards: Iterable[Shard]) -> Iterator[tuple[str, list[Shard]]]:
    """Yield each split with its shards."""
    listed = list(shards)
    for split in SPLITS:
        yield split, [shard for shard in listed if shard.split == split]
