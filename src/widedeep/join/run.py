"""join_actions: from raw logs to a dataset of labelled examples, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from widedeep._version import __version__
from widedeep.errors import DataError, WideDeepError
from widedeep.files import file_sha256, held_folder
from widedeep.join import sql
from widedeep.join.config import SPLITS, JoinConfig
from widedeep.join.dataset import (
    FinishedJoin,
    JoinResult,
    Shard,
    match_notes,
    read_part,
    record_part,
    write_dataset,
    write_part,
)
from widedeep.join.distributed import EXAMPLES, measure_staged, write_counts, write_shards
from widedeep.join.engines import DuckDBEngine, Engine, SparkEngine, explained
from widedeep.join.inputs import OpenedInput, damaged_files_named
from widedeep.join.plan import JoinPlan, SqlInput, id_as_integer, in_partition, sql_hash
from widedeep.join.resolve import ResolvedJoin, resolve
from widedeep.join.sql import ITEM_SIDE, examples, item_side, labels_condition, part_counts

_BITS = 12
_WAYS = 1 << _BITS


def time_boundaries(engine: Engine, plan: JoinPlan) -> tuple[int, int] | None:
    """Return the times at which valid and test begin, or None where time does not split."""
    split = plan.config.split
    if split.by not in ("time", "both"):
        return None
    if split.boundaries_us is not None:
        return split.boundaries_us
    end = plan.log_end_us - plan.window_us if plan.config.open_windows == "drop" else None
    closed = "" if end is None else f" WHERE wd_time <= {end}"
    row = engine.rows(
        f"SELECT COUNT(*) AS n, MIN(wd_time) AS low, MAX(wd_time) AS high "
        f"FROM wd_impressions{closed}"
    )[0]
    if not row["n"]:
        return (0, 0)
    total, low, high = int(row["n"]), int(row["low"]), int(row["high"])
    train, valid, _ = split.fractions
    first = _quantile(engine, low, high, train * total)
    second = _quantile(engine, low, high, (train + valid) * total)
    return first, second


def _quantile(engine: Engine, low: int, high: int, target: float) -> int:
    """Return the first time before which at least ``wanted`` impressions lie, within 1e-6."""
    before, span = 0, high - low + 1
    shift = max(0, span.bit_length() - _BITS)
    while True:
        end = min(low + (_WAYS << shift), high + 1)
        rows = engine.rows(
            f"SELECT (wd_time - {low}) >> {shift} AS bucket, COUNT(*) AS n FROM wd_impressions "
            f"WHERE wd_time >= {low} AND wd_time < {end} GROUP BY 1 ORDER BY 1"
        )
        bucket = 0
        for row in rows:
            bucket = int(row["bucket"])
            if before + int(row["n"]) >= target - 1e-6:
                break
            before += int(row["n"])
        else:
            return end
        low += bucket << shift
        if shift == 0:
            return low + 1
        shift = max(0, shift - _BITS)


_SHOWN = 3


def check_staged(engine: Engine, plan: JoinPlan) -> None:
    """Refuse duplicate impressions, requests of two users, and two versions at one time."""
    if plan.impressions is not None:
        _check_duplicates(engine, plan)
        _check_requests(engine)
    for of in ("user", "item"):
        if (plan.user_attributes if of == "user" else plan.item_attributes) is not None:
            _check_versions(engine, of)


def _repeated_actions(engine: Engine, plan: JoinPlan) -> list[str]:
    """Return a note on actions that are written down more than once, whose values add up."""
    labels = [label for label in plan.config.labels if label.value]
    if plan.value_scale is None:
        return []
    keys = [name for name in plan.actions.key if name != "wd_value"]
    names = ", ".join([*keys, *plan.value_scale.columns])
    repeated = 0
    for partition in plan.scans:
        condition = f"{in_partition(partition)} AND {labels_condition(labels, plan.actions.key)}"
        (row,) = engine.rows(
            f"SELECT COALESCE(SUM(n - 1), 0) AS n FROM (SELECT COUNT(*) AS n FROM wd_actions WHERE "
            f"{condition} GROUP BY {names} HAVING COUNT(*) > 1) AS wd_r"
        )
        repeated += int(row["n"])
    if not repeated:
        return []
    listed = ", ".join(repr(label.name) for label in labels)
    return [
        f"actions: {repeated:,} are the same as another in user, item, time, kind and value, and "
        f"their values count again in {listed}; leave them out of the log if it tells one event "
        "twice"
    ]


def _check_duplicates(engine: Engine, plan: JoinPlan) -> None:
    keys = "wd_request, wd_item" + (", wd_position" if plan.has_position else "")
    duplicates: list[dict[str, Any]] = []
    for partition in plan.scans:
        duplicates += engine.rows(
            f"SELECT {keys}, COUNT(*) AS n FROM wd_impressions WHERE {in_partition(partition)} "
            f"GROUP BY {keys} HAVING COUNT(*) > 1 ORDER BY wd_request, wd_item LIMIT {_SHOWN}"
        )
    if duplicates:
        listed = "; ".join(
            ", ".join(f"{name.removeprefix('wd_')} {row[name]!r}" for name in keys.split(", "))
            + f" ({row['n']} times)"
            for row in duplicates[:_SHOWN]
        )
        raise DataError(
            f"impressions: got duplicates with the same {keys.replace('wd_', '')}: {listed}; "
            "correct the log, or set duplicates = 'drop' to keep the first of each"
        )


def _check_requests(engine: Engine) -> None:
    requests = engine.rows(
        "SELECT wd_request FROM wd_impressions GROUP BY wd_request "
        f"HAVING MIN(wd_user) <> MAX(wd_user) ORDER BY wd_request LIMIT {_SHOWN}"
    )
    if requests:
        listed = ", ".join(repr(row["wd_request"]) for row in requests)
        raise DataError(
            f"impressions: got requests with more than one user: {listed}; a request belongs to "
            "one user (leave 'request' out to make one of a user's impressions at one time)"
        )


def _check_versions(engine: Engine, of: str) -> None:
    versions = engine.rows(
        f"SELECT wd_{of}, wd_time, COUNT(*) AS n FROM wd_{of}_versions GROUP BY wd_{of}, wd_time "
        f"HAVING COUNT(*) > 1 ORDER BY wd_{of}, wd_time LIMIT {_SHOWN}"
    )
    if versions:
        listed = ", ".join(f"{row[f'wd_{of}']!r} ({row['n']} rows)" for row in versions)
        raise DataError(
            f"{of}_attributes: got several versions that begin at one time: {listed}; keep one, or "
            "name the column of their times with valid_from"
        )


class ProgressDisplay:
    """Names the running step and the time it has taken: live on a terminal, else a line a step."""

    def __init__(self, *, enabled: bool) -> None:
        self._console = Console(stderr=True)
        self._enabled = enabled
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._live = Progress(*columns, console=self._console)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._end_task()
            self._live.stop()

    def start(self, name: str) -> None:
        """Say that a step begins, and that the one before it is over."""
        if self._live is not None:
            self._end_task()
            self._task = self._live.add_task(name, total=1)
        elif self._enabled:
            seconds = time.perf_counter() - self._started
            self._console.print(f"[{seconds:7.1f} s] {name}", markup=False, highlight=False)

    def _end_task(self) -> None:
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=1)


@contextlib.contextmanager
def locked_workdir(workdir: Path, *, resume: bool) -> Iterator[None]:
    """Hold a folder for the block, and delete it if the block ends well."""
    workdir.mkdir(parents=True, exist_ok=True)
    busy = "another join is writing the same output; wait for it, or choose another output"
    with held_folder(workdir, busy):
        if not resume:
            _empty(workdir)
        fresh = not any(workdir.iterdir())
        try:
            yield
        except WideDeepError:
            if fresh and not any((workdir / "parts").glob("*.json")):
                shutil.rmtree(workdir, ignore_errors=True)
            raise
        shutil.rmtree(workdir, ignore_errors=True)


def _empty(workdir: Path) -> None:
    for entry in workdir.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def run_join(config: JoinConfig, *, resume: bool = False, progress: bool = False) -> JoinResult:
    """Make the dataset that a configuration asks for.

    Everything is written into a folder beside the output and renamed at the end. After a crash that
    folder stays, and ``resume`` goes on with what is finished.

    Args:
        config: What to do.
        resume: Skip finished parts of an earlier run over the same inputs.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: If the configuration does not fit the inputs.
        DataError: If an input cannot be used as it is, the disk is full, or another process is
            writing the same output.
    """
    output = Path(config.output).absolute()
    check_output(output)
    workdir = output.parent / f".{output.name}.join"
    try:
        with locked_workdir(workdir, resume=resume), ProgressDisplay(enabled=progress) as display:
            with open_engine(config, workdir) as engine:
                joined = JoinRun(engine, config, workdir, display).run()
            # The engine and its memory are gone before the examples are counted.
            display.start("writing the manifest and the report")
            return write_dataset(joined, workdir)
    except OSError as error:
        raise DataError(
            f"{explained(f'writing {output}', str(error))}; finished parts are kept in {workdir}, "
            "go on with resume (--resume)"
        ) from error


def check_output(output: Path) -> None:
    """Refuse to replace a folder that is neither empty nor a dataset of a join."""
    if not output.exists():
        return
    if output.is_dir() and (not any(output.iterdir()) or (output / "manifest.json").exists()):
        return
    raise DataError(
        f"output {output}: already exists and is no dataset; choose another folder or delete it"
    )


@contextlib.contextmanager
def open_engine(config: JoinConfig, workdir: Path) -> Iterator[Engine]:
    """Start the engine that the configuration names; close it at the end."""
    engine: Engine
    if config.engine == "spark":
        engine = SparkEngine(config.spark_master, config.spark_options)
    else:
        spill = Path(config.spill_folder) if config.spill_folder else workdir
        engine = DuckDBEngine(
            spill / "spill", memory_limit=config.memory_limit, threads=config.threads
        )
    try:
        yield engine
    finally:
        engine.close()


@dataclass
class JoinRun:
    """One run of a join, step by step."""

    engine: Engine  # Runs the SQL
    config: JoinConfig  # What to do
    workdir: Path  # Folder for staged inputs and finished parts
    display: ProgressDisplay  # Shows the running step

    def run(self) -> FinishedJoin:
        """Take every step that needs the engine."""
        self.display.start("checking the inputs")
        resolved = resolve(self.engine, self.config, self.workdir / "spool")
        inputs = self._input_records(resolved.inputs)
        self._claim(inputs)
        with damaged_files_named(resolved.inputs):
            resolved = self.stage(resolved)
            shards, counts = self._parts(resolved)
            measures = value_counts = None
            if isinstance(self.engine, SparkEngine):
                self.display.start("counting the values")
                stage, parts = self.workdir / "stage", self.workdir / "parts" / "0"
                measures = measure_staged(self.engine, resolved.plan, shards, stage / "counts")
                value_counts = write_counts(self.engine, resolved.plan, shards, parts, stage)
            notes = (*resolved.notes, *match_notes(self.engine, self.config, counts))
            resolved = dataclasses.replace(resolved, notes=notes)
        return FinishedJoin(
            resolved=resolved,
            shards=shards,
            counts=counts,
            inputs=inputs,
            engine={"name": self.engine.name, "version": self.engine.version},
            logged=self._logged(resolved),
            measures=measures,
            value_counts=value_counts,
        )

    def _input_records(self, inputs: Sequence[OpenedInput]) -> list[dict[str, Any]]:
        """Return what each input file was; of those that Spark opens, size and time for a sum."""
        records: list[dict[str, Any]] = []
        for opened in inputs:
            if isinstance(self.engine, SparkEngine) and opened.address:
                files = self.engine.file_records(opened.view)
                # The path of a table that is not made of files is its name.
                listed = [{"path": opened.address, **file} for file in files]
            else:
                listed = _local_records(opened)
            records += [{"input": opened.name, **record} for record in listed]
        return records

    def _claim(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Check that what is finished belongs to this configuration and these inputs."""
        identity = {
            "config": self.config.to_table(),
            "inputs": [{k: v for k, v in entry.items() if k != "path"} for entry in inputs],
            "version": __version__,
            "engine": [self.engine.name, self.engine.version],
        }
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        path = self.workdir / "fingerprint"
        if path.exists() and path.read_text() != fingerprint:
            raise DataError(
                f"{self.workdir}: its finished parts were made from other inputs, another "
                "configuration or another version; run again without resume"
            )
        path.write_text(fingerprint)

    def stage(self, resolved: ResolvedJoin) -> ResolvedJoin:
        """Stage the inputs; return the plan with the time boundaries of the splits."""
        plan = resolved.plan
        many = plan.partitions > 1
        self._staged("wd_actions", sql.stage_actions(plan), many)
        if plan.impressions is None:
            self._staged("wd_impressions", sql.stage_positives(plan), many)
        else:
            self._staged("wd_impressions", sql.stage_impressions(plan), many)
        if plan.user_attributes is not None:
            self._staged("wd_user_versions", sql.stage_versions(plan, "user"), many)
        if plan.item_attributes is not None:
            self._staged("wd_item_versions", sql.stage_versions(plan, "item"), many)
        self.display.start("checking the impressions")
        check_staged(self.engine, plan)
        plan = dataclasses.replace(plan, boundaries_us=time_boundaries(self.engine, plan))
        if item_side(plan, 0) is not None:
            self._stage_items(plan)
        notes = (*resolved.notes, *_repeated_actions(self.engine, plan))
        return dataclasses.replace(resolved, plan=plan, notes=notes)

    def _stage_items(self, plan: JoinPlan) -> None:
        folders = []
        for number, partition in enumerate(plan.scans):
            select = item_side(plan, partition)
            assert select is not None
            view = f"{ITEM_SIDE}_{number}"
            self._staged(view, select, plan.partitions > 1)
            folders.append(self.workdir / "stage" / view)
        self.engine.open_staged(ITEM_SIDE, *folders)

    def _staged(self, view: str, sql: str, partitioned: bool) -> None:
        folder = self.workdir / "stage" / view
        done = self.workdir / "stage" / f"{view}.done"
        self.display.start(f"staging {view.removeprefix('wd_').replace('_', ' ')}")
        if done.exists():
            self.engine.open_staged(view, folder)
            return
        self.engine.stage(view, sql, folder, partitioned)
        done.write_text("")

    def _parts(self, resolved: ResolvedJoin) -> tuple[list[Shard], dict[str, int]]:
        plan = resolved.plan
        folder = self.workdir / "parts"
        folder.mkdir(exist_ok=True)
        shards: list[Shard] = []
        totals: dict[str, int] = {}
        for number, partition in enumerate(plan.scans):
            self.display.start(f"joining part {number + 1} of {len(plan.scans)}")
            finished = read_part(folder / f"{number}.json")
            if finished is None:
                finished = self._part(plan, partition, folder)
            shards += finished[0]
            for name, count in finished[1].items():
                totals[name] = totals.get(name, 0) + count
        return shards, totals

    def _part(
        self, plan: JoinPlan, partition: int | None, folder: Path
    ) -> tuple[list[Shard], dict[str, int]]:
        number = partition or 0
        part_folder = folder / str(number)
        shutil.rmtree(part_folder, ignore_errors=True)
        part_folder.mkdir()
        if isinstance(self.engine, DuckDBEngine):
            labels = [label.name for label in plan.config.labels]
            batches = self.engine.stream(examples(plan, partition))
            rows = self.config.shard_rows
            shards = write_part(batches, part_folder, number, labels=labels, shard_rows=rows)
        else:
            self._staged(EXAMPLES, examples(plan, partition), partitioned=False)
            shards = write_shards(self.engine, plan, self.workdir / "stage", part_folder)
        counts = self.counts(plan, partition)
        record_part(folder / f"{number}.json", shards, counts)
        return shards, counts

    def counts(self, plan: JoinPlan, partition: int | None) -> dict[str, int]:
        """Return what became of the impressions and actions of a partition."""
        row = self.engine.rows(part_counts(plan, partition))[0]
        return {name: int(count or 0) for name, count in row.items()}

    def _logged(self, resolved: ResolvedJoin) -> dict[str, int]:
        """Return how many rows of each history feature were logged by the server."""
        history = {feature.name for feature in self.config.history}
        columns = [column for column in resolved.plan.context if column.name in history]
        if not columns:
            return {}
        counts = ", ".join(f"COUNT({column.inner}) AS {column.inner}" for column in columns)
        row = self.engine.rows(f"SELECT {counts} FROM wd_impressions")[0]
        return {column.name: int(row[column.inner]) for column in columns}


