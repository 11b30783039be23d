"""A join of a sample of the users that leaves nothing behind: what would the whole one make?"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from widedeep.errors import DataError
from widedeep.join.config import SPLITS, JoinConfig
from widedeep.join.dataset import match_notes
from widedeep.join.engines import Engine
from widedeep.join.inputs import damaged_files_named
from widedeep.join.plan import JoinPlan, Source, mixed, text_or_integer
from widedeep.join.resolve import Resolved, resolve
from widedeep.join.run import JoinRun, Steps, check_output, open_engine
from widedeep.join.sql import examples, part_counts

SAMPLE_IMPRESSIONS = 50_000
_SALT_SAMPLE = 9
_MOST = 4
"""A sample of users may hold more impressions than were asked for; so many times more are read."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a join would make, told by a sample of its users."""

    resolved: Resolved  # The plan, and what the inputs hold: counted over all of their rows
    one_in: int  # One of so many users was looked at
    # Of each split the sample's rows, and the sum of each label
    splits: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, int]  # What became of the sample's impressions and actions
    examples: pa.Table  # The sample's examples


def dry_run(config: JoinConfig, *, rows: int = SAMPLE_IMPRESSIONS) -> DryRun:
    """Check a join against its inputs, and join a sample of the users, in DuckDB."""
    check_output(Path(config.output).absolute())
    with tempfile.TemporaryDirectory(prefix="widedeep-check-") as folder:
        work = Path(folder)
        config = dataclasses.replace(config, engine="duckdb")
        with Steps(enabled=False) as steps, open_engine(config, work) as engine:
            resolved = resolve(engine, config, work / "spool")
            one_in = _one_in(engine, resolved.plan, rows)
            with damaged_files_named(resolved.inputs):
                sample = dataclasses.replace(resolved, plan=_sample(resolved.plan, one_in))
                plan = JoinRun(engine, config, work, steps).stage(sample).plan
                table = _first_rows(engine.stream(examples(plan, 0), work), _MOST * rows)
                row = engine.rows(part_counts(plan, 0))[0]
                counts = {name: int(count or 0) for name, count in row.items()}
                notes = (*resolved.notes, *match_notes(engine, config, counts))
    return DryRun(
        resolved=dataclasses.replace(resolved, notes=notes),
        one_in=one_in,
        splits=_split_sums(table, [label.name for label in config.labels]),
        counts=counts,
        examples=table.drop_columns(["wd_split", "wd_event_time"]),
    )


def _one_in(engine: Engine, plan: JoinPlan, rows: int) -> int:
    """Return the share of the users that holds about so many impressions, and one at least."""
    log = plan.impressions or plan.actions
    each = 1 if plan.impressions else 1 + plan.config.negatives.per_positive
    one_in = max(1, -(-log.rows * each // rows))
    while one_in > 1:
        view = _thinned(log, plan.text["user"], one_in).view
        if engine.rows(f"SELECT COUNT(*) AS n FROM {view}")[0]["n"]:
            break
        one_in //= 2
    return one_in


def _sample(plan: JoinPlan, one_in: int) -> JoinPlan:
    """Return the plan with one of ``one_in`` users in its inputs, as one partition."""
    plan = dataclasses.replace(plan, partitions=1)
    if one_in == 1:
        return plan
    inputs = {"actions": plan.actions, "impressions": plan.impressions}
    inputs["user_attributes"] = plan.user_attributes
    thinned = {
        name: _thinned(source, plan.text["user"], one_in)
        for name, source in inputs.items()
        if source is not None
    }
    return dataclasses.replace(plan, **thinned)  # type: ignore[arg-type]


def _thinned(source: Source, is_text: bool, one_in: int) -> Source:
    user = text_or_integer(source.key["wd_user"], is_text)
    hashed = mixed(source.view, [user], _SALT_SAMPLE, "wd_thin")
    view = f"(SELECT * FROM ({hashed}) AS wd_thin_h WHERE wd_thin % {one_in} = 0) AS wd_thin_v"
    return dataclasses.replace(source, view=view)


def _first_rows(batches: Any, most: int) -> pa.Table:
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(some.num_rows for some in held) >= most:
            break
    if not held:
        raise DataError(
            "got no example from the sample of users; look at more rows, or check open_windows and "
            "[split] against the log's range"
        )
    return pa.Table.from_batches(held)


def _split_sums(table: pa.Table, labels: list[str]) -> dict[str, dict[str, float]]:
    found = {name: dict.fromkeys(["rows", *labels], 0.0) for name in SPLITS}
    grouped = table.group_by("wd_split").aggregate(
        [("wd_split", "count"), *((label, "sum") for label in labels)]
    )
    for row in grouped.to_pylist():
        sums = found[SPLITS[row["wd_split"]]]
        sums["rows"] = row["wd_split_count"]
        for label in labels:
            sums[label] = row[f"{label}_sum"]
    return found
