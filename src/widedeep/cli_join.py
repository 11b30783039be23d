"""The verb join, and what check says of a join."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widedeep.cli_output import (
    count,
    free_path,
    number,
    print_json,
    print_next,
    print_table,
    print_text,
    say,
    shown_path,
)
from widedeep.cli_parser import GOOD, INTERRUPTED, Verbs, add_set, add_verb

if TYPE_CHECKING:
    from widedeep.commands.check_join import JoinCheck
    from widedeep.data.profile import ColumnProfile
    from widedeep.join.dataset import JoinResult
    from widedeep.join.dry_run import DryRun


def add_verb_join(verbs: Verbs) -> None:
    """Add the verb ``join``."""
    parser = add_verb(
        verbs,
        "join",
        _join,
        "join impressions and actions into labelled examples",
        "  widedeep check join.toml      # a sample of the users, nothing is written\n"
        "  widedeep join join.toml --set split.by=user --set join.memory_limit=2GB\n"
        "  widedeep join join.toml --resume     # after Ctrl-C or a crash\n\n"
        "The output's folder holds train/, valid/, test/, manifest.json and report.html.",
        then="widedeep init examples/train --label click",
    )
    parser.add_argument("config", metavar="JOIN.toml", help="the configuration")
    parser.add_argument(
        "--resume", action="store_true", help="go on with what an interrupted run has finished"
    )
    add_set(parser)


def _join(arguments: argparse.Namespace) -> int:
    from widedeep.commands.join import join_logs

    try:
        result = join_logs(arguments.config, arguments.set, resume=arguments.resume)
    except KeyboardInterrupt:
        words = ["widedeep", "join", arguments.config, "--resume"]
        words += [word for override in arguments.set for word in ("--set", override)]
        say(f"widedeep: interrupted; go on with: {shlex.join(words)}")
        return INTERRUPTED
    if arguments.json:
        print_json({"output": str(result.output), **_result_document(result)})
    else:
        _print_result(result)
    return GOOD


def _result_document(result: JoinResult) -> dict[str, Any]:
    manifest = result.manifest
    splits = {
        name: {key: split[key] for key in ("rows", "labels", "weight", "first_us", "last_us")}
        for name, split in manifest["splits"].items()
    }
    return {
        "splits": splits,
        "counts": manifest["counts"],
        "notes": manifest["notes"],
        "columns": manifest["columns"],
    }


def _print_result(result: JoinResult) -> None:
    manifest = result.manifest
    splits = {
        name: {"rows": split["rows"], **split["labels"]}
        for name, split in manifest["splits"].items()
    }
    _print_splits(splits)
    counts = manifest["counts"]
    told = [
        (counts["open_windows_left_out"], "with a window still open"),
        (counts["sampled_or_split_out"], "sampled out or in no split"),
        (counts["duplicates_dropped"], "there twice"),
    ]
    left_out = ", ".join(f"{n:,} {why}" for n, why in told if n)
    if left_out:
        print_text(f"\nimpressions left out: {left_out}")
    for name, found in counts["labels"].items():
        print_text(
            f"actions of label {name}: {found['actions']:,}; {found['orphaned']:,} without an "
            f"impression before them, {found['late']:,} after the window"
        )
    for note in result.notes:
        print_text(f"note: {note}")
    output = Path(shown_path(result.output))
    print_text(f"\nwrote {output}; look at {output / 'report.html'}")
    config = free_path("run.toml")
    words = [] if config == Path("run.toml") else ["-o", config]
    print_next("init", output / "train", "--label", next(iter(counts["labels"])), *words)


def _print_splits(splits: Any) -> None:
    labels = [name for name in next(iter(splits.values())) if name != "rows"]
    means = [f"mean of {label}" for label in labels]
    rows = [
        [
            name,
            f"{int(sums['rows']):,}",
            *(number(sums.get(label, 0) / max(1, sums["rows"])) for label in labels),
        ]
        for name, sums in splits.items()
    ]
    print_table(["split", "rows", *means], rows, right=["rows", *means])


# ---- check --------------------------------------------------------------------------------------


def check_document(check: JoinCheck) -> dict[str, Any]:
    """Return a check of a join as plain values."""
    document: dict[str, Any] = {
        "ok": not check.problems,
        "problems": check.problems,
        "notes": check.notes,
    }
    if check.tried is not None:
        document["inputs"] = {
            name: {
                "rows": counts.rows,
                "null_keys": counts.null_keys,
                "first_us": counts.first_us,
                "last_us": counts.last_us,
            }
            for name, counts in check.tried.resolved.counts.items()
        }
        document["sample"] = {
            "one_user_in": check.tried.one_in,
            "splits": check.tried.splits,
            "counts": check.tried.counts,
            "columns": {
                c.name: {"type": str(c.arrow_type), "distinct": c.distinct, "missing": c.missing}
                for c in check.columns
            },
        }
    return document


def print_check(check: JoinCheck, config: str, overrides: Sequence[str]) -> None:
    """Print a check of a join, and the command that does it."""
    if check.tried is not None:
        _print_tried(check.tried, check)
    if check.notes and check.tried is not None:
        print_text()
    for note in check.notes:
        print_text(f"note: {note}")
    for problem in check.problems:
        print_text(f"problem: {problem}")
    if check.problems:
        print_text(f"\n{count(len(check.problems), 'problem')}; the join would fail")
    else:
        print_text("\nno problems found, nothing written")
        print_next("join", config, *(word for text in overrides for word in ("--set", text)))


def _print_tried(tried: DryRun, check: JoinCheck) -> None:
    from widedeep.join.times import moment_text

    rows = [
        [
            name,
            f"{counts.rows:,}",
            f"{counts.rows - counts.complete:,}",
            *(
                "" if _timeless(name, tried) else moment_text(time)[:16]
                for time in (counts.first_us, counts.last_us)
            ),
        ]
        for name, counts in tried.resolved.counts.items()
    ]
    print_table(
        ["input", "rows", "without a key", "from", "to"], rows, right=["rows", "without a key"]
    )
    users = "all users" if tried.one_in == 1 else f"a sample of one user in {tried.one_in:,}"
    print_text(f"\nThe examples of {users}:")
    _print_splits(tried.splits)
    print_text()
    time = check.time_column
    cells = [
        [c.name, str(c.arrow_type), _times(c) if c.name == time else c.describe()]
        for c in check.columns
    ]
    print_table(["column", "type", "holds"], cells)


def _times(column: ColumnProfile) -> str:
    from widedeep.join.times import moment_text

    ends = (int(column.minimum or 0), int(column.maximum or 0))
    return " to ".join(moment_text(time)[:16] for time in ends)


def _timeless(name: str, tried: DryRun) -> bool:
    """Tell whether an input is of attributes without times."""
    attributes = {
        "user_attributes": tried.resolved.plan.config.user_attributes,
        "item_attributes": tried.resolved.plan.config.item_attributes,
    }.get(name)
    return attributes is not None and attributes.valid_from is None
