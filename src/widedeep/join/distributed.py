"""Shards and statistics that Spark's executors make; the driver sees sums, and no example."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from widedeep.data.arrow_types import is_text
from widedeep.data.counts import FORMAT, KIND, SAMPLE_ROWS
from widedeep.data.row_sample import sampled_rows
from widedeep.errors import DataError
from widedeep.join.config import SPLITS
from widedeep.join.dataset import ROW_GROUP, Shard
from widedeep.join.engines import SparkEngine
from widedeep.join.plan import JoinPlan
from widedeep.join.report import MOST_GROUPS, TOP, Measures, time_bucket
from widedeep.join.sql import ordered_examples, output_columns, time_name

EXAMPLES = "wd_examples"
"""The view of the staged examples: their columns, ``wd_split`` and ``wd_part``, in no order."""
_VALUES = "wd_values"
_KINDS = ("text", "integer", "real")
_FILE = re.compile(r"wd_split=(\d+)/part-(\d+)-.*?(?:\.c(\d+))?\.[a-z.]*parquet")


def write_shards(engine: SparkEngine, plan: JoinPlan, stage: Path, folder: Path) -> list[Shard]:
    """Write the staged examples as shards into ``folder``, in the order of the other engine."""
    written = stage / "shards"
    rows = plan.config.shard_rows
    engine.write_ordered(
        ordered_examples(plan, EXAMPLES),
        written,
        by="wd_split",
        rows=rows,
        group=min(ROW_GROUP, rows),
    )
    sums = {row["wd_file"]: row for row in _shard_sums(engine, plan, written)}
    checksums = engine.checksums(written)
    shards: list[Shard] = []
    for split, file in sorted(_in_order(sums).items()):
        row, code = sums[file], split[0]
        number = sum(shard.split == SPLITS[code] for shard in shards)
        shard = Shard(
            split=SPLITS[code],
            file=f"{SPLITS[code]}/part-00000-{number:05d}.parquet",
            rows=int(row["wd_rows"]),
            labels={
                label.name: float(row[f"wd_label_{n}"])
                for n, label in enumerate(plan.config.labels)
            },
            weight=float(row["wd_weight"]),
            first_us=int(row["wd_first"]),
            last_us=int(row["wd_last"]),
            bytes=checksums[file][0],
            sha256=checksums[file][1],
        )
        (folder / shard.split).mkdir(exist_ok=True)
        (written / file).rename(folder / shard.file)
        shards.append(shard)
    return shards


def _in_order(files: Mapping[str, Any]) -> dict[tuple[int, int, int], str]:
    """Return files by split, task and place in the task: Spark's tasks sort one after the other."""
    places = {}
    for file in files:
        match = _FILE.fullmatch(file)
        if match is None:
            raise DataError(f"{file}: Spark wrote a file of an unknown name")
        split, task, place = match.groups(default="0")
        places[int(split), int(task), int(place)] = file
    return places


def _shard_sums(engine: SparkEngine, plan: JoinPlan, folder: Path) -> list[dict[str, Any]]:
    time = _quoted(time_name(plan))
    labels = "".join(
        f", SUM({_quoted(label.name)}) AS wd_label_{number}"
        for number, label in enumerate(plan.config.labels)
    )
    return engine.query(
        "counting the examples",
        f"SELECT SUBSTRING_INDEX(_metadata.file_path, '/', -2) AS wd_file, COUNT(*) AS wd_rows, "
        f"MIN({time}) AS wd_first, MAX({time}) AS wd_last, SUM(weight) AS wd_weight{labels} "
        f"FROM parquet.{_quoted(str(folder))} GROUP BY 1",
    )


def _quoted(name: str) -> str:
    """Return a column's name in Spark's own SQL."""
    return "`" + name.replace("`", "``") + "`"


