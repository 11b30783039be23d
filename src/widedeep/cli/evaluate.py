"""The verb `evaluate`: a model's quality on labelled data."""

from __future__ import annotations

import argparse
from pathlib import Path

from widedeep.cli.output import free_path, print_json, print_metrics, print_next, print_text
from widedeep.cli.parser import EXIT_OK, threads
from widedeep.cli.runs import labelled_rows, load_bundle
from widedeep.cli.validate import print_validate
from widedeep.evaluation.bundle_metrics import evaluate_bundle

EXAMPLE = (
    "  widedeep evaluate runs/ads test.parquet\n"
    "  widedeep evaluate runs/ads          # on the test data of its configuration"
)
NEXT = "widedeep export runs/ads -o bundles/ads"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options."""
    parser.add_argument("model", metavar="RUN_DIR|BUNDLE", help="run folder or bundle")
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="labelled data: a path, a glob, or a run folder (default: the run's test data, else "
        "its validation data)",
    )
    parser.add_argument(
        "--threads", type=threads, default=1, metavar="N", help="threads (default: 1)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    model = Path(arguments.model)
    words = [] if arguments.data is None else [arguments.data]
    rows = labelled_rows(words, model)
    bundle = load_bundle(model)
    metrics = evaluate_bundle(bundle, rows.data, threads=arguments.threads)
    if arguments.json:
        document = {"bundle": bundle.path, "data": rows.origin, "note": rows.note}
        print_json({**document, "metrics": metrics})
        return EXIT_OK
    print_metrics({rows.heading: metrics})
    if rows.note is not None:
        print_text(f"note: measured on {rows.note}")
    if bundle.path == model:
        print_validate(model, words)
    else:
        print_next("export", model, "-o", free_path(Path("bundles") / model.name))
    return EXIT_OK
