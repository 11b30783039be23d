"""join_actions: from raw logs to a dataset of labelled examples, whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import widedeep
from widedeep.data.join import staging_sql
from widedeep.data.join.boundaries import time_boundaries
from widedeep.data.join.checks import check_staged
from widedeep.data.join.config import JoinConfig
from widedeep.data.join.counts_sql import part_counts
from widedeep.data.join.engine import DuckDBEngine, Engine, explained
from widedeep.data.join.examples_sql import ITEM_SIDE, examples, item_side
from widedeep.data.join.inputs import Opened, damaged_files_named
from widedeep.data.join.manifest import JoinResult, write_dataset
from widedeep.data.join.outcome import match_notes
from widedeep.data.join.plan import JoinPlan
from widedeep.data.join.resolve import Resolved, resolve
from widedeep.data.join.shards import Shard, read_part, record_part, write_part
from widedeep.data.join.steps import Steps
from widedeep.data.join.work_folder import work_folder
from widedeep.directory import file_sha256
from widedeep.errors import DataError

__all__ = ["JoinRun", "check_output", "open_engine", "run_join"]


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
    work = output.parent / f".{output.name}.join"
    try:
        with work_folder(work, resume=resume), Steps(enabled=progress) as steps:
            with open_engine(config, work) as engine:
                joined = JoinRun(engine, config, work, steps).run()
            # The engine and its memory are gone before the examples are counted.
            steps.start("writing the manifest and the report")
            return joined.write(work)
    except OSError as error:
        raise DataError(
            f"{explained(f'writing {output}', str(error))}; finished parts are kept in {work}, "
            "go on with resume (--resume)"
        ) from error


def check_output(output: Path) -> None:
    """Refuse to replace a folder that holds anything but a dataset of ours."""
    if not output.exists():
        return
    if output.is_dir() and (not any(output.iterdir()) or (output / "manifest.json").exists()):
        return
    raise DataError(
        f"output {output}: something else is there; name a new folder, or delete it first"
    )


@contextlib.contextmanager
def open_engine(config: JoinConfig, work: Path) -> Iterator[Engine]:
    """Start the engine that the configuration names; close it at the end."""
    engine: Engine
    if config.engine == "spark":
        from widedeep.data.join.spark_engine import SparkEngine

        engine = SparkEngine(config.spark_master, config.spark_options)
    else:
        spill = Path(config.spill_folder) if config.spill_folder else work
        engine = DuckDBEngine(
            spill / "spill", memory_limit=config.memory_limit, threads=config.threads
        )
    try:
        yield engine
    finally:
        engine.close()


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Finished parts, and what the manifest tells of them; the engine is no longer needed."""

    resolved: Resolved  # The plan and what the inputs hold
    shards: Sequence[Shard]  # Of all passes
    counts: Mapping[str, int]  # What became of the rows
    inputs: Sequence[Mapping[str, Any]]  # Name, path, size and checksum of each input file
    engine: Mapping[str, str]  # Its name and version
    logged: Mapping[str, int]  # Rows of each history feature that the server had logged

    def write(self, work: Path) -> JoinResult:
        """Put the parts in ``work`` together as the dataset."""
        spill = self.resolved.plan.config.spill_folder
        return write_dataset(
            self.resolved,
            folder=work / "parts",
            shards=self.shards,
            counts=self.counts,
            inputs=self.inputs,
            engine=self.engine,
            logged=self.logged,
            spill_dir=work if spill is None else Path(spill),
        )


