"""The verb `join`: joins logs into labelled examples; and the check of a join configuration."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from widedeep.cli.output import (
    Checked,
    free_path,
    number,
    print_json,
    print_next,
    print_table,
    print_text,
    say,
    shown_path,
)
from widedeep.cli.parser import EXIT_INTERRUPTED, EXIT_OK, VerbParser, resume_command, typed_options
from widedeep.data.profile import ColumnProfile, profile_columns
from widedeep.errors import ConfigError, WideDeepError
from widedeep.join.config import SPLITS, JoinConfig, is_join, load_join_config
from widedeep.join.dataset import JoinResult, outcome_notes
from widedeep.join.run import DryRun, dry_run, run_join
from widedeep.join.times import moment_text
from widedeep.options import read_tables

EXAMPLE = (
    "  widedeep check join.toml      # joins a sample of the users, writes nothing\n"
    "  widedeep join join.toml --set split.by=user --set join.memory_limit=2GB\n"
    "  widedeep join join.toml --engine spark --spark-master spark://HOST:7077\n"
    "  widedeep join join.toml --resume     # after Ctrl-C or a crash\n\n"
    "The output folder holds train/, valid/, test/, manifest.json and report.html."
)
NEXT = "widedeep init examples/train --label click"
_MISSING_MUCH = 0.5


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("config JOIN.toml", "configuration of the join")
    parser.option("--resume", "continue an interrupted join from its finished parts")
    parser.option(
        "--engine", "SQL engine (default: the configuration's)", choices=("duckdb", "spark")
    )
    parser.option("--spark-master URL", "where Spark runs, such as spark://HOST:7077")
    parser.set_option("split.by=user")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    try:
        result = run_join(
            _config(arguments),
            resume=arguments.resume,
            progress=True,
        )
    except KeyboardInterrupt:
        say(f"widedeep: interrupted; go on with: {resume_command(arguments)}")
        return EXIT_INTERRUPTED
    if arguments.json:
        print_json({"output": str(result.output), **_result_document(result)})
    else:
        _print_result(result)
    return EXIT_OK


def _config(arguments: argparse.Namespace) -> JoinConfig:
    config = load_join_config(arguments.config, arguments.set)
    options = {"engine": arguments.engine, "spark_master": arguments.spark_master}
    typed = {name: value for name, value in options.items() if value is not None}
    config = dataclasses.replace(config, **typed)
    if config.engine != "spark" and arguments.spark_master is not None:
        raise ConfigError(
            f"got --spark-master {arguments.spark_master} for the engine {config.engine!r}; add "
            "--engine spark, or leave it out"
        )
    return config


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
    reasons = [
        (counts["open_windows_left_out"], "with a window still open"),
        (counts["sampled_or_split_out"], "sampled out or in no split"),
        (counts["duplicates_dropped"], "duplicates"),
    ]
    left_out = ", ".join(f"{n:,} {why}" for n, why in reasons if n)
    if left_out:
        print_text(f"\nimpressions left out: {left_out}")
    for name, sums in counts["labels"].items():
        print_text(
            f"actions of label {name}: {sums['actions']:,}; {sums['orphaned']:,} without an "
            f"impression before them, {sums['late']:,} after the window"
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


@dataclass(kw_only=True)
class JoinCheck(Checked):
    """Problems and notes of a join's check, and the join of a sample."""

    tried: DryRun | None = None  # Join of a sample; None if that failed
    columns: list[ColumnProfile] = field(default_factory=list)  # Profiles of the sample's examples
    time_column: str = ""  # Column of event times, microseconds since 1970


def is_join_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a TOML file configures a join; False for one that cannot be read."""
    try:
        return is_join(read_tables(path))
    except ConfigError:
        return False


def check_join(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, rows: int
) -> JoinCheck:
    """Check a join's configuration, and join a sample of the users."""
    check = JoinCheck()
    try:
        config = load_join_config(path, overrides)
        _check_engine(config, check)
        check.tried = dry_run(config, rows=rows)
    except WideDeepError as error:
        check.problems.append(str(error))
        return check
    check.columns = profile_columns(check.tried.examples)
    check.time_column = (config.impressions or config.actions).time
    _note_inputs(config, check.tried, check)
    check.notes += check.tried.resolved.notes
    _note_times(check.tried, check)
    _note_splits(config, check.tried, check)
    check.notes += outcome_notes(config, check.tried.counts, check.tried.splits)
    _note_columns(config, check)
    return check


