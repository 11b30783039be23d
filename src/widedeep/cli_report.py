"""The verb ``report``: everything about a model on one page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from widedeep.cli_output import print_json, print_metrics, print_text
from widedeep.cli_parser import GOOD, Verbs, add_verb, positive, threads

if TYPE_CHECKING:
    from widedeep.report import Report


def add_verbs(verbs: Verbs) -> None:
    """Add the verb ``report``."""
    parser = add_verb(
        verbs,
        "report",
        _report,
        "write one page about a model: quality, learning curves, calibration, slices, what it "
        "learned, inputs, sizes, versions",
        "  widedeep report runs/ads                    # on the run's own test data\n"
        "  widedeep report runs/ads --data recent.parquet --against models --models models\n"
        "  widedeep report bundles/ads --data test.parquet -o ads.html\n"
        "  widedeep report models --data recent.parquet    # the version that serves\n\n"
        "The page needs nothing else: no script, no network. It can be mailed and printed.",
    )
    parser.add_argument(
        "model", metavar="RUN_DIR|BUNDLE|MODELS", help="a run's folder, a bundle, or versions"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DATA",
        help="labelled rows: paths, globs, or a run's folder for the rows that it held out; "
        "default: the test (or validation) data of the run",
    )
    parser.add_argument(
        "--against",
        metavar="MODEL",
        help="compare with: a bundle, a run's folder, or a folder of versions; default: with "
        "--models, the version before it, or the one in service",
    )
    parser.add_argument("--models", metavar="MODELS", help="show the versions of this folder")
    parser.add_argument(
        "-o",
        "--out",
        metavar="PAGE",
        help="the page (a name in .json: its figures); default: report.html in the run's folder, "
        "or here",
    )
    parser.add_argument(
        "--slices",
        metavar="COLUMNS",
        help="columns to slice by: a,b; 'none'; default: categorical ones of few values",
    )
    parser.add_argument(
        "--unit", metavar="COLUMN", help="resample its values whole: users, requests"
    )
    parser.add_argument(
        "--top", type=positive, default=12, help="wide weights of each sign (default: 12)"
    )
    parser.add_argument("--threads", type=threads, help="threads to use (default: all)")


def _report(arguments: argparse.Namespace) -> int:
    from widedeep.commands.report import report_on, report_place
    from widedeep.commands.run_data import labelled_rows

    words, model = arguments.data, Path(arguments.model)
    report = report_on(
        arguments.model,
        labelled_rows(words, model).data if words else None,
        against=arguments.against,
        models=arguments.models,
        slices=_slices(arguments.slices),
        unit=arguments.unit,
        top=arguments.top,
        threads=arguments.threads or len(os.sched_getaffinity(0)),
    )
    file = report.save(arguments.out or report_place(arguments.model))
    if arguments.json:
        print_json({"report": file, **report.to_json()})
    else:
        _print_report(report, file)
    return GOOD


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
