"""The verb `evaluate`: a model's quality on labelled data."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widedeep.bundle import Bundle
from widedeep.cli.output import (
    address_of,
    free_path,
    print_json,
    print_metrics,
    print_next,
    print_table,
    print_text,
)
from widedeep.cli.parser import EXIT_OK, VerbParser, threads, without_option
from widedeep.cli.runs import labelled_rows, load_bundle, local_model
from widedeep.cli.validate import print_validate
from widedeep.data.reuse import reuse_inputs
from widedeep.errors import ConfigError
from widedeep.evaluation.bundle_metrics import BundleMetrics, evaluate_bundle
from widedeep.evaluation.compare import score_both
from widedeep.evaluation.logged_rankings import LogColumns
from widedeep.evaluation.off_policy import policy_values
from widedeep.gate.verdict_page import policy_rows, policy_text
from widedeep.metrics.estimator import estimator_metrics
from widedeep.ranks.config import DistributedConfig
from widedeep.ranks.launch import launch, launched_size
from widedeep.ranks.ranks import Ranks, ranks_of

EXAMPLE = (
    "  widedeep evaluate runs/ads test.parquet\n"
    "  widedeep evaluate runs/ads          # on the test data of its configuration\n"
    "  widedeep evaluate runs/ads explored.parquet --propensity propensity --request request_id"
)
NEXT = "widedeep export runs/ads -o bundles/ads"
_RESAMPLES = 1000
_POSITION = "position"


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("model RUN_DIR|BUNDLE", "run folder or bundle")
    parser.option(
        "data DATA",
        "labelled data: a path, a glob, or a run folder (default: the run's test data, else its "
        "validation data)",
        nargs="?",
    )
    parser.option(
        "--propensity COLUMN",
        "chance that each item had to be shown where it was: estimates what the model's rankings "
        "would earn (default: 'propensity', where DATA has it)",
    )
    parser.option(
        "--position COLUMN", "place in the list, from 1, beside propensities", default=_POSITION
    )
    parser.option(
        "--request COLUMN",
        "id of the request, beside propensities (default: request_id, or the group of the model)",
    )
    parser.option("--threads N", "threads", type=threads, default=1)
    parser.option(
        "--ranks N",
        "score by N processes of this machine (torchrun launches those of several)",
        type=threads,
    )


@reuse_inputs()
def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if arguments.ranks is not None and arguments.ranks > 1:
        return launch(arguments.ranks, without_option(arguments.words, "--ranks"))
    ranks = ranks_of(DistributedConfig(lanes=launched_size()))
    model = local_model(arguments.model)
    words = [] if arguments.data is None else [arguments.data]
    rows = labelled_rows(words, model)
    bundle = load_bundle(model)
    log = LogColumns.find(
        rows.data,
        bundle,
        propensity=arguments.propensity,
        position=arguments.position,
        request=arguments.request,
    )
    metrics, policy, notes = _measure(bundle, rows.data, log, arguments.threads, ranks)
    if log is None and (arguments.request is not None or arguments.position != _POSITION):
        notes.append(
            "--position and --request have no effect: the rows have no column 'propensity', "
            "without which no other ranking of theirs can be judged (--propensity names another)"
        )
    if not ranks.is_first:
        return EXIT_OK
    if bundle.compat is not None:
        metrics |= estimator_metrics(metrics, tuple(head.name for head in bundle.model.heads))
    if arguments.json:
        document = {"bundle": address_of(bundle.path), "data": rows.origin, "note": rows.note}
        print_json({**document, "metrics": metrics, "policy": policy, "notes": notes})
        return EXIT_OK
    print_metrics({rows.heading: metrics})
    for head, values in policy.items():
        _print_policy(head, values)
    for note in notes:
        print_text(f"note: {note}")
    if rows.note is not None:
        print_text(f"note: measured on {rows.note}")
    named = address_of(model)
    if bundle.path == model:
        print_validate(named, words)
    else:
        print_next("export", named, "-o", free_path(Path("bundles") / Path(named).name))
    return EXIT_OK


def _measure(
    bundle: Bundle, data: Any, log: LogColumns | None, threads: int, ranks: Ranks
) -> tuple[dict[str, float], dict[str, Any], list[str]]:
    """Return the metrics, what the rankings would earn, and notes; rows are read once."""
    if log is None:
        return evaluate_bundle(bundle, data, threads=threads, ranks=ranks), {}, []
    if ranks.size > 1:
        raise ConfigError(
            f"got propensities on {ranks.size} ranks, whose requests would be cut apart; evaluate "
            "in one process"
        )
    metrics = BundleMetrics(bundle)
    rows = score_both(
        bundle,
        None,
        data,
        slices=(),
        log=log,
        threads=threads,
        on_chunk=lambda _chunk, batch, scores, *_: metrics.update(scores, batch),
    )
    policy = policy_values(rows, resamples=_RESAMPLES, seed=0)
    return metrics.compute(), policy, rows.notes


def _print_policy(head: str, values: Mapping[str, Any]) -> None:
    print_text()
    heads = [f"reward per request{f' ({head})' if head else ''}", "value"]
    print_table(heads, policy_rows(values), right=heads[1:])
    print_text(policy_text(values))
    for model in values["models"].values():
        if model["problem"] is not None:
            print_text(f"note: {model['problem']}")
