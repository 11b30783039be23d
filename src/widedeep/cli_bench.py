"""The verb bench: measurements that anyone can repeat."""

from __future__ import annotations

import argparse
from pathlib import Path

from widedeep.cli_output import print_json, print_text, say
from widedeep.cli_parser import GOOD, NO, VerbParser, Verbs, add_verb, positive

__all__ = ["add_verbs"]


def add_verbs(verbs: Verbs) -> None:
    """Add the verb ``bench``, and what it can measure."""
    parser = verbs.add_parser(
        "bench",
        help="measure: the paper's table 1 on a simulated store",
        description="Measure. 'widedeep bench TARGET --help' shows a target's options; --json "
        "prints one JSON document.",
        epilog="example:\n  widedeep bench table1 --seeds 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    targets = parser.add_subparsers(
        title="targets", metavar="TARGET", required=True, parser_class=VerbParser
    )
    _add_table1(targets)


def _add_table1(targets: Verbs) -> None:
    parser = add_verb(
        targets,
        "table1",
        _table1,
        "wide, deep, and both on the same logs: offline AUC, and installs in a live A/B test",
        "  widedeep bench table1                       # five stores, some minutes\n"
        "  widedeep bench table1 --memorisation 0      # the wide part has nothing to remember\n\n"
        "Exit code 1 if Wide & Deep is not significantly ahead of both.",
    )
    parser.add_argument("--out", metavar="FOLDER", help="keep logs, examples and bundles there")
    parser.add_argument("--seeds", type=positive, metavar="N", help="stores, 2 to 10 (default: 5)")
    parser.add_argument("--days", type=positive, metavar="N", help="logged for training")
    parser.add_argument("--requests", type=positive, metavar="N", help="a day, logged for training")
    parser.add_argument("--live", type=positive, metavar="N", help="requests a day of the A/B test")
    parser.add_argument("--threads", type=positive, metavar="N", help="of training; default: all")
    for name in ("memorisation", "generalisation"):
        parser.add_argument(f"--{name}", type=float, metavar="X", help="strength, default 1")


def _table1(arguments: argparse.Namespace) -> int:
    from widedeep.commands.bench_table1 import (
        table1_config,
        table1_document,
        table1_in,
        table1_text,
    )

    found = table1_in(
        None if arguments.out is None else Path(arguments.out),
        table1_config(
            seeds=arguments.seeds,
            days=arguments.days,
            requests=arguments.requests,
            live_requests=arguments.live,
            threads=arguments.threads,
            memorisation=arguments.memorisation,
            generalisation=arguments.generalisation,
        ),
        on_progress=say,
    )
    if arguments.json:
        print_json(table1_document(found))
    else:
        print_text(table1_text(found))
    ahead = all(found.lift("wide & deep", other).significant for other in ("wide", "deep"))
    return GOOD if ahead else NO
