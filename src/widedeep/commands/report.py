"""The report on whatever a path names: a run, a bundle, or the version that serves."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widedeep.bundle import Bundle
from widedeep.commands.find_bundle import bundle_place, served_bundle
from widedeep.commands.run_data import held_out_rows
from widedeep.commands.run_directory import RunDirectory
from widedeep.data.sources import open_source
from widedeep.errors import ConfigError, DataError
from widedeep.gate.config import GateConfig
from widedeep.publish.lineage import is_models_directory
from widedeep.publish.record import RECORDS, PublishRecord
from widedeep.report import Report, RunRecord, make_report


def report_on(
    model: str | os.PathLike[str],
    data: Any | None = None,
    *,
    against: str | os.PathLike[str] | None = None,
    models: str | os.PathLike[str] | None = None,
    slices: tuple[str, ...] | None = None,
    unit: str | None = None,
    top: int = 12,
    threads: int = 1,
) -> Report:
    """Report on a run, a bundle, or the version of a folder that serves."""
    path = Path(model)
    if is_models_directory(path):
        bundle_path, models = served_bundle(path), models or path
    else:
        bundle_path = bundle_place(path)
        if models is None and (bundle_path.absolute().parent / RECORDS).is_dir():
            models = bundle_path.absolute().parent
    bundle = Bundle.load(bundle_path)
    run = _run_of(bundle)
    other = None if against is None else served_bundle(against)

    def made(rows: Any | None) -> Report:
        return make_report(
            bundle,
            rows,
            against=other,
            history=RunRecord() if run is None else _record(run),
            models=models,
            config=GateConfig(slices=slices, unit=unit),
            top=top,
            threads=threads,
        )

    if data is None and run is None and models is not None and "://" not in str(models):
        data = _judged_on(Path(models), bundle_path)
    if data is not None or run is None:
        return made(data)
    found, why = _data_of(run)
    if found is not None:
        return made(found)
    report = made(None)
    return dataclasses.replace(report, notes=[*report.notes, why])


def report_place(model: str | os.PathLike[str]) -> Path:
    """Return where a report goes unless a place is named: a run's folder, or here."""
    path = Path(model)
    in_run = (path / "history.json").exists() and (path / "bundle").is_dir()
    return path / "report.html" if in_run else Path("report.html")


def _judged_on(models: Path, version: Path) -> list[str] | None:
    """The files that the gate judged a version on, if they are all there."""
    file = models / RECORDS / f"{version.name}.json"
    if version.absolute().parent != models.absolute() or not file.is_file():
        return None
    record = PublishRecord.from_text(file.read_text(encoding="utf-8"), origin=str(file))
    inputs = (record.verdict or {}).get("data", {}).get("inputs", ())
    paths = [str(entry.get("path")) for entry in inputs]
    return paths if paths and all(os.path.isfile(path) for path in paths) else None


def _run_of(bundle: Bundle) -> RunDirectory | None:
    """The run that wrote the bundle, if it lies in its folder."""
    run = RunDirectory(bundle.path.absolute().parent)
    same = run.read_metrics().get("schema") == bundle.schema.fingerprint
    return run if bundle.path.name == run.bundle.name and same else None


def _record(run: RunDirectory) -> RunRecord:
    history = _read(run.history) or []
    kept = _kept_step(history, run.read_metrics().get("valid", {}))
    return RunRecord(history=history, kept_step=kept, warm_start=_read(run.warm_start))


def _read(path: Path) -> Any | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path}: got a damaged file ({error}); delete it to report without it"
        ) from error


def _kept_step(history: list[dict[str, Any]], kept: Mapping[str, Any]) -> int | None:
    """The step whose figures are those of the model that was kept, if it is not the last."""
    for row in history[:-1]:
        found = {k.removeprefix("valid/"): v for k, v in row.items() if k.startswith("valid/")}
        if found and found == kept:
            return int(row["step"])
    return None


def _data_of(run: RunDirectory) -> tuple[Any | None, str]:
    """What the run was tested on, or else validated on; or why there is nothing."""
    try:
        rows = held_out_rows(run)
    except ConfigError as error:
        return None, f"There are no rows to measure on: {error}"
    try:
        with open_source(rows.data):
            return rows.data, ""
    except DataError as error:
        return None, f"The data that the run's configuration names cannot be read: {error}"