def _local_records(opened: OpenedInput) -> list[dict[str, Any]]:
    remote = [{"path": f.url, "bytes": f.size, "tag": f.tag} for f in opened.remote]
    if opened.remote and opened.spooled:
        return remote
    return remote + [
        {
            "path": "(in memory)" if opened.spooled else str(file),
            "bytes": os.path.getsize(file),
            "sha256": file_sha256(file),
        }
        for file in opened.files
    ]


SAMPLE_IMPRESSIONS = 50_000
_SALT_SAMPLE = 9
_MOST = 4
"""Sampled users may have more impressions than were asked for: up to so many times more."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a join would make, estimated from a sample of its users."""

    resolved: ResolvedJoin  # The plan, and what the inputs hold: counted over all of their rows
    one_in: int  # One of so many users was looked at
    # Of each split the sample's rows, and the sum of each label
    splits: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, int]  # What became of the sample's impressions and actions
    examples: pa.Table  # The sample's examples


def dry_run(config: JoinConfig, *, rows: int = SAMPLE_IMPRESSIONS) -> DryRun:
    """Check a join against its inputs, and join a sample of the users, in DuckDB."""
    check_output(Path(config.output).absolute())
    with tempfile.TemporaryDirectory(prefix="widedeep-check-") as folder:
        workdir = Path(folder)
        config = dataclasses.replace(config, engine="duckdb")
        with ProgressDisplay(enabled=False) as display, open_engine(config, workdir) as engine:
            resolved = resolve(engine, config, workdir / "spool")
            one_in = _one_in(engine, resolved.plan, rows)
            with damaged_files_named(resolved.inputs):
                sample = dataclasses.replace(resolved, plan=_sample(resolved.plan, one_in))
                run = JoinRun(engine, config, workdir, display)
                plan = run.stage(sample).plan
                assert isinstance(engine, DuckDBEngine)
                table = _first_rows(engine.stream(examples(plan, 0)), _MOST * rows)
                counts = run.counts(plan, 0)
                notes = (*resolved.notes, *match_notes(engine, config, counts))
    return DryRun(
        resolved=dataclasses.replace(resolved, notes=notes),
        one_in=one_in,
        splits=_split_sums(table, [label.name for label in config.labels]),
        counts=counts,
        examples=table.drop_columns(["wd_split", "wd_event_time"]),
    )


