"""The verb `validate`: tests whether a model may serve."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from widedeep.cli.output import (
    address_of,
    count,
    number,
    print_json,
    print_next,
    print_table,
    print_text,
    say,
)
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK, VerbParser, threads, typed_options
from widedeep.cli.runs import (
    bundle_path_of,
    labelled_rows,
    local_model,
    run_of,
    served_bundle,
    verdict_address,
)
from widedeep.errors import BundleError, DataError
from widedeep.evaluation.statistics import LOSSES
from widedeep.gate import Verdict, load_gate_config, validate, verdict_path
from widedeep.gate.verdict_page import policy_rows
from widedeep.publish import bundle_in_service
from widedeep.publish.lineage import is_models_directory
from widedeep.remote import is_url, output_file

EXAMPLE = (
    "  widedeep validate runs/ads --against models --data recent.parquet\n"
    "  widedeep validate runs/ads --data recent.parquet    # a first model\n"
    "  widedeep validate runs/ads --data recent.parquet --set gate.unit=\"'user_id'\"\n\n"
    "Exit code 0 if the model may serve, 1 if it may not; the reasons are printed. The limits\n"
    "are in the section [gate] of --config."
)
NEXT = "widedeep publish runs/ads models"
MODELS = "models"
"""The folder of versions that a next step names where nobody named one."""


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("model CANDIDATE", "bundle or run folder")
    parser.option(
        "--against SERVING",
        "serving model to compare with: a bundle, a run folder, or a folder of versions (or its "
        "URL)",
    )
    parser.option(
        "--data DATA",
        "recent labelled rows: paths, globs, or a run folder for its held-out rows (default: those "
        "of CANDIDATE's run)",
        nargs="+",
        default=[],
    )
    parser.option("--config TOML", "file with a section [gate]")
    parser.option(
        "-o --out VERDICT",
        "JSON file for the verdict, and an .html page beside it (default: BUNDLE.verdict.json "
        "beside the bundle, also behind a URL)",
    )
    parser.option("--threads N", "threads (default: all)", type=threads)
    parser.set_option("gate.max_auc_drop=0.01")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    config = load_gate_config(arguments.config, arguments.set)
    candidate = bundle_path_of(arguments.model)
    rows = labelled_rows(arguments.data, local_model(arguments.model))
    threads = arguments.threads or len(os.sched_getaffinity(0))
    with _against(arguments.against) as serving:
        verdict = validate(candidate, serving, rows.data, config=config, threads=threads)
    verdict = _with_addresses(verdict, candidate, arguments.against)
    if rows.note is not None:
        verdict = dataclasses.replace(verdict, notes=(f"judged on {rows.note}", *verdict.notes))
    file = verdict_path(candidate) if arguments.out is None else Path(arguments.out)
    try:
        page = verdict.save(file)
    except OSError as error:
        raise BundleError(
            f"{file}: the verdict cannot be written ({error.strerror or error}); choose another "
            "file with --out"
        ) from error
    addresses = str(file), str(page)
    if arguments.out is None and is_url(address := address_of(candidate)):
        addresses = _sent(file, page, address)
    if arguments.json:
        print_json({"verdict": addresses[0], "page": addresses[1], **verdict.to_json()})
    else:
        _print_verdict(verdict, *addresses)
        _print_after_verdict(arguments, passed=verdict.passed)
    return EXIT_OK if verdict.passed else EXIT_FAILED


def _sent(file: Path, page: Path, address: str) -> tuple[str, str]:
    """Write a verdict and its page beside a bundle behind a URL; return where they are.

    There `publish` and `report` find it, on whatever machine.
    """
    try:
        for local in (page, file):
            with output_file(verdict_address(address, local.suffix)) as copy:
                shutil.copyfile(local, copy)
    except (DataError, OSError) as error:
        say(
            f"widedeep: {error}; the verdict is in {file} alone: name it, widedeep publish "
            f"--verdict {file}"
        )
        return str(file), str(page)
    return verdict_address(address), verdict_address(address, page.suffix)


def _with_addresses(verdict: Verdict, candidate: Path, against: str | None) -> Verdict:
    """Name what was fetched by its URL, not by its place in the cache."""
    serving = verdict.serving
    if serving is not None and against is not None and is_url(against):
        serving = {**serving, "path": against}
    own = {**verdict.candidate, "path": address_of(candidate)}
    return dataclasses.replace(verdict, candidate=own, serving=serving)


def print_validate(model: str | Path, data: Sequence[str]) -> None:
    """Print the command that validates a model against what the folder ``models`` serves."""
    against = ["--against", MODELS] if is_models_directory(Path(MODELS)) else []
    words = ["validate", str(model), *against, *(["--data", *data] if data else [])]
    if data or (not is_url(model) and run_of(Path(model)) is not None):
        print_next(*words)
    else:
        print_next(*words, "--data", "recent.parquet", note="your newest labelled rows")


def _print_after_verdict(arguments: argparse.Namespace, *, passed: bool) -> None:
    against = arguments.against
    if not passed:
        print_next("report", arguments.model, *typed_options(arguments, "--data", "--against"))
        return
    models = MODELS
    if against is not None and ("://" in against or is_models_directory(Path(against))):
        models = against
    words = [] if arguments.out is None else ["--verdict", arguments.out]
    print_next(
        *("publish", arguments.model, models, *words),
        note="" if against else f"{models}: the folder that servers follow",
    )


@contextlib.contextmanager
def _against(named: str | None) -> Iterator[Path | None]:
    """Yield the serving model's bundle; one behind a URL is fetched."""
    if named is None or "://" not in named:
        yield None if named is None else served_bundle(named)
        return
    with bundle_in_service(named) as serving:
        if serving is None:
            raise BundleError(
                f"{named}: nothing was published there yet; leave --against out to judge a first "
                "model on its own"
            )
        yield serving


def _print_verdict(verdict: Verdict, file: str, page: str) -> None:
    names = (*LOSSES, "auc", "gauc", "calibration")
    for head, entry in verdict.quality.items():
        rows = []
        for name in names:
            if name in entry["candidate"]:
                change = entry["changes"].get(name)
                if change is not None and math.isnan(change["worse"]):
                    change = None
                rows.append(
                    [
                        name if head == "score" else f"{head}/{name}",
                        number(entry["candidate"][name]),
                        number(entry.get("serving", {}).get(name)),
                        "" if change is None else f"{change['worse']:+.4f}",
                        "" if change is None else f"{change['low']:+.4f} to {change['high']:+.4f}",
                    ]
                )
        heads = ["metric", "candidate", "in service", "worse by", "95 % interval"]
        print_table(heads, rows, right=heads[1:])
    for head, values in verdict.policy.items():
        heads = [f"reward per request{'' if head == 'score' else f' ({head})'}", "candidate"]
        heads += ["in service"] if len(values["models"]) > 1 else []
        print_table(heads, policy_rows(values), right=heads[1:])
    for text in verdict.notes:
        print_text(f"note: {text}")
    for reason in verdict.reasons:
        print_text(f"stopped: {reason}")
    reasons = count(len(verdict.reasons), "reason")
    outcome = "it may serve" if verdict.passed else f"it may not serve: {reasons}"
    print_text(f"\n{verdict.candidate['path']}: {outcome}")
    print_text(f"verdict: {file}; look at {page}")