@dataclass
class JoinRun:
    """One run: its engine, its place, and the steps in their order."""

    engine: Engine  # Runs the SQL
    config: JoinConfig  # What to do
    work: Path  # Folder for staged inputs and finished parts
    steps: Steps  # Told which step begins

    def run(self) -> Joined:
        """Take every step that needs the engine."""
        self.steps.start("checking the inputs")
        resolved = resolve(self.engine, self.config, self.work / "spool")
        inputs = _input_records(resolved.inputs)
        self._claim(inputs)
        with damaged_files_named(resolved.inputs):
            resolved = self.stage(resolved)
            shards, counts = self._parts(resolved)
            notes = (*resolved.notes, *match_notes(self.engine, self.config, counts))
            resolved = dataclasses.replace(resolved, notes=notes)
        return Joined(
            resolved=resolved,
            shards=shards,
            counts=counts,
            inputs=inputs,
            engine={"name": self.engine.name, "version": self.engine.version},
            logged=self._logged(resolved),
        )

    def _claim(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Check that what is finished belongs to this configuration and these inputs."""
        told = {
            "config": self.config.to_table(),
            "inputs": [{k: v for k, v in entry.items() if k != "path"} for entry in inputs],
            "version": widedeep.__version__,
            "engine": [self.engine.name, self.engine.version],
        }
        fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        place = self.work / "fingerprint"
        if place.exists() and place.read_text() != fingerprint:
            raise DataError(
                f"{self.work}: its finished parts were made from other inputs, another "
                "configuration or another version; run again without resume"
            )
        place.write_text(fingerprint)

    def stage(self, resolved: Resolved) -> Resolved:
        """Bring the inputs into one form; returns the plan with the boundaries of time."""
        plan = resolved.plan
        many = plan.partitions > 1
        self._staged("wd_actions", staging_sql.stage_actions(plan), many)
        if plan.impressions is None:
            self._staged("wd_impressions", staging_sql.stage_positives(plan), many)
        else:
            self._staged("wd_impressions", staging_sql.stage_impressions(plan), many)
        if plan.user_attributes is not None:
            self._staged("wd_user_versions", staging_sql.stage_versions(plan, "user"), many)
        if plan.item_attributes is not None:
            self._staged("wd_item_versions", staging_sql.stage_versions(plan, "item"), many)
        self.steps.start("checking the impressions")
        check_staged(self.engine, plan)
        plan = dataclasses.replace(plan, boundaries_us=time_boundaries(self.engine, plan))
        if item_side(plan, 0) is not None:
            self._stage_items(plan)
        return dataclasses.replace(resolved, plan=plan)

    def _stage_items(self, plan: JoinPlan) -> None:
        folders = []
        for number, part in enumerate(plan.passes):
            select = item_side(plan, part)
            assert select is not None
            view = f"{ITEM_SIDE}_{number}"
            self._staged(view, select, plan.partitions > 1)
            folders.append(self.work / "stage" / view)
        self.engine.open_staged(ITEM_SIDE, *folders)

    def _staged(self, view: str, sql: str, partitioned: bool) -> None:
        folder = self.work / "stage" / view
        done = self.work / "stage" / f"{view}.done"
        self.steps.start(f"staging {view.removeprefix('wd_').replace('_', ' ')}")
        if done.exists():
            self.engine.open_staged(view, folder)
            return
        self.engine.stage(view, sql, folder, partitioned)
        done.write_text("")

    def _parts(self, resolved: Resolved) -> tuple[list[Shard], dict[str, int]]:
        plan = resolved.plan
        folder = self.work / "parts"
        folder.mkdir(exist_ok=True)
        shards: list[Shard] = []
        totals: dict[str, int] = {}
        for number, part in enumerate(plan.passes):
            self.steps.start(f"joining part {number + 1} of {len(plan.passes)}")
            finished = read_part(folder / f"{number}.json")
            if finished is None:
                finished = self._part(plan, part, folder)
            shards += finished[0]
            for name, count in finished[1].items():
                totals[name] = totals.get(name, 0) + count
        return shards, totals

    def _part(
        self, plan: JoinPlan, part: int | None, folder: Path
    ) -> tuple[list[Shard], dict[str, int]]:
        number = part or 0
        place = folder / str(number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        batches = self.engine.stream(examples(plan, part), self.work / "stage" / f"part_{number}")
        labels = [label.name for label in plan.config.labels]
        rows = self.config.shard_rows
        shards = write_part(batches, place, number, labels=labels, shard_rows=rows)
        counts = {
            name: int(count or 0)
            for name, count in self.engine.rows(part_counts(plan, part))[0].items()
        }
        record_part(folder / f"{number}.json", shards, counts)
        return shards, counts

    def _logged(self, resolved: Resolved) -> dict[str, int]:
        """Return how many rows of each history feature were logged by the server."""
        history = {feature.name for feature in self.config.history}
        columns = [column for column in resolved.plan.context if column.name in history]
        if not columns:
            return {}
        counts = ", ".join(f"COUNT({column.inner}) AS {column.inner}" for column in columns)
        row = self.engine.rows(f"SELECT {counts} FROM wd_impressions")[0]
        return {column.name: int(row[column.inner]) for column in columns}


def _input_records(inputs: Sequence[Opened]) -> list[dict[str, Any]]:
    return [
        {
            "input": opened.name,
            "path": "(in memory)" if opened.spooled else str(file),
            "bytes": os.path.getsize(file),
            "sha256": file_sha256(file),
        }
        for opened in inputs
        for file in opened.files
    ]
