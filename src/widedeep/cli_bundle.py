"""The verbs of a trained model: evaluate, export, score, inspect."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widedeep.cli_gate import lineage_document, print_lineage, print_validate
from widedeep.cli_output import (
    count,
    free_path,
    print_json,
    print_metrics,
    print_next,
    print_table,
    print_text,
    say,
    shown_path,
)
from widedeep.cli_parser import GOOD, Verbs, add_verb, positive, threads, whole
from widedeep.errors import ConfigError, DataError

if TYPE_CHECKING:
    from widedeep.bundle import Bundle
    from widedeep.commands.score import ScoreReport
    from widedeep.report.inspection import WideWeight
    from widedeep.schema import Schema


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of a trained model."""
    for add in (_add_evaluate, _add_export, _add_score, _add_inspect):
        add(verbs)


# ---- evaluate -----------------------------------------------------------------------------------


def _add_evaluate(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure a run's or a bundle's quality on labelled data",
        "  widedeep evaluate runs/ads test.parquet\n"
        "  widedeep evaluate runs/ads          # on the test data its configuration names",
        then="widedeep export runs/ads -o bundles/ads",
    )
    parser.add_argument("model", metavar="RUN_DIR|BUNDLE", help="a run's folder, or a bundle")
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="labelled data: a path, a glob, or a run's folder; default: the run's test data, else "
        "its validation data",
    )
    parser.add_argument("--threads", type=threads, default=1, help="threads to use (default: 1)")


def _evaluate(arguments: argparse.Namespace) -> int:
    from widedeep.commands.find_bundle import load_bundle
    from widedeep.commands.run_data import labelled_rows
    from widedeep.report.evaluation import evaluate_bundle

    model = Path(arguments.model)
    words = [] if arguments.data is None else [arguments.data]
    rows = labelled_rows(words, model)
    bundle = load_bundle(model)
    metrics = evaluate_bundle(bundle, rows.data, threads=arguments.threads)
    if arguments.json:
        document = {"bundle": bundle.path, "data": rows.place, "note": rows.note}
        print_json({**document, "metrics": metrics})
        return GOOD
    print_metrics({rows.heading: metrics})
    if rows.note is not None:
        print_text(f"note: measured on {rows.note}")
    if bundle.path == model:
        print_validate(model, words)
    else:
        print_next("export", model, "-o", free_path(Path("bundles") / model.name))
    return GOOD


# ---- export -------------------------------------------------------------------------------------


