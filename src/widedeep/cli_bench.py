"""The verb bench: measurements that anyone can repeat."""

from __future__ import annotations

import argparse
from pathlib import Path

from widedeep.cli_output import print_json, print_table, print_text, say
from widedeep.cli_parser import GOOD, NO, VerbParser, Verbs, add_verb, positive, real, threads
from widedeep.errors import ConfigError


def add_verbs(verbs: Verbs) -> None:
    """Add the verb ``bench``, and what it can measure."""
    parser = verbs.add_parser(
        "bench",
        help="measure: the paper's table 1 on a simulated store; a server under load",
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
    _add_serve(targets)


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
    parser.add_argument("--threads", type=threads, metavar="N", help="of training; default: all")
    parser.add_argument(
        "--apart", action="store_true", help="also try Wide & Deep without its cross"
    )
    for name in ("memorisation", "generalisation"):
        parser.add_argument(f"--{name}", type=real, metavar="X", help="strength, default 1")


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
            without_cross=arguments.apart,
        ),
        on_progress=say,
    )
    if arguments.json:
        print_json(table1_document(found))
    else:
        print_text(table1_text(found))
    ahead = all(found.lift("wide & deep", other).significant for other in ("wide", "deep"))
    return GOOD if ahead else NO


def _add_serve(targets: Verbs) -> None:
    parser = add_verb(
        targets,
        "serve",
        _serve,
        "start a server on loopback and load it: latency, requests a second, CPU a request",
        "  widedeep bench serve models/ads --items items.parquet --item-id app\n"
        "  widedeep bench serve runs/run --connections 1 8 --seconds 10\n\n"
        "Exit code 1 if a request failed.",
    )
    parser.add_argument("models", metavar="MODELS", help="as widedeep serve takes it")
    parser.add_argument("--items", metavar="PARQUET", help="the items' catalogue")
    parser.add_argument("--item-id", metavar="COLUMN", help="its column of ids")
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16")
    parser.add_argument("--workers", type=threads, default=1, help="processes (default: 1)")
    parser.add_argument("--threads", type=threads, default=1, help="of a request (default: 1)")
    parser.add_argument(
        "--candidates", type=positive, default=200, metavar="N", help="a request (default: 200)"
    )
    parser.add_argument(
        "--connections",
        type=positive,
        nargs="+",
        default=[1, 4, 16],
        metavar="N",
        help="with a request under way on each (default: 1 4 16, one run each)",
    )
    parser.add_argument(
        "--seconds", type=positive, default=5, metavar="S", help="a run, 60 at most (default: 5)"
    )


def _serve(arguments: argparse.Namespace) -> int:
    from widedeep.commands.bench_serve import (
        bench_server,
        catalogue_words,
        load_document,
        load_rows,
    )

    if arguments.seconds > 60 or max(arguments.connections) > 256:
        raise ConfigError("bench serve: at most 60 seconds a run, and 256 connections")
    words = [
        arguments.models,
        *catalogue_words(arguments.items, arguments.item_id),
        *("--workers", str(arguments.workers), "--threads", str(arguments.threads)),
        # Every connection may wait: how the server refuses is another question.
        *("--queue", "512"),
        *(["--bfloat16"] if arguments.bfloat16 else []),
    ]
    found = bench_server(
        words,
        items=arguments.items,
        item_id=arguments.item_id,
        candidates=arguments.candidates,
        connections=arguments.connections,
        seconds=arguments.seconds,
    )
    if arguments.json:
        print_json(load_document(found))
    else:
        headings = ["connections", "p50 ms", "p99 ms", "requests/s", "CPU ms/request", "failed"]
        print_table(headings, load_rows(found), right=headings)
    return NO if any(report.failures or not report.requests for report in found) else GOOD