def measure_staged(
    engine: SparkEngine, plan: JoinPlan, shards: Sequence[Shard], folder: Path
) -> Measures:
    """Return what the staged examples show; counts of all values are written to ``folder``."""
    types = engine.column_types(EXAMPLES)
    names = output_columns(plan)
    by = ["wd_split", "wd_column"]
    engine.write("counting the values", _value_counts(names, types), folder, by=by)
    engine.open_staged(_VALUES, folder)
    columns: dict[str, dict[str, Any]] = {name: {} for name in names}
    for split in SPLITS:
        rows = sum(shard.rows for shard in shards if shard.split == split)
        if rows:
            for name in names:
                columns[name][split] = {"rows": rows, "missing": 0, "different": 0, "top": []}
    for row in engine.query("counting the values", _SUMMARY):
        number = int(row["wd_column"])
        summary = columns[names[number % len(names)]][SPLITS[row["wd_split"]]]
        is_list = types[names[number % len(names)]].startswith("array")
        if number >= len(names) or not is_list:
            summary["missing"] = int(row["nulls"])
        if number < len(names):
            summary["different"] = int(row["different"])
            for kind in ("integer", "real"):
                low, high = row[f"{kind}_low"], row[f"{kind}_high"]
                if low is not None and "boolean" not in types[names[number]]:
                    summary["range"] = [low, high]
    for row in engine.query("counting the values", _most_frequent(len(names))):
        name = names[int(row["wd_column"])]
        value = next(row[kind] for kind in _KINDS if row[kind] is not None)
        text = str(bool(value)) if "boolean" in types[name] else str(value)
        columns[name][SPLITS[row["wd_split"]]]["top"].append([text, int(row["wd_count"])])
    return Measures(columns=columns, rates=_rates(engine, plan, shards))


def _value_counts(names: Sequence[str], types: Mapping[str, str]) -> str:
    """Return SQL that counts the values of every column, and the lengths of every list.

    A row holds ``wd_split``, ``text``, ``integer`` or ``real`` (all null: a null), ``wd_count`` and
    ``wd_column``, which of lists' lengths lies beyond those of columns.
    """
    selects = []
    for number, name in enumerate(names):
        column, kind = _quoted(name), types[name]
        source = EXAMPLES
        if kind.startswith("array<"):
            kind = kind.removeprefix("array<").removesuffix(">")
            length = f"CASE WHEN {column} IS NOT NULL THEN SIZE({column}) END"
            selects.append(_values(len(names) + number, length, "int", source))
            source = f"(SELECT wd_split, EXPLODE({column}) AS wd_value FROM {EXAMPLES})"
            column = "wd_value"
        selects.append(_values(number, column, kind, source))
    # Else each task would write a file into each of the folders.
    return (
        f"SELECT /*+ REBALANCE(wd_split, wd_column) */ {', '.join(_KINDS)}, COUNT(*) AS wd_count, "
        "wd_split, wd_column "
        f"FROM ({' UNION ALL '.join(selects)}) GROUP BY wd_split, {', '.join(_KINDS)}, wd_column"
    )


def _values(number: int, column: str, kind: str, source: str) -> str:
    own = {"string": "text", "float": "real", "double": "real"}.get(kind, "integer")
    sql_types = {"text": "STRING", "integer": "BIGINT", "real": "DOUBLE"}
    values = ", ".join(
        f"CAST({column if name == own else 'NULL'} AS {sql_types[name]}) AS {name}"
        for name in _KINDS
    )
    return f"SELECT wd_split, {values}, {number} AS wd_column FROM {source}"


_IS_VALUE = " OR ".join(f"{kind} IS NOT NULL" for kind in _KINDS)
_SUMMARY = f"""
SELECT wd_split, wd_column, COUNT(CASE WHEN {_IS_VALUE} THEN 1 END) AS different,
  SUM(CASE WHEN {_IS_VALUE} THEN 0 ELSE wd_count END) AS nulls,
  MIN(integer) AS integer_low, MAX(integer) AS integer_high,
  MIN(CASE WHEN NOT ISNAN(real) THEN real END) AS real_low,
  MAX(CASE WHEN NOT ISNAN(real) THEN real END) AS real_high
FROM {_VALUES} GROUP BY wd_split, wd_column"""


def _most_frequent(n_columns: int) -> str:
    order = f"wd_count DESC, {', '.join(_KINDS)}"
    return (
        f"SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY wd_split, wd_column "
        f"ORDER BY {order}) AS wd_place FROM {_VALUES} WHERE wd_column < {n_columns} AND "
        f"({_IS_VALUE})) WHERE wd_place <= {TOP} ORDER BY wd_split, wd_column, wd_place"
    )


