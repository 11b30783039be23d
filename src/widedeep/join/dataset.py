"""The finished dataset: shards, manifest, result."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from widedeep._version import __version__
from widedeep.data.paths import JOIN_KIND
from widedeep.errors import DataError
from widedeep.files import atomic_directory, file_sha256, write_text_whole
from widedeep.join.config import SPLITS, JoinConfig
from widedeep.join.engines import Engine
from widedeep.join.plan import JoinPlan
from widedeep.join.report import Measures, measure, write_report
from widedeep.join.resolve import ResolvedJoin
from widedeep.join.sql import output_columns
from widedeep.page import page_frame

_LOST_MUCH = 0.5
_EXPECTED = 10
_SHOWN = 3


def outcome_notes(
    config: JoinConfig,
    counts: Mapping[str, int],
    splits: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Return what a person should know of a join's examples, or of a sample of them."""
    notes = []
    for number, label in enumerate(config.labels):
        if not any(sums.get(label.name) for sums in splits.values()):
            notes.append(f"label {label.name!r} is 0 in all examples: check its kinds and window")
        else:
            notes += _empty_splits(label.name, splits)
        actions = max(1, counts[f"relevant_{number}"])
        for kind, description in (
            ("orphaned", "had no impression of the item before them"),
            ("late", "came after the window"),
        ):
            fraction = counts[f"{kind}_{number}"] / actions
            if fraction > _LOST_MUCH:
                notes.append(f"label {label.name!r}: {fraction:.0%} of its actions {description}")
    for of in ("user", "item"):
        if f"{of}_hits" in counts:
            fraction = counts[f"{of}_hits"] / max(1, counts["impressions"])
            if fraction < 1 - _LOST_MUCH:
                notes.append(f"{of}_attributes: {fraction:.0%} of the impressions find a version")
    return notes


