"""The verb `report`: everything about a model on one page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widedeep.bundle import Bundle
from widedeep.cli.output import print_json, print_metrics, print_next, print_text
from widedeep.cli.parser import EXIT_OK, VerbParser, positive, threads, whole
from widedeep.cli.runs import (
    RunDirectory,
    bundle_path_of,
    held_out_rows,
    labelled_rows,
    local_model,
    served_bundle,
)
from widedeep.cli.validate import print_validate
from widedeep.data.reuse import reuse_inputs
from widedeep.data.sources import open_source
from widedeep.errors import ConfigError, DataError
from widedeep.evaluation.importance import IMPORTANCE_ROWS
from widedeep.gate.config import GateConfig
from widedeep.publish.lineage import is_models_directory
from widedeep.publish.publishing import PublishRecord
from widedeep.publish.storage import RECORDS, open_store
from widedeep.remote import is_url
from widedeep.report import Report, RunRecord, make_report

EXAMPLE = (
    "  widedeep report runs/ads                    # on the run's own test data\n"
    "  widedeep report runs/ads --data recent.parquet --against models --models models\n"
    "  widedeep report bundles/ads --data test.parquet -o ads.html\n"
    "  widedeep report models --data recent.parquet    # the serving version\n\n"
    "The page is self-contained: no scripts, no network. It can be mailed and printed."
)


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("model RUN_DIR|BUNDLE|MODELS", "run folder, bundle, or folder of versions")
    parser.option(
        "--data DATA",
        "labelled rows: paths, globs, or a run folder for its held-out rows (default: the test or "
        "validation data of the run)",
        nargs="+",
        default=[],
    )
    parser.option(
        "--against MODEL",
        "model to compare with: a bundle, a run folder, or a folder of versions (default: with "
        "--models, the version before, or the serving one)",
    )
    parser.option("--models MODELS", "folder of versions to show")
    parser.option(
        "-o --out PAGE",
        "HTML page to write, or a .json file of its values (default: report.html in the run "
        "folder, or here)",
    )
    parser.option(
        "--slices COLUMNS",
        "columns to slice by, separated by commas, or 'none' (default: categorical columns of few "
        "values)",
    )
    parser.option("--unit COLUMN", "column of users or requests, to resample as wholes")
    parser.option("--top N", "wide weights to show of each sign", type=positive, default=12)
    parser.option(
        "--importance-rows N",
        "rows on which columns are shuffled to see what each is worth; 0 leaves that out "
        f"(default: {IMPORTANCE_ROWS:,})",
        type=whole,
        default=IMPORTANCE_ROWS,
    )
    parser.option("--threads N", "threads (default: all)", type=threads)


@reuse_inputs()
def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    words, model = arguments.data, local_model(arguments.model)
    rows = labelled_rows(words, model) if words else None
    report = report_on(
        arguments.model,
        None if rows is None else rows.data,
        against=arguments.against,
        models=arguments.models,
        slices=_slices(arguments.slices),
        unit=arguments.unit,
        top=arguments.top,
        importance_rows=arguments.importance_rows,
        threads=arguments.threads or len(os.sched_getaffinity(0)),
    )
    if rows is not None and rows.note is not None:
        report = dataclasses.replace(report, notes=[*report.notes, f"measured on {rows.note}"])
    file = report.save(arguments.out or report_path(arguments.model))
    if arguments.json:
        print_json({"report": file, **report.to_json()})
    else:
        _print_report(report, file)
        if is_models_directory(model):
            print_next("serve", model)
        else:
            print_validate(model, words)
    return EXIT_OK


def _slices(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text == "none" else tuple(name.strip() for name in text.split(","))


def _print_report(report: Report, file: Path) -> None:
    columns: dict[str, dict[str, float]] = {report.name: {}}
    if report.against is not None:
        columns[report.against["name"]] = {}
    for head, entry in report.heads.items():
        for column, metrics in zip(columns.values(), entry["metrics"].values(), strict=False):
            column.update({f"{head}/{name}" if head else name: v for name, v in metrics.items()})
    print_metrics(columns)
    for text in report.notes:
        print_text(f"note: {text}")
    print_text(f"\nreport: {file}; open it in a browser")


def report_on(
    model: str | os.PathLike[str],
    data: Any | None = None,
    *,
    against: str | os.PathLike[str] | None = None,
    models: str | os.PathLike[str] | None = None,
    slices: tuple[str, ...] | None = None,
    unit: str | None = None,
    top: int = 12,
    importance_rows: int = IMPORTANCE_ROWS,
    threads: int = 1,
) -> Report:
    """Report on a run, a bundle, or the version of a folder that serves."""
    path = local_model(os.fspath(model))
    if is_url(model):
        bundle_path = bundle_path_of(path)
        models = models or (model if open_store(model).versions() else None)
    elif is_models_directory(path):
        bundle_path, models = served_bundle(path), models or path
    else:
        bundle_path = bundle_path_of(path)
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
            importance_rows=importance_rows,
            threads=threads,
        )

    if data is None and run is None and models is not None and "://" not in str(models):
        data = _judged_on(Path(models), bundle_path)
    if data is not None or run is None:
        return made(data)
    test_rows, why = _data_of(run)
    if test_rows is not None:
        return made(test_rows)
    report = made(None)
    return dataclasses.replace(report, notes=[*report.notes, why])


def report_path(model: str | os.PathLike[str]) -> Path:
    """Return the default path of a report: in the run folder, or here."""
    path = Path("report") if is_url(model) else Path(model)
    in_run = (path / "history.json").exists() and (path / "bundle").is_dir()
    return path / "report.html" if in_run else Path("report.html")


def _judged_on(models: Path, version: Path) -> list[str] | None:
    """Return the files that the gate judged a version on, if all of them exist."""
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
    best_step = _kept_step(history, run.read_metrics().get("valid", {}))
    return RunRecord(
        history=history,
        kept_step=best_step,
        warm_start=_read(run.warm_start),
        attributions=_read(run.attributions) or {},
    )


def _read(path: Path) -> Any | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{path}: got a damaged file ({error}); delete it to report without it"
        ) from error


def _kept_step(history: list[dict[str, Any]], best_metrics: Mapping[str, Any]) -> int | None:
    """Return the step of the best checkpoint, if it is not the last."""
    for row in history[:-1]:
        metrics = {k.removeprefix("valid/"): v for k, v in row.items() if k.startswith("valid/")}
        if metrics and metrics == best_metrics:
            return int(row["step"])
    return None


def _data_of(run: RunDirectory) -> tuple[Any | None, str]:
    """Return the run's test data, else its validation data; or the reason that there is none."""
    try:
        rows = held_out_rows(run)
    except ConfigError as error:
        return None, f"There are no rows to measure on: {error}"
    try:
        with open_source(rows.data):
            return rows.data, ""
    except DataError as error:
        return None, f"The data that the run's configuration names cannot be read: {error}"