def write_counts(
    engine: SparkEngine, plan: JoinPlan, shards: Sequence[Shard], parts: Path, stage: Path
) -> Path | None:
    """Put the counts of train's values together, as :mod:`widedeep.data.counts` reads them."""
    train = [shard for shard in shards if shard.split == "train"]
    if not train:
        return None
    folder = stage / "written_counts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names, rows = output_columns(plan), sum(shard.rows for shard in train)
    uncounted = [names[0], time_name(plan)]  # The request, and when it was
    for number in range(2 * len(names)):
        source = stage / "counts" / "wd_split=0" / f"wd_column={number}"
        if source.exists() and names[number % len(names)] not in uncounted:
            shutil.copytree(source, folder / "values" / source.name, copy_function=os.link)
    schema = pq.read_schema(parts / train[0].file).remove_metadata()
    pq.write_metadata(schema, folder / "schema.parquet")
    _write_sample(engine, schema, train, parts, stage, folder, set(uncounted))
    content = {
        "kind": KIND,
        "format": FORMAT,
        "rows": rows,
        "columns": names,
        "uncounted": uncounted,
        "sample_rows": SAMPLE_ROWS,
    }
    (folder / "counts.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return folder


def _write_sample(
    engine: SparkEngine,
    schema: pa.Schema,
    train: Sequence[Shard],
    parts: Path,
    stage: Path,
    folder: Path,
    uncounted: set[str],
) -> None:
    """Write the numbers of the rows that quantiles are learned from; Spark picks them out."""
    ends = np.cumsum([0, *(shard.rows for shard in train)])
    row_S = sampled_rows(int(ends[-1]), SAMPLE_ROWS, seed=0)
    shard_S = np.searchsorted(ends, row_S, "right") - 1
    files = pa.array([Path(shard.file).name for shard in train])
    rows = {"wd_row": row_S, "wd_file": files.take(shard_S), "wd_index": row_S - ends[shard_S]}
    pq.write_table(pa.table(rows), stage / "sampled.parquet")
    numbers = [
        f"s.{_quoted(field.name)}"
        for field in schema
        if not (is_text(field.type) or pa.types.is_list(field.type) or field.name in uncounted)
    ]
    own = "SUBSTRING_INDEX(_metadata.file_path, '/', -1) AS wd_file"
    engine.write(
        "sampling the examples",
        f"SELECT /*+ BROADCAST(r) */ r.wd_row, {', '.join(numbers)} FROM "
        f"(SELECT *, {own}, _metadata.row_index AS wd_index "
        f"FROM parquet.{_quoted(str(parts / 'train'))}) AS s "
        f"JOIN parquet.{_quoted(str(stage / 'sampled.parquet'))} AS r "
        "ON s.wd_file = r.wd_file AND s.wd_index = r.wd_index ORDER BY r.wd_row",
        folder / "sample",
        by=[],
    )


def _rates(engine: SparkEngine, plan: JoinPlan, shards: Sequence[Shard]) -> dict[str, Any]:
    """Return each label's weighted mean over time and by position."""
    time = _quoted(time_name(plan))
    if not shards:
        return {}
    low = min(shard.first_us or 0 for shard in shards)
    span = time_bucket(low, max(shard.last_us or 0 for shard in shards))
    groups = {"by_time": (f"({time} - {low}) DIV {span}", low, span)}
    log = plan.config.impressions
    if plan.has_position and log is not None and log.position is not None:
        groups["by_position"] = (_quoted(log.position), 0, 1)
    labels = plan.config.labels
    sums = "".join(
        f", SUM(weight * CAST({_quoted(label.name)} AS DOUBLE)) AS wd_label_{number}"
        for number, label in enumerate(labels)
    )
    rates: dict[str, Any] = {label.name: {} for label in labels}
    for key, (group, start, width) in groups.items():
        rows = engine.query(
            "counting the examples",
            f"SELECT {group} AS wd_group, COUNT(*) AS wd_rows, SUM(weight) AS wd_weight{sums} "
            f"FROM {EXAMPLES} WHERE {group} IS NOT NULL GROUP BY 1 ORDER BY 1 LIMIT {MOST_GROUPS}",
        )
        for number, label in enumerate(labels):
            rates[label.name][key] = [
                {
                    "from": start + int(row["wd_group"]) * width,
                    "rows": int(row["wd_rows"]),
                    "rate": float(row[f"wd_label_{number}"]) / float(row["wd_weight"]),
                }
                for row in rows
            ]
    return rates