def _empty_splits(label: str, splits: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a note for each split without the label where the others' rate says there are many."""
    filled = {name: sums for name, sums in splits.items() if sums.get(label)}
    rows = sum(sums["rows"] for sums in filled.values())
    rate = sum(abs(sums[label]) for sums in filled.values()) / max(1, rows)
    return [
        f"label {label!r} is 0 in all {int(sums['rows']):,} examples of {name}, and {rate:.4g} on "
        "average in the other splits: does the log of actions reach that far?"
        for name, sums in splits.items()
        if name not in filled and rate * sums["rows"] >= _EXPECTED
    ]


def match_notes(engine: Engine, config: JoinConfig, counts: Mapping[str, int]) -> list[str]:
    """Return a note with ids of both logs for each label whose actions had no impression."""
    labels = [
        label.name
        for number, label in enumerate(config.labels)
        if counts[f"relevant_{number}"]
        and counts[f"relevant_{number}"] == counts[f"orphaned_{number}"]
    ]
    if not labels:
        return []
    examples = "; ".join(
        f"{of} ids such as {_ids(engine, of, 'wd_impressions')} in the impressions and "
        f"{_ids(engine, of, 'wd_actions')} in the actions"
        for of in ("user", "item")
    )
    return [
        f"no action of label {', '.join(map(repr, labels))} follows an impression of its user and "
        f"item ({examples}): check that both logs write ids and times alike"
    ]


def _ids(engine: Engine, of: str, view: str) -> str:
    rows = engine.rows(
        f"SELECT wd_{of} AS wd_id FROM {view} GROUP BY wd_{of} ORDER BY wd_{of} LIMIT {_SHOWN}"
    )
    return ", ".join(repr(row["wd_id"]) for row in rows)


ROW_GROUP = 65_536


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of examples."""

    split: str  # ``"train"``, ``"valid"`` or ``"test"``
    file: str  # Its path in the dataset
    rows: int  # Number of examples
    labels: dict[str, float]  # Sum of each label
    weight: float  # Sum of the weights
    first_us: int | None  # The first event time; None if it has no row
    last_us: int | None  # The last event time
    bytes: int  # Its size
    sha256: str  # Checksum of its contents


def write_part(
    batches: Iterable[pa.RecordBatch],
    folder: Path,
    partition: int,
    *,
    labels: Sequence[str],
    shard_rows: int,
) -> list[Shard]:
    """Write the examples of one part."""
    writers: dict[str, _SplitWriter] = {}
    for batch in batches:
        split_B = batch.column("wd_split").to_numpy(zero_copy_only=False)
        for code in np.unique(split_B).tolist():
            name = SPLITS[code]
            if name not in writers:
                writers[name] = _SplitWriter(name, folder, partition, labels, shard_rows)
            rows = batch if (split_B == code).all() else batch.filter(pa.array(split_B == code))
            writers[name].add(rows)
    return [shard for name in SPLITS if name in writers for shard in writers[name].close()]


class _SplitWriter:
    """Collects a split's rows and writes them as row groups of a fixed size."""

    def __init__(
        self, split: str, folder: Path, partition: int, labels: Sequence[str], shard_rows: int
    ) -> None:
        self.split, self.folder, self.partition = split, folder, partition
        self.labels, self.shard_rows = labels, shard_rows
        self.group = min(ROW_GROUP, shard_rows)
        self.pending: list[pa.RecordBatch] = []
        self.pending_rows = 0
        self.shards: list[Shard] = []
        self.writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.RecordBatch) -> None:
        self.pending.append(rows)
        self.pending_rows += rows.num_rows
        while self.pending_rows >= self.group:
            self._write(self.group)

    def _write(self, count: int) -> None:
        table = pa.Table.from_batches(self.pending)
        room = self.shard_rows - (self.rows if self.writer is not None else 0)
        count = min(count, room)
        rows, remaining = table.slice(0, count), table.slice(count)
        self.pending = remaining.to_batches()
        self.pending_rows = remaining.num_rows
        self._append(rows)
        if self.rows >= self.shard_rows:
            self._finish()

    def _append(self, table: pa.Table) -> None:
        times = table.column("wd_event_time")
        examples = table.drop_columns(["wd_split", "wd_event_time"]).combine_chunks()
        if self.writer is None:
            self.file = f"{self.split}/part-{self.partition:05d}-{len(self.shards):05d}.parquet"
            (self.folder / self.split).mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(
                self.folder / self.file, examples.schema, compression="snappy"
            )
            self.rows = 0
            self.sums = dict.fromkeys((*self.labels, "weight"), 0.0)
            self.range: list[int] = []
        self.writer.write_table(examples, row_group_size=ROW_GROUP)
        self.rows += table.num_rows
        for name in self.sums:
            self.sums[name] += float(examples.column(name).to_numpy().sum(dtype=np.float64))
        bounds = pc.min_max(times).as_py()
        ends = [*self.range, bounds["min"], bounds["max"]]
        self.range = [min(ends), max(ends)]

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
                labels={name: self.sums[name] for name in self.labels},
                weight=self.sums["weight"],
                first_us=self.range[0],
                last_us=self.range[1],
                bytes=os.path.getsize(path),
                sha256=file_sha256(path),
            )
        )

    def close(self) -> list[Shard]:
        """Write the pending rows and return the shards."""
        while self.pending_rows:
            self._write(self.pending_rows)
        if self.writer is not None:
            self._finish()
        return self.shards


