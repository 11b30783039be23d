"""The finished dataset: its manifest, and the result that names its shards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import widedeep
from widedeep.data.join.config import SPLITS
from widedeep.data.join.examples_sql import output_columns
from widedeep.data.join.outcome import outcome_notes
from widedeep.data.join.plan import JoinPlan
from widedeep.data.join.report import write_report
from widedeep.data.join.resolve import Resolved
from widedeep.data.join.shards import Shard, split_rows
from widedeep.directory import atomic_directory, file_sha256
from widedeep.errors import DataError

__all__ = ["JoinResult", "open_dataset", "write_dataset"]

FORMAT = 1


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

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the logs and the examples."""
        return tuple(self.manifest.get("notes", ()))

    @property
    def rows(self) -> dict[str, int]:
        """The number of examples of each split."""
        return {name: split["rows"] for name, split in self.manifest["splits"].items()}


def write_dataset(
    resolved: Resolved,
    *,
    folder: Path,
    shards: Sequence[Shard],
    counts: Mapping[str, int],
    inputs: Sequence[Mapping[str, Any]],
    engine: Mapping[str, str],
    logged: Mapping[str, int],
    spill_dir: Path | None = None,
) -> JoinResult:
    """Put the shards of all passes, and the manifest into the output folder."""
    output = Path(resolved.plan.config.output).absolute()
    if not any(shard.split == "train" for shard in shards):
        raise DataError(
            "got no example for train; check [split] (boundaries, fractions) against the log's "
            f"range, and the counts: {dict(counts)}"
        )
    # What a killed process leaves lies beside the parts, and goes with them.
    with atomic_directory(output, within=folder.parent) as made:
        schema = _link(folder, shards, made)
        manifest = _manifest(resolved, shards, counts, inputs, engine, logged, schema)
        _write_json(made / "manifest.json", manifest)
        write_report(made, manifest, spill_dir=spill_dir)
    return JoinResult(output=output, manifest=manifest)


def _link(folder: Path, shards: Sequence[Shard], made: Path) -> pa.Schema:
    """Link the shards into the dataset, so that a failure here loses nothing."""
    for split in SPLITS:
        (made / split).mkdir()
    for shard in shards:
        part = int(Path(shard.file).name.split("-")[1])
        source = folder / str(part) / shard.file
        try:
            os.link(source, made / shard.file)
        except OSError:
            shutil.copyfile(source, made / shard.file)
    return pq.read_schema(made / next(shard.file for shard in shards if shard.split == "train"))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _manifest(
    resolved: Resolved,
    shards: Sequence[Shard],
    counts: Mapping[str, int],
    inputs: Sequence[Mapping[str, Any]],
    engine: Mapping[str, str],
    logged: Mapping[str, int],
    schema: pa.Schema,
) -> dict[str, Any]:
    plan = resolved.plan
    splits = {name: _split(listed) for name, listed in split_rows(shards)}
    sums = {name: {"rows": some["rows"], **some["labels"]} for name, some in splits.items()}
    return {
        "format": FORMAT,
        "kind": "widedeep examples",
        "version": widedeep.__version__,
        "engine": dict(engine),
        "config": plan.config.to_table(),
        "inputs": [dict(entry) for entry in inputs],
        "log_end_us": plan.log_end_us,
        "reach_us": {name: list(ends) for name, ends in resolved.reach_us.items()},
        "boundaries_us": list(plan.boundaries_us) if plan.boundaries_us else None,
        "columns": _columns(plan, schema, logged),
        "counts": _counts(resolved, shards, counts),
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
        roles |= {column.name: role for column in source.carried} if source else {}
    roles |= {feature.name: "history" for feature in plan.config.history}
    roles |= {label.name: "label" for label in plan.config.labels}
    return {**roles, "weight": "weight"}


def _split(shards: Sequence[Shard]) -> dict[str, Any]:
    filled = [shard for shard in shards if shard.first_us is not None]
    labels = list(shards[0].labels) if shards else []
    return {
        "rows": sum(shard.rows for shard in shards),
        "labels": {name: float(sum(shard.labels[name] for shard in shards)) for name in labels},
        "weight": float(sum(shard.weight for shard in shards)),
        "first_us": min((shard.first_us or 0 for shard in filled), default=None),
        "last_us": max((shard.last_us or 0 for shard in filled), default=None),
        "shards": [
            {
                "file": shard.file,
                "rows": shard.rows,
                "labels": {name: float(total) for name, total in shard.labels.items()},
                "bytes": shard.bytes,
                "sha256": shard.sha256,
                "first_us": shard.first_us,
                "last_us": shard.last_us,
            }
            for shard in shards
        ],
    }


def _counts(
    resolved: Resolved, shards: Sequence[Shard], counts: Mapping[str, int]
) -> dict[str, Any]:
    config = resolved.plan.config
    written = sum(shard.rows for shard in shards)
    left_out = counts["open_windows"] if config.open_windows == "drop" else 0
    complete = resolved.counts["impressions"].complete if config.impressions else None
    found: dict[str, Any] = {
        "impressions": counts["impressions"],
        "actions": counts["actions"],
        "null_keys": {name: found.null_keys for name, found in resolved.counts.items()},
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
        found["labels"][label.name] = {
            "actions": counts[f"relevant_{number}"],
            "orphaned": counts[f"orphaned_{number}"],
            "late": counts[f"late_{number}"],
        }
    return found


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
