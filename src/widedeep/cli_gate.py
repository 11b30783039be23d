"""The verbs between training and serving: validate and publish."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widedeep.cli_output import (
    count,
    number,
    print_json,
    print_next,
    print_table,
    print_text,
    say,
)
from widedeep.cli_parser import GOOD, NO, Verbs, add_set, add_verb, threads
from widedeep.errors import BundleError

if TYPE_CHECKING:
    from widedeep.gate import Verdict
    from widedeep.publish import PublishedVersion

MODELS = "models"
"""The folder of versions that a next step names where nobody named one."""


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs ``validate`` and ``publish``."""
    _add_validate(verbs)
    _add_publish(verbs)


def _add_validate(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "validate",
        _validate,
        "judge a model before it serves: a dry run, its quality against the model in service, "
        "drift",
        "  widedeep validate runs/ads --against models --data recent.parquet\n"
        "  widedeep validate runs/ads --data recent.parquet    # the first: nothing is in service\n"
        "  widedeep validate runs/ads --data recent.parquet --set gate.unit=\"'user_id'\"\n\n"
        "Exit code 0: it may serve; 1: it may not, for the reasons given. The limits are in the\n"
        "section [gate] of --config.",
        then="widedeep publish runs/ads models",
    )
    parser.add_argument("model", metavar="CANDIDATE", help="a bundle, or a run's folder")
    parser.add_argument(
        "--against",
        metavar="SERVING",
        help="the model in service: a bundle, a run's folder, or a folder of versions (or its URL)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DATA",
        help="recent labelled rows: paths, globs, or a run's folder for the rows that it held out; "
        "default: those of CANDIDATE's run",
    )
    parser.add_argument("--config", metavar="TOML", help="a file with a section [gate]")
    parser.add_argument(
        "-o",
        "--out",
        metavar="VERDICT",
        help="the verdict's file; default: beside the bundle, BUNDLE.verdict.json; a page .html "
        "is written with it",
    )
    parser.add_argument("--threads", type=threads, help="threads to use (default: all)")
    add_set(parser)


def _validate(arguments: argparse.Namespace) -> int:
    from widedeep.commands.find_bundle import bundle_place
    from widedeep.commands.run_data import labelled_rows
    from widedeep.gate import load_gate_config, validate, verdict_path

    config = load_gate_config(arguments.config, arguments.set)
    candidate = bundle_place(arguments.model)
    rows = labelled_rows(arguments.data, Path(arguments.model))
    threads = arguments.threads or len(os.sched_getaffinity(0))
    with _against(arguments.against) as serving:
        verdict = validate(candidate, serving, rows.data, config=config, threads=threads)
    if rows.note is not None:
        verdict = dataclasses.replace(verdict, notes=(f"judged on {rows.note}", *verdict.notes))
    file = verdict_path(candidate) if arguments.out is None else Path(arguments.out)
    try:
        page = verdict.save(file)
    except OSError as error:
        raise BundleError(
            f"{file}: the verdict cannot be written ({error.strerror or error}); name another "
            "place with --out"
        ) from error
    if arguments.json:
        print_json({"verdict": file, "page": page, **verdict.to_json()})
    else:
        _print_verdict(verdict, file, page)
        _print_after_verdict(arguments, passed=verdict.passed)
    return GOOD if verdict.passed else NO


def print_validate(model: Path, data: Sequence[str]) -> None:
    """Print the command that judges a model, against what the folder ``models`` serves."""
    from widedeep.commands.run_data import run_of
    from widedeep.publish.lineage import is_models_directory

    against = ["--against", MODELS] if is_models_directory(Path(MODELS)) else []
    words = ["validate", str(model), *against, *(["--data", *data] if data else [])]
    if data or run_of(model) is not None:
        print_next(*words)
    else:
        print_next(*words, "--data", "recent.parquet", note="your newest labelled rows")


def _print_after_verdict(arguments: argparse.Namespace, *, passed: bool) -> None:
    from widedeep.publish.lineage import is_models_directory

    against, verdict = arguments.against, arguments.out
    if not passed:
        data = ["--data", *arguments.data] if arguments.data else []
        print_next("report", arguments.model, *data, *(["--against", against] if against else []))
        return
    models = MODELS
    if against is not None and ("://" in against or is_models_directory(Path(against))):
        models = against
    words = [] if verdict is None else ["--verdict", verdict]
    print_next(
        *("publish", arguments.model, models, *words),
        note="" if against else f"{models}: the folder that servers follow",
    )


@contextlib.contextmanager
def _against(named: str | None) -> Iterator[Path | None]:
    """Give the model in service; that of a URL is fetched."""
    from widedeep.commands.find_bundle import served_bundle
    from widedeep.publish import bundle_in_service

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