def read_part(path: Path) -> tuple[list[Shard], dict[str, Any]] | None:
    """Return a finished part's shards and counts, or None if it is unfinished or was changed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    if record.get("format") != _PART_FORMAT:
        return None
    shards = [Shard(**shard) for shard in record["shards"]]
    for shard in shards:
        file = path.with_suffix("") / shard.file
        if not file.exists() or file_sha256(file) != shard.sha256:
            return None
    return shards, record["counts"]


def record_part(path: Path, shards: Sequence[Shard], counts: dict[str, Any]) -> None:
    """Record that a part is finished."""
    listed = [dataclasses.asdict(shard) for shard in shards]
    record = {"format": _PART_FORMAT, "shards": listed, "counts": counts}
    write_text_whole(path, json.dumps(record))


FORMAT = 1
_PART_FORMAT = 2  # of the record of a finished part; those of others are joined again


@dataclass(frozen=True, kw_only=True)
class JoinResult:
    """A finished dataset.

    Args:
        output: Its folder, with ``train/``, ``valid/``, ``test/``, ``manifest.json``,
            ``report.json`` and ``report.html``.
        manifest: What the manifest says.
    """

    output: Path
    manifest: dict[str, Any]

    def paths(self, split: str) -> list[str]:
        """Return the shards of a split, in order.

        Args:
            split: ``"train"``, ``"valid"`` or ``"test"``.
        """
        shards = self.manifest["splits"][split]["shards"]
        return [str(self.output / shard["file"]) for shard in shards]

    def __repr__(self) -> str:
        rows = ", ".join(f"{count:,} {name}" for name, count in self.rows.items())
        return f"JoinResult ({rows} examples)"

    def _repr_html_(self) -> str:
        return page_frame((self.output / "report.html").read_text(encoding="utf-8"))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the logs and the examples."""
        return tuple(self.manifest.get("notes", ()))

    @property
    def rows(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {name: split["rows"] for name, split in self.manifest["splits"].items()}


@dataclass(frozen=True, kw_only=True)
class FinishedJoin:
    """The finished parts and what the manifest says of them; no engine is needed any more."""

    resolved: ResolvedJoin  # The plan and what the inputs hold
    shards: Sequence[Shard]  # The shards of all scans
    counts: Mapping[str, int]  # What became of the rows
    inputs: Sequence[Mapping[str, Any]]  # Name, path, size and checksum of each input file
    engine: Mapping[str, str]  # Its name and version
    logged: Mapping[str, int]  # Rows of each history feature that the server had logged
    value_counts: Path | None = None  # The folder of counts for fit_schema, if there is one
    measures: Measures | None = None  # What the rows show; None: the shards are yet to be read


def write_dataset(finished: FinishedJoin, workdir: Path) -> JoinResult:
    """Put the finished parts together as the dataset, with its manifest and its report."""
    config = finished.resolved.plan.config
    output = Path(config.output).absolute()
    if not any(shard.split == "train" for shard in finished.shards):
        raise DataError(
            "got no example for train; check [split] (boundaries, fractions) against the log's "
            f"range, and the counts: {dict(finished.counts)}"
        )
    # What a killed process leaves lies beside the parts, and goes with them.
    with atomic_directory(output, within=workdir) as target:
        schema = _link(workdir / "parts", finished.shards, target)
        manifest = _manifest(finished, schema)
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (target / "manifest.json").write_text(text, encoding="utf-8")
        if finished.value_counts is not None:
            shutil.copytree(finished.value_counts, target / "counts", copy_function=os.link)
        spill_dir = workdir if config.spill_folder is None else Path(config.spill_folder)
        measures = finished.measures or measure(target, manifest, spill_dir=spill_dir)
        write_report(target, manifest, measures)
    return JoinResult(output=output, manifest=manifest)


def _link(folder: Path, shards: Sequence[Shard], target: Path) -> pa.Schema:
    """Link the shards into the dataset, so that a failure here loses nothing."""
    for split in SPLITS:
        (target / split).mkdir()
    for shard in shards:
        partition = int(Path(shard.file).name.split("-")[1])
        source = folder / str(partition) / shard.file
        try:
            os.link(source, target / shard.file)
        except OSError:
            shutil.copyfile(source, target / shard.file)
    return pq.read_schema(target / next(shard.file for shard in shards if shard.split == "train"))


def _manifest(finished: FinishedJoin, schema: pa.Schema) -> dict[str, Any]:
    resolved, counts = finished.resolved, finished.counts
    plan = resolved.plan
    splits = {
        name: _split([shard for shard in finished.shards if shard.split == name]) for name in SPLITS
    }
    sums = {name: {"rows": split["rows"], **split["labels"]} for name, split in splits.items()}
    return {
        "format": FORMAT,
        "kind": JOIN_KIND,
        "version": __version__,
        "engine": dict(finished.engine),
        "config": plan.config.to_table(),
        "inputs": [dict(entry) for entry in finished.inputs],
        "log_end_us": plan.log_end_us,
        "reach_us": {name: list(ends) for name, ends in resolved.reach_us.items()},
        "boundaries_us": list(plan.boundaries_us) if plan.boundaries_us else None,
        "columns": _columns(plan, schema, finished.logged),
        "counts": _counts(resolved, sum(shard.rows for shard in finished.shards), counts),
        "notes": [*resolved.notes, *outcome_notes(plan.config, counts, sums)],
        "splits": splits,
    }


def _columns(plan: JoinPlan, schema: pa.Schema, logged: Mapping[str, int]) -> list[dict[str, Any]]:
    roles = _roles(plan)
    history = {feature.name for feature in plan.config.history}
    columns = []
    for name in output_columns(plan):
        entry: dict[str, Any] = {
            "name": name,
            "type": str(schema.field(name).type),
            "role": roles[name],
        }
        if name in history:
            # What the server logged wins; the rest was computed here.
            entry["logged_rows"] = logged.get(name, 0)
            entry["source"] = "logged, else computed" if name in logged else "computed"
        columns.append(entry)
    return columns


def _roles(plan: JoinPlan) -> dict[str, str]:
    names = output_columns(plan)
    keys = ["request", "user", "item", *(["position"] if plan.has_position else []), "event time"]
    roles = dict(zip(names, keys, strict=False))
    roles |= {column.name: "context" for column in plan.context}
    for role, source in (
        ("user attribute", plan.user_attributes),
        ("item attribute", plan.item_attributes),
    ):
        roles |= {column.name: role for column in source.pass_through} if source else {}
    roles |= {feature.name: "history" for feature in plan.config.history}
    roles |= {label.name: "label" for label in plan.config.labels}
    return {**roles, "weight": "weight"}


def _split(shards: Sequence[Shard]) -> dict[str, Any]:
    filled = [shard for shard in shards if shard.first_us is not None]
    labels = list(shards[0].labels) if shards else []
    return {
        "rows": sum(shard.rows for shard in shards),
        "labels": {name: sum(shard.labels[name] for shard in shards) for name in labels},
        "weight": sum((shard.weight for shard in shards), 0.0),
        "first_us": min((shard.first_us or 0 for shard in filled), default=None),
        "last_us": max((shard.last_us or 0 for shard in filled), default=None),
        "shards": [
            {
                "file": shard.file,
                "rows": shard.rows,
                "labels": shard.labels,
                "bytes": shard.bytes,
                "sha256": shard.sha256,
                "first_us": shard.first_us,
                "last_us": shard.last_us,
            }
            for shard in shards
        ],
    }


def _counts(resolved: ResolvedJoin, written: int, counts: Mapping[str, int]) -> dict[str, Any]:
    config = resolved.plan.config
    left_out = counts["open_windows"] if config.open_windows == "drop" else 0
    complete = resolved.counts["impressions"].complete if config.impressions else None
    entries: dict[str, Any] = {
        "impressions": counts["impressions"],
        "actions": counts["actions"],
        "null_keys": {name: count.null_keys for name, count in resolved.counts.items()},
        "duplicates_dropped": 0 if complete is None else complete - counts["impressions"],
        "open_windows": counts["open_windows"],
        "open_windows_left_out": left_out,
        "sampled_or_split_out": counts["impressions"] - left_out - written,
        "examples": written,
        "labels": {},
        "attributes": {
            of: {"impressions": counts["impressions"], "found": counts[f"{of}_hits"]}
            for of in ("user", "item")
            if f"{of}_hits" in counts
        },
    }
    for number, label in enumerate(config.labels):
        entries["labels"][label.name] = {
            "actions": counts[f"relevant_{number}"],
            "orphaned": counts[f"orphaned_{number}"],
            "late": counts[f"late_{number}"],
        }
    return entries


def open_dataset(folder: str | os.PathLike[str]) -> JoinResult:
    """Open a dataset that a join made, and check every shard against its checksum.

    Args:
        folder: The dataset.

    Raises:
        DataError: If it is no dataset, or a shard is missing or changed.
    """
    output = Path(folder)
    try:
        text = (output / "manifest.json").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(
            f"{output}: no manifest.json; this is no folder that a join made"
        ) from error
    manifest: dict[str, Any] = json.loads(text)
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            file = output / shard["file"]
            if not file.exists() or file_sha256(file) != shard["sha256"]:
                raise DataError(f"{file}: missing or changed since the join; run the join again")
    return JoinResult(output=output, manifest=manifest)