def _add_export(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "export",
        _export,
        "write a run's best checkpoint, or any checkpoint, as a bundle",
        "  widedeep export runs/ads -o bundles/ads-2\n"
        "  widedeep export runs/ads/checkpoints/step-0000001500 -o bundles/ads-early",
        then="widedeep validate bundles/ads-2 --data runs/ads",
    )
    parser.add_argument("model", metavar="RUN_DIR|CHECKPOINT", help="a run, or a step-* folder")
    parser.add_argument("-o", "--out", required=True, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--force", action="store_true", help="replace BUNDLE")


def _export(arguments: argparse.Namespace) -> int:
    from widedeep.commands.run_data import run_of
    from widedeep.commands.train import export_checkpoint

    bundle, checkpoint = export_checkpoint(
        arguments.model, arguments.out, overwrite=arguments.force
    )
    if arguments.json:
        print_json({"bundle": bundle.path, "checkpoint": checkpoint, "metrics": bundle.metrics})
    else:
        print_text(f"from {checkpoint}")
        print_text(repr(bundle))
        run = checkpoint.parent.parent
        print_validate(Path(arguments.out), [] if run_of(run) is None else [shown_path(run)])
    return GOOD


# ---- score --------------------------------------------------------------------------------------


def _add_score(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "score",
        _score,
        "add a score to each row of a file or stream, in order",
        "  widedeep score runs/ads/bundle test.parquet -o scores.parquet --keep user_id,ad_id\n"
        '  echo \'{"age": 39, "job": "Sales"}\' | widedeep score runs/ads/bundle -\n\n'
        "Rows are JSON lines (a file or '-'), Parquet, CSV or Arrow files; out come JSON lines or\n"
        "Parquet. A key that a JSON row lacks is read as null, and counted.",
    )
    parser.add_argument("model", metavar="BUNDLE", help="a bundle, or a run's folder")
    parser.add_argument("data", metavar="INPUT", help="a file or glob, or '-': standard input")
    parser.add_argument(
        "-o",
        "--out",
        default="-",
        metavar="OUTPUT",
        help=".parquet or .jsonl; default: JSON lines on standard output",
    )
    parser.add_argument(
        "--keep",
        default="all",
        metavar="COLUMNS",
        help="columns of the input to write too: 'all' (default), 'none', or names: a,b",
    )
    parser.add_argument("--name", default="score", help="the score's column (default: score)")
    parser.add_argument("--strict", action="store_true", help="refuse JSON rows that lack a key")
    parser.add_argument("--threads", type=threads, default=1, help="threads to use (default: 1)")


def _score(arguments: argparse.Namespace) -> int:
    from widedeep.commands.find_bundle import load_bundle
    from widedeep.commands.score import score_rows

    if arguments.json and arguments.out == "-":
        raise ConfigError(
            "got --json without -o FILE: it prints a summary where the rows would go; the rows are "
            "JSON lines without it"
        )
    keep = arguments.keep
    bundle = load_bundle(arguments.model)
    started = time.perf_counter()
    report = score_rows(
        bundle,
        arguments.data,
        arguments.out,
        keep=keep if keep in ("all", "none") else [name.strip() for name in keep.split(",")],
        name=arguments.name,
        strict=arguments.strict,
        threads=arguments.threads,
    )
    seconds = time.perf_counter() - started
    if arguments.json:
        print_json({"output": arguments.out, "seconds": seconds, **dataclasses.asdict(report)})
    else:
        _say_score(report, arguments.out, seconds)
    return GOOD


def _say_score(report: ScoreReport, out: str, seconds: float) -> None:
    place = "" if out == "-" else f", written to {out}"
    say(f"scored {count(report.rows, 'row')} in {seconds:.1f} s{place}")
    for found, what in (
        (report.absent, "keys that rows lack, read as null"),
        (report.unseen, "values not in training"),
    ):
        if found:
            say(f"note: {what}: " + ", ".join(f"{name} ({n:,})" for name, n in found.items()))
    for key, column in report.misspelt.items():
        say(f"note: the key {key!r} means nothing; did you mean {column!r}?")


# ---- inspect ------------------------------------------------------------------------------------


def _add_inspect(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "inspect",
        _inspect,
        "show what a model learned: sizes, the strongest wide weights by name, one row explained",
        "  widedeep inspect runs/ads --top 10\n"
        '  widedeep inspect runs/ads --row \'{"age": 39, "job": "Sales"}\'\n'
        "  widedeep inspect runs/ads/schema.safetensors\n"
        "  widedeep inspect models             # which version came from which, and how",
        then="widedeep report runs/ads",
    )
    parser.add_argument("model", metavar="BUNDLE|SCHEMA|RUN_DIR|MODELS", help="what to look at")
    parser.add_argument(
        "--top", type=positive, default=20, help="weights of each sign (default: 20)"
    )
    parser.add_argument("--row", metavar="JSON", help="explain the score of this row")
    parser.add_argument(
        "--logit",
        type=whole,
        default=0,
        metavar="N",
        help="which logit's weights, of several",
    )


def _inspect(arguments: argparse.Namespace) -> int:
    top = arguments.top
    if Path(arguments.model).is_file():
        from widedeep.schema import Schema

        _inspect_schema(Schema.load(arguments.model), arguments, top)
        return GOOD
    from widedeep.publish.lineage import is_models_directory, read_lineage

    if "://" in arguments.model or is_models_directory(Path(arguments.model)):
        versions = read_lineage(arguments.model)
        if arguments.json:
            print_json({"models": arguments.model, "versions": lineage_document(versions)})
        else:
            print_lineage(versions)
            if "://" not in arguments.model:
                print_next("report", arguments.model)
        return GOOD
    from widedeep.commands.find_bundle import load_bundle

    bundle = load_bundle(arguments.model)
    if arguments.row is not None:
        _inspect_row(bundle, arguments)
    else:
        _inspect_bundle(bundle, arguments, top)
    return GOOD


def _inspect_schema(schema: Schema, arguments: argparse.Namespace, top: int) -> None:
    from widedeep.report.inspection import vocabulary_table

    if arguments.row is not None:
        raise ConfigError(f"{arguments.model}: a schema scores no row; give --row with a bundle")
    found = vocabulary_table(schema, top=top)
    if arguments.json:
        print_json({"fingerprint": schema.fingerprint, "rows": schema.rows, "values": found})
        return
    print_text(repr(schema))
    for name, values in found.items():
        print_text(f"\n{name}: the most frequent of {len(schema.vocabularies[name]):,} values")
        print_table(["value", "seen"], [[text, f"{n:,}"] for text, n in values], right=["seen"])


def _inspect_row(bundle: Bundle, arguments: argparse.Namespace) -> None:
    from widedeep.report.inspection import explanation_table

    try:
        row = json.loads(arguments.row)
    except (RecursionError, ValueError) as error:
        raise DataError(f"got --row {arguments.row!r}, which is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"got --row {arguments.row!r}, expected one JSON object")
    explanation = bundle.explain(row)
    if arguments.json:
        print_json({"row": row, "logits": explanation_table(explanation)})
    else:
        print_text(str(explanation))


def _inspect_bundle(bundle: Bundle, arguments: argparse.Namespace, top: int) -> None:
    from widedeep.report.inspection import (
        layer_sizes,
        logit_name,
        table_sizes,
        top_wide_weights,
    )

    sizes, layers = table_sizes(bundle), layer_sizes(bundle)
    positive, negative = top_wide_weights(bundle, top=top, column=arguments.logit)
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
    named = logit_name(bundle, arguments.logit)
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
            f"{told['feature']} of {' or '.join(told['kinds']) or told['of']}",
            str(told["by"]),
            str(told["window"] or ""),
        ]
        for name, told in bundle.history.items()
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
        "bundle": bundle.path,
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