def _check_engine(config: JoinConfig, check: JoinCheck) -> None:
    """Check Spark's packages; the sample itself is joined by DuckDB."""
    if config.engine != "spark":
        return
    from widedeep.join.engines import check_spark

    with check.collecting():
        check_spark()


def _note_inputs(config: JoinConfig, tried: DryRun, check: JoinCheck) -> None:
    for name, counts in tried.resolved.counts.items():
        for column, nulls in counts.null_keys.items():
            if nulls:
                check.notes.append(f"{name}: {nulls:,} rows are left out: {column!r} is null")
    if os.path.exists(os.path.join(config.output, "manifest.json")):
        check.notes.append(f"{config.output}: holds a dataset, which the join replaces")


def _note_times(tried: DryRun, check: JoinCheck) -> None:
    """Say if the logs do not meet: each is plausible by itself, and every label is 0."""
    counts = tried.resolved.counts
    if "impressions" not in counts:
        return
    impressions, actions = counts["impressions"], counts["actions"]
    before = actions.last_us < impressions.first_us
    if before or actions.first_us > impressions.last_us + tried.resolved.plan.window_us:
        when = "before the first impression" if before else "after the last impression's window"
        check.notes.append(f"all actions lie {when}: check the times of both logs")


def _note_splits(config: JoinConfig, tried: DryRun, check: JoinCheck) -> None:
    empty = [name for name, sums in tried.splits.items() if not sums["rows"]]
    fractions = zip(SPLITS, config.split.fractions, strict=True)
    expected = (
        ["train"]
        if config.split.by == "none"
        else [name for name, fraction in fractions if fraction]
    )
    for name in empty:
        if name in expected:
            text = f"no example of the sample falls in {name}: check [split]"
            certain = name == "train" and tried.one_in == 1
            (check.problems if certain else check.notes).append(text)


def _note_columns(config: JoinConfig, check: JoinCheck) -> None:
    names = {*(label.name for label in config.labels), "weight"}
    notes = [column_note(column) for column in check.columns if column.name not in names]
    check.notes += [note for note in notes if note is not None]


def column_note(column: ColumnProfile) -> str | None:
    """Return a note on a column that is constant, mostly missing or spelt in two ways."""
    if column.constant:
        value = f"always {column.top[0][0]}" if column.top else "always null"
        return f"column {column.name!r} is constant in the sample: {value}"
    if column.missing > _MISSING_MUCH:
        return f"column {column.name!r} is {column.missing:.0%} missing"
    return f"column {column.spelling_note}" if column.spelling_note else None


def column_document(columns: Sequence[ColumnProfile]) -> dict[str, Any]:
    """Return profiles of columns as plain values."""
    return {
        c.name: {"type": str(c.arrow_type), "distinct": c.distinct, "missing": c.missing}
        for c in columns
    }


def join_check_document(check: JoinCheck) -> dict[str, Any]:
    """Return a check of a join as plain values."""
    document = check.document()
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
            "columns": column_document(check.columns),
        }
    return document


def print_join_check(check: JoinCheck, arguments: argparse.Namespace) -> None:
    """Print a check of a join, and the command that does it."""
    if check.tried is not None:
        _print_tried(check.tried, check)
    if check.notes and check.tried is not None:
        print_text()
    check.print_all("the join would fail", "no problems found, nothing written")
    if not check.problems:
        print_next("join", arguments.config, *typed_options(arguments, "--set"))


def _print_tried(tried: DryRun, check: JoinCheck) -> None:
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
    ends = (int(column.minimum or 0), int(column.maximum or 0))
    return " to ".join(moment_text(time)[:16] for time in ends)


def _timeless(name: str, tried: DryRun) -> bool:
    """Return whether an input holds attributes without times."""
    attributes = {
        "user_attributes": tried.resolved.plan.config.user_attributes,
        "item_attributes": tried.resolved.plan.config.item_attributes,
    }.get(name)
    return attributes is not None and attributes.valid_from is None