def _one_in(engine: Engine, plan: JoinPlan, rows: int) -> int:
    """Return n, where one of n users have about ``rows`` impressions, and at least one."""
    log = plan.impressions or plan.actions
    each = 1 if plan.impressions else 1 + plan.config.negatives.per_positive
    one_in = max(1, -(-log.rows * each // rows))
    while one_in > 1:
        view = _sampled_users(log, plan.text["user"], one_in).view
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
        name: _sampled_users(source, plan.text["user"], one_in)
        for name, source in inputs.items()
        if source is not None
    }
    return dataclasses.replace(plan, **thinned)  # type: ignore[arg-type]


def _sampled_users(source: SqlInput, is_text: bool, one_in: int) -> SqlInput:
    user = id_as_integer(source.key["wd_user"], is_text)
    hashed = sql_hash(source.view, [user], _SALT_SAMPLE, "wd_thin")
    view = f"(SELECT * FROM ({hashed}) AS wd_thin_h WHERE wd_thin % {one_in} = 0) AS wd_thin_v"
    return dataclasses.replace(source, view=view)


def _first_rows(batches: Any, most: int) -> pa.Table:
    collected: list[pa.RecordBatch] = []
    for batch in batches:
        collected.append(batch)
        if sum(batch.num_rows for batch in collected) >= most:
            break
    if not collected:
        raise DataError(
            "got no example from the sample of users; look at more rows, or check open_windows and "
            "[split] against the log's range"
        )
    return pa.Table.from_batches(collected)


def _split_sums(table: pa.Table, labels: list[str]) -> dict[str, dict[str, float]]:
    by_split = {name: dict.fromkeys(["rows", *labels], 0.0) for name in SPLITS}
    grouped = table.group_by("wd_split").aggregate(
        [("wd_split", "count"), *((label, "sum") for label in labels)]
    )
    for row in grouped.to_pylist():
        sums = by_split[SPLITS[row["wd_split"]]]
        sums["rows"] = row["wd_split_count"]
        for label in labels:
            sums[label] = row[f"{label}_sum"]
    return by_split
