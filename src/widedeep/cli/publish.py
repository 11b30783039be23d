"""The verb `publish`: a model becomes the version that servers follow."""

from __future__ import annotations

import argparse
from pathlib import Path

from widedeep.cli.output import print_json, print_next, print_text, say
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK, VerbParser, whole
from widedeep.cli.runs import bundle_path_of
from widedeep.gate import Verdict, verdict_path
from widedeep.publish import publish
from widedeep.training.config import MOST_PATCHES

EXAMPLE = (
    "  widedeep publish runs/ads models\n"
    "  widedeep publish runs/ads s3://bucket/models --verdict verdict.json\n"
    '  widedeep publish runs/ads models --force --reason "the first model"\n\n'
    "The version appears atomically. 'widedeep inspect models' shows the origin of each\n"
    "version; 'widedeep rollback models' returns to an older one."
)
NEXT = "widedeep serve models"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("model CANDIDATE", "bundle or run folder")
    parser.option("models MODELS", "folder of versions, or its URL")
    parser.option("--verdict FILE", "verdict of 'validate' (default: the one beside the bundle)")
    parser.option("--version NAME", "name of the version (default: the next number)")
    parser.option(
        "--full-every N",
        "publish every Nth version whole, and those between as patches",
        type=lambda text: whole(text, 1, MOST_PATCHES),
        default=1,
    )
    parser.option("--force", "publish a model that has not passed")
    parser.option("--reason TEXT", "reason for --force; kept with the version")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    candidate = bundle_path_of(arguments.model)
    file = Path(arguments.verdict) if arguments.verdict else verdict_path(candidate)
    if not arguments.force and file.is_file():
        gate_verdict = Verdict.load(file)
        if not gate_verdict.passed:
            for reason in gate_verdict.reasons:
                say(f"stopped: {reason}")
            say(f"widedeep: {candidate} did not pass the gate; nothing is published")
            return EXIT_FAILED
    record = publish(
        candidate,
        arguments.models,
        verdict=arguments.verdict,
        version=arguments.version,
        force=arguments.force,
        reason=arguments.reason,
        full_every=arguments.full_every,
    )
    if arguments.json:
        names = ("version", "parent", "bundle", "forced", "patches", "size")
        values = {name: getattr(record, name) for name in names}
        print_json({"models": arguments.models, **values})
    else:
        after = "" if record.parent is None else f", after version {record.parent}"
        print_text(f"{arguments.models}: version {record.version}{after}")
        if record.forced is not None:
            print_text(f"published by force: {record.forced}")
        print_next("serve", arguments.models)
    return EXIT_OK
