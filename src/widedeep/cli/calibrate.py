"""The verb `calibrate`: a bundle's probabilities, corrected in each value of some features."""

from __future__ import annotations

import argparse
from pathlib import Path

from widedeep.cli.output import (
    check_free,
    free_path,
    number,
    print_json,
    print_next,
    print_table,
    print_text,
)
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK, VerbParser, threads
from widedeep.cli.runs import labelled_rows, load_bundle
from widedeep.evaluation.slice_calibration import SliceCalibration, calibrate_slices

EXAMPLE = (
    "  widedeep calibrate runs/ads recent.parquet --by country,device -o bundles/ads\n"
    "  widedeep calibrate models/7 recent.parquet --by campaign -o bundles/ads-7\n\n"
    "Exit code 1, and nothing written, if log loss of held-out halves of the data does not fall\n"
    "by more than chance."
)
NEXT = "widedeep validate bundles/ads --against models --data newer.parquet"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("model RUN_DIR|BUNDLE", "run folder or bundle")
    parser.option(
        "data DATA",
        "labelled rows that training has not seen: a path, a glob, or a run folder (default: the "
        "run's test data, else its validation data)",
        nargs="?",
    )
    parser.option(
        "--by FEATURES",
        "features of the wide part, separated by commas; each of their values is corrected",
        required=True,
    )
    parser.option("--head NAME", "binary head (default: the first)")
    parser.option("-o --out BUNDLE", "bundle to write (default: a free name in bundles)")
    parser.option(
        "--posterior ROWS",
        "fit the posterior of the last layer by these rows, shown and labelled, for a server that "
        "explores by thompson or linucb; without it the new bundle holds none",
    )
    parser.option("--force", "replace a bundle that is there")
    parser.option("--threads N", "threads", type=threads, default=1)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    model = Path(arguments.model)
    rows = labelled_rows([] if arguments.data is None else [arguments.data], model)
    bundle = load_bundle(model)
    out = Path(arguments.out or free_path(Path("bundles") / model.name))
    check_free(out, force=arguments.force)
    result = calibrate_slices(
        bundle,
        rows.data,
        [name.strip() for name in arguments.by.split(",")],
        out,
        head=arguments.head,
        overwrite=arguments.force,
        posterior=arguments.posterior,
        threads=arguments.threads,
    )
    code = EXIT_OK if result.better else EXIT_FAILED
    if arguments.json:
        document = {"bundle": out if result.better else None, "better": result.better}
        print_json({**document, **vars(result)})
        return code
    _print(result)
    if rows.note is not None:
        print_text(f"note: fitted on {rows.note}")
    if not result.better:
        print_text(
            f"not written: log loss of held-out halves falls by {result.gain:.6f} (standard error "
            f"{result.gain_error:.6f}), which may be chance"
        )
        return code
    if bundle.posterior and arguments.posterior is None:
        print_text(
            "note: the posterior of the last layer was that of the older weights, and is left out; "
            "--posterior ROWS fits it again"
        )
    print_text(f"bundle: {out}")
    print_next("validate", out, "--data", "newer.parquet", note="rows after those it was fitted on")
    return code


def _print(result: SliceCalibration) -> None:
    heads = ["held out", "log loss", "error by slice"]
    names = list(result.log_loss)
    rows = [[name, number(result.log_loss[name]), f"{result.error[name]:.2%}"] for name in names]
    print_table(heads, rows, right=heads[1:])
    print_text()
    heads = ["slice", "rows", "shift", "predicted / observed", "by slice"]
    rows = [
        [
            f"{entry['feature']} = {entry['value']}",
            f"{entry['rows']:,}",
            f"{entry['shift']:+.3f}",
            number(entry["now"]),
            number(entry["by slice"]),
        ]
        for entry in result.slices
    ]
    print_table(heads, rows, right=heads[1:])
    line = f"log odds = {result.slope:.4f} x logit {result.intercept:+.4f}"
    spread = ", ".join(f"{name} {value:.3f}" for name, value in result.spread.items())
    print_text(f"{line}; spread of the shifts: {spread}")
