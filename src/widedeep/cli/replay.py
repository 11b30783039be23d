"""The verb `replay`: requests of a log through two bundles."""

from __future__ import annotations

import argparse

from widedeep.cli.output import print_json, print_next, print_table, print_text
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK, VerbParser, positive, share, threads, whole
from widedeep.cli.runs import load_bundle
from widedeep.errors import ConfigError, DataError
from widedeep.evaluation.compare import difference_of_labels
from widedeep.report.replay import Replay, item_rows, replay, why_text
from widedeep.serving.catalogue import Catalogue

EXAMPLE = (
    "  widedeep replay models/7 runs/ads 'impressions/*/*.parquet'\n"
    "  widedeep replay models/7 runs/ads requests.jsonl --items items.parquet --item-id ad\n"
    "  widedeep replay models/7 runs/ads log.parquet --min-overlap 0.5\n\n"
    "The log is what 'widedeep serve --log' writes, or a line of JSON per request as\n"
    "POST /v1/rank takes it. Exit code 1 if fewer than --min-overlap of the first K agree."
)
NEXT = "widedeep validate runs/ads --against models/7 --data recent.parquet"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("first BUNDLE_A", "bundle or run folder, as a rule served")
    parser.option("second BUNDLE_B", "bundle or run folder to compare")
    parser.option(
        "log LOG",
        "ranked rows with their features: paths or globs; or requests as JSON lines (.jsonl)",
        nargs="+",
    )
    parser.option("-k K", "first places to compare", type=positive, default=10)
    parser.option(
        "--request COLUMN", "id of the request (default: request_id, or the group of the model)"
    )
    parser.option(
        "--item COLUMN", "name of the item (default: item_id, or the first of the model's item)"
    )
    parser.option("--items PARQUET", "catalogue, for JSON lines with ids")
    parser.option("--item-id COLUMN", "column of ids in the catalogue")
    parser.option(
        "--explain N", "requests to explain, those that change most", type=whole, default=20
    )
    parser.option(
        "--min-overlap SHARE",
        "exit with 1 if fewer of the first K are in common, 0 to 1 (default: never)",
        type=share,
    )
    parser.option(
        "-o --out PAGE", "HTML page to write, or a .json file of its values", default="replay.html"
    )
    parser.option("--threads N", "threads", type=threads, default=1)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if (arguments.items is None) != (arguments.item_id is None):
        raise ConfigError("got one of --items and --item-id; give the catalogue and its id column")
    first, second = load_bundle(arguments.first), load_bundle(arguments.second)
    items = None
    if arguments.items is not None:
        words = first.schema.spec.null_values
        items = Catalogue.read(arguments.items, id_column=arguments.item_id, null_values=words)
    result = replay(
        first,
        second,
        arguments.log[0] if len(arguments.log) == 1 else arguments.log,
        k=arguments.k,
        request=arguments.request,
        item=arguments.item,
        items=items,
        explained=arguments.explain,
        threads=arguments.threads,
    )
    try:
        page = result.save(arguments.out)
    except OSError as error:
        raise DataError(
            f"{arguments.out}: cannot be written ({error.strerror or error})"
        ) from error
    agrees = arguments.min_overlap is None or result.overlap >= arguments.min_overlap
    if arguments.json:
        print_json({"page": page, "agrees": agrees, **result.to_json()})
        return EXIT_OK if agrees else EXIT_FAILED
    _print(result)
    if not agrees:
        print_text(f"stopped: {result.overlap:.1%} in common, limit {arguments.min_overlap:.1%}")
    print_text(f"\nreplay: {page}; open it in a browser")
    against = [] if difference_of_labels(second, first) else ["--against", arguments.first]
    print_next("validate", arguments.second, *against)
    return EXIT_OK if agrees else EXIT_FAILED


def _print(result: Replay) -> None:
    print_text(
        f"{result.requests:,} requests, {result.candidates:,} candidates; of the first {result.k} "
        f"{result.overlap:.1%} in common, Kendall tau {result.tau:.3f}, another first item in "
        f"{result.first_changed:.1%}"
    )
    for text in result.notes:
        print_text(f"note: {text}")
    if result.items:
        print_text()
        heads = ["item", "a", "b", "change"]
        print_table(heads, item_rows(result.items[:5]), right=heads[1:])
    if result.moves:
        print_text()
        print_table(
            ["request", "item", "a", "b", "why"],
            [
                [str(m["request"]), str(m["item"]), str(m["a"]), str(m["b"]), why_text(m["why"])]
                for m in result.moves[:5]
            ],
            right=["a", "b"],
        )