def _print_verdict(verdict: Verdict, file: Path, page: Path) -> None:
    names = ("log_loss", "squared_error", "auc", "gauc", "calibration")
    for head, entry in verdict.quality.items():
        rows = []
        for name in names:
            if name in entry["candidate"]:
                change = entry["changes"].get(name)
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
    for text in verdict.notes:
        print_text(f"note: {text}")
    for reason in verdict.reasons:
        print_text(f"stopped: {reason}")
    told = "it may serve" if verdict.passed else f"it may not serve: {_reasons(verdict)}"
    print_text(f"\n{verdict.candidate['path']}: {told}")
    print_text(f"verdict: {file}; look at {page}")


def _reasons(verdict: Verdict) -> str:
    return count(len(verdict.reasons), "reason")


def _add_publish(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "publish",
        _publish,
        "make a model that passed the gate the newest version of a folder that servers follow",
        "  widedeep publish runs/ads models\n"
        "  widedeep publish runs/ads s3://bucket/models --verdict verdict.json\n"
        '  widedeep publish runs/ads models --force --reason "the first model"\n\n'
        "It appears whole or not at all. 'widedeep inspect models' shows where each version came\n"
        "from, 'widedeep rollback models' goes back.",
        then="widedeep serve models",
    )
    parser.add_argument("model", metavar="CANDIDATE", help="a bundle, or a run's folder")
    parser.add_argument("models", metavar="MODELS", help="the folder of versions, or its URL")
    parser.add_argument(
        "--verdict",
        metavar="FILE",
        help="that 'validate' wrote; default: the one beside the bundle",
    )
    parser.add_argument("--version", metavar="NAME", help="default: the next number")
    parser.add_argument("--force", action="store_true", help="publish what has not passed")
    parser.add_argument("--reason", metavar="TEXT", help="why, with --force; kept for good")


def _publish(arguments: argparse.Namespace) -> int:
    from widedeep.commands.find_bundle import bundle_place
    from widedeep.gate import Verdict, verdict_path
    from widedeep.publish import publish

    candidate = bundle_place(arguments.model)
    file = Path(arguments.verdict) if arguments.verdict else verdict_path(candidate)
    if not arguments.force and file.is_file():
        found = Verdict.load(file)
        if not found.passed:
            for reason in found.reasons:
                say(f"stopped: {reason}")
            say(f"widedeep: {candidate} did not pass the gate; nothing is published")
            return NO
    record = publish(
        candidate,
        arguments.models,
        verdict=arguments.verdict,
        version=arguments.version,
        force=arguments.force,
        reason=arguments.reason,
    )
    if arguments.json:
        found_values = {"version": record.version, "parent": record.parent, "bundle": record.bundle}
        print_json({"models": arguments.models, **found_values, "forced": record.forced})
    else:
        after = "" if record.parent is None else f", after version {record.parent}"
        print_text(f"{arguments.models}: version {record.version}{after}")
        if record.forced is not None:
            print_text(f"published by force: {record.forced}")
        if "://" in arguments.models:
            print_next("inspect", arguments.models)
        else:
            print_next("serve", arguments.models)
    return GOOD


# ---- lineage ------------------------------------------------------------------------------------


def lineage_document(versions: list[PublishedVersion]) -> list[dict[str, Any]]:
    """Return a lineage as plain values."""
    return [
        {
            "version": one.version,
            "there": one.there,
            "serves": one.serves,
            "withdrawn": one.withdrawn,
            "labels": list(one.labels),
            "depth": one.depth,
            "record": None if one.record is None else vars(one.record),
        }
        for one in versions
    ]


def print_lineage(versions: list[PublishedVersion]) -> None:
    """Print a lineage as a table, a version under the one it came from."""
    rows = []
    if not versions:
        print_text("no version was published here yet; 'widedeep publish CANDIDATE MODELS' does")
        return
    for one in versions:
        record = one.record
        metrics = {} if record is None else record.metrics
        name = "  " * one.depth + ("└ " if one.depth else "") + one.version
        rows.append(
            [
                name,
                "" if record is None else record.published.replace("T", " ").split("+")[0],
                "" if record is None else f"{record.size / 1e6:,.1f} MB",
                number(metrics.get("auc")),
                number(metrics.get("log_loss")),
                _gate_word(one),
                _state_word(one),
            ]
        )
    heads = ["version", "published", "size", "auc", "log_loss", "gate", "state"]
    print_table(heads, rows, right=["size", "auc", "log_loss"])


def _gate_word(one: PublishedVersion) -> str:
    if one.record is None:
        return "no record"
    if one.record.forced is not None:
        return f"forced: {one.record.forced}"
    return "passed"


def _state_word(one: PublishedVersion) -> str:
    words = [*one.labels]
    if not one.there:
        words.append("deleted")
    if one.serves:
        words.insert(0, "serves")
    if one.withdrawn:
        words.append("withdrawn")
    return ", ".join(words)
