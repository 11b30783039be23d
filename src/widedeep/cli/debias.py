"""The verb `debias`: learns how likely each place of a list is looked at, and weighs rows by it."""

from __future__ import annotations

import argparse

from widedeep.cli.output import count, print_json, print_next, print_table, print_text
from widedeep.cli.parser import EXIT_OK, VerbParser, threads
from widedeep.cli.runs import load_bundle
from widedeep.errors import ConfigError
from widedeep.evaluation.position_bias import PositionBias, fit_position_bias, write_weights

EXAMPLE = (
    "  widedeep debias explored.parquet --label click -o weighted.parquet   # by its propensities\n"
    "  widedeep debias log.parquet --label click --model runs/ads -o weighted.parquet\n"
    "  widedeep debias log.parquet --label click --examination 1,0.7,0.5 -o weighted.parquet"
)
NEXT = "widedeep init weighted.parquet --label click   # the column weight is the examples' weight"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("log LOG", "log of rankings: paths or globs", nargs="+")
    parser.option("--label COLUMN", "labels, 0 or 1", required=True)
    parser.option(
        "--position COLUMN", "places in the list, from 1; null: not shown", default="position"
    )
    learned_by = parser.add_mutually_exclusive_group()
    parser.option(
        "--propensity COLUMN",
        "chance that each item had to get its place (default: 'propensity' without --model)",
        group=learned_by,
    )
    parser.option(
        "--model RUN_DIR|BUNDLE",
        "model that says how much items are wanted, for logs without propensities",
        group=learned_by,
    )
    parser.option(
        "--examination NUMBERS",
        "how likely each place from 1 on is looked at, such as 1,0.7,0.5 (default: learned)",
        group=learned_by,
    )
    parser.option("-o --out PARQUET", "file for the rows with a column weight")
    parser.option("--threads N", "threads", type=threads, default=1)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    data = arguments.log[0] if len(arguments.log) == 1 else arguments.log
    if arguments.examination is None:
        bias = fit_position_bias(
            data,
            label=arguments.label,
            position=arguments.position,
            propensity=arguments.propensity,
            bundle=None if arguments.model is None else load_bundle(arguments.model),
            threads=arguments.threads,
        )
    else:
        bias = PositionBias(examination=_numbers(arguments.examination))
    rows = None
    if arguments.out is not None:
        rows = write_weights(
            data, bias, arguments.out, label=arguments.label, position=arguments.position
        )
    if arguments.json:
        print_json({**vars(bias), "out": arguments.out, "rows": rows})
        return EXIT_OK
    positives = bias.positives or [None] * len(bias.examination)
    heads = ["position", "looked at", "positive rows"]
    table = [
        [str(place), f"{value:.4f}", "" if number is None else f"{number:,}"]
        for place, (value, number) in enumerate(zip(bias.examination, positives, strict=True), 1)
    ]
    print_table(heads, table, right=heads)
    if rows is None:
        listed = ",".join(f"{value:.4g}" for value in bias.examination)
        words = [*map(str, arguments.log), "--label", arguments.label, "--examination", listed]
        print_next("debias", *words, "-o", "weighted.parquet")
        return EXIT_OK
    print_text(f"wrote {arguments.out}: {count(rows, 'row')} with a column weight")
    print_next("init", arguments.out, "--label", arguments.label)
    return EXIT_OK


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"got --examination {text!r}, expected numbers separated by commas, such as 1,0.7,0.5"
        ) from error
