"""The verb `inspect`: a model's sizes and weights, a row explained, the lineage of versions."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from widedeep.bundle import Bundle
from widedeep.cli.output import (
    address_of,
    number,
    print_json,
    print_next,
    print_table,
    print_text,
    say,
)
from widedeep.cli.parser import EXIT_OK, VerbParser, positive, whole
from widedeep.cli.runs import holds_bundle, load_bundle
from widedeep.data.transform import misspelt_keys
from widedeep.errors import ConfigError, DataError
from widedeep.publish import PublishedVersion
from widedeep.publish.lineage import is_models_directory, read_lineage
from widedeep.remote import is_url
from widedeep.report.inspection import (
    WideWeight,
    explanation_table,
    layer_sizes,
    logit_name,
    table_sizes,
    top_wide_weights,
    vocabulary_table,
)
from widedeep.schema import Schema

EXAMPLE = (
    "  widedeep inspect runs/ads --top 10\n"
    '  widedeep inspect runs/ads --row \'{"age": 39, "job": "Sales"}\'\n'
    "  widedeep inspect runs/ads/schema.safetensors\n"
    "  widedeep inspect models             # versions and their origin"
)
NEXT = "widedeep report runs/ads"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option(
        "model BUNDLE|SCHEMA|RUN_DIR|MODELS",
        "bundle, schema file, run folder, or folder of versions",
    )
    parser.option("--top N", "wide weights to show of each sign", type=positive, default=20)
    parser.option("--row JSON", "row to explain the score of, a JSON object")
    parser.option(
        "--logit N",
        "logit to show the weights of, where there are several (default: 0)",
        type=whole,
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    top = arguments.top
    if Path(arguments.model).is_file():
        _inspect_schema(Schema.load(arguments.model), arguments, top)
        return EXIT_OK

    remote = is_url(arguments.model)
    if remote or is_models_directory(Path(arguments.model)):
        versions = read_lineage(arguments.model)
        if versions or not (remote and holds_bundle(arguments.model)):
            return _inspect_versions(arguments, versions)

    bundle = load_bundle(arguments.model)
    if arguments.row is not None and arguments.logit is not None:
        raise ConfigError("got --row and --logit, but a row is explained for all logits; drop one")
    if arguments.row is not None:
        _inspect_row(bundle, arguments)
    else:
        _inspect_bundle(bundle, arguments, top)
    return EXIT_OK


def _inspect_versions(arguments: argparse.Namespace, versions: list[PublishedVersion]) -> int:
    if arguments.json:
        print_json({"models": arguments.model, "versions": lineage_document(versions)})
    else:
        print_lineage(versions)
        print_next("report", arguments.model)
    return EXIT_OK


def _inspect_schema(schema: Schema, arguments: argparse.Namespace, top: int) -> None:
    if arguments.row is not None:
        raise ConfigError(f"{arguments.model}: a schema scores no row; give --row with a bundle")
    tables = vocabulary_table(schema, top=top)
    if arguments.json:
        print_json({"fingerprint": schema.fingerprint, "rows": schema.rows, "values": tables})
        return
    print_text(repr(schema))
    for name, values in tables.items():
        print_text(f"\n{name}: the most frequent of {len(schema.vocabularies[name]):,} values")
        print_table(["value", "seen"], [[text, f"{n:,}"] for text, n in values], right=["seen"])


def _inspect_row(bundle: Bundle, arguments: argparse.Namespace) -> None:
    try:
        row = json.loads(arguments.row)
    except (RecursionError, ValueError) as error:
        raise DataError(f"got --row {arguments.row!r}, which is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"got --row {arguments.row!r}, expected one JSON object")
    explanation = bundle.explain(row)
    absent = [column for column in bundle.input_columns if column not in row]
    if absent:
        say(f"note: keys that the row lacks, read as null: {', '.join(absent)}")
    for key, column in misspelt_keys(row, absent, bundle.input_columns).items():
        say(f"note: the key {key!r} is unknown; did you mean {column!r}?")
    if arguments.json:
        print_json({"row": row, "logits": explanation_table(explanation)})
    else:
        print_text(str(explanation))


def _inspect_bundle(bundle: Bundle, arguments: argparse.Namespace, top: int) -> None:
    sizes, layers = table_sizes(bundle), layer_sizes(bundle)
    column = arguments.logit or 0
    positive, negative = top_wide_weights(bundle, top=top, column=column)
    if arguments.json:
        print_json(_bundle_document(bundle, sizes, layers, positive, negative))
        return
    print_text(repr(bundle))
    _print_history(bundle)
    print_text("\nTables")
    print_table(
        ["part", "table", "ids", "width", "weights", "not zero"],
        [
            [s.part, s.name, f"{s.rows:,}", str(s.width), f"{s.numbers:,}", f"{s.share:.1%}"]
            for s in sizes
        ],
        right=["ids", "width", "weights", "not zero"],
    )
    print_text("\nLayers")
    cells = [[name, " x ".join(map(str, shape)), f"{size:,}"] for name, shape, size in layers]
    total = sum(s.numbers for s in sizes) + sum(size for _, _, size in layers)
    print_table(["layer", "shape", "weights"], cells, right=["weights"])
    print_text(f"{total:,} weights in all")
    named = logit_name(bundle, column)
    logit = f" of {named}" if named else ""
    for title, weights in (("positive", positive), ("negative", negative)):
        print_text(f"\nStrongest {title} wide weights{logit}")
        _print_weights(weights)
    print_text()
    print_next("report", arguments.model)


def _print_history(bundle: Bundle) -> None:
    if not bundle.history:
        return
    print_text("\nHistory columns, which a request must bring")
    cells = [
        [
            name,
            f"{column['feature']} of {' or '.join(column['kinds']) or column['of']}",
            str(column["by"]),
            str(column["window"] or ""),
        ]
        for name, column in bundle.history.items()
    ]
    print_table(["column", "holds", "by", "window"], cells)


def _print_weights(weights: list[WideWeight]) -> None:
    cells = [
        [f"{w.weight:+.4f}", w.feature, w.value, "" if w.count is None else f"{w.count:,}"]
        for w in weights
    ]
    if cells:
        print_table(["weight", "feature", "value", "seen"], cells, right=["weight", "seen"])
    else:
        print_text("none")


def _bundle_document(
    bundle: Bundle, sizes: Any, layers: Any, positive: list[WideWeight], negative: list[WideWeight]
) -> dict[str, Any]:
    def plain(weights: list[WideWeight]) -> list[dict[str, Any]]:
        return [
            {"feature": w.feature, "value": w.value, "weight": w.weight, "seen": w.count}
            for w in weights
        ]

    return {
        "bundle": address_of(bundle.path),
        "schema": bundle.schema.fingerprint,
        "history": bundle.history,
        "metrics": bundle.metrics,
        "tables": [
            {
                "part": s.part,
                "name": s.name,
                "ids": s.rows,
                "width": s.width,
                "nonzero": s.nonzero,
            }
            for s in sizes
        ],
        "layers": [{"name": name, "shape": shape, "weights": n} for name, shape, n in layers],
        "positive": plain(positive),
        "negative": plain(negative),
    }


# ---- lineage ------------------------------------------------------------------------------------


def lineage_document(versions: list[PublishedVersion]) -> list[dict[str, Any]]:
    """Return a lineage as plain values."""
    return [
        {**one.to_json(), "record": None if one.record is None else vars(one.record)}
        for one in versions
    ]


def print_lineage(versions: list[PublishedVersion]) -> None:
    """Print a lineage as a table, a version under the one it came from."""
    rows = []
    if not versions:
        print_text("no version is published here; publish one: widedeep publish CANDIDATE MODELS")
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
    if not one.exists:
        words.append("deleted")
    if one.serves:
        words.insert(0, "serves")
    if one.withdrawn:
        words.append("withdrawn")
    return ", ".join(words)
