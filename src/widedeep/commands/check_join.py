"""Does a join's configuration fit its logs? Answered from a sample of users, without writing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from widedeep.data.profile import ColumnProfile, profile_columns
from widedeep.errors import ConfigError, WideDeepError
from widedeep.join.config import SPLITS, JoinConfig, is_join, load_join_config
from widedeep.join.dataset import outcome_notes
from widedeep.join.dry_run import DryRun, dry_run
from widedeep.options import read_tables

_MISSING_MUCH = 0.5


@dataclass(kw_only=True)
class JoinCheck:
    """What a check of a join found."""

    # What must be put right before the join can succeed
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # What a person should know
    tried: DryRun | None = None  # The join of a sample, or None if that failed
    columns: list[ColumnProfile] = field(default_factory=list)  # What the sample's examples hold
    time_column: str = ""  # Their event time, in microseconds since 1970


def is_join_file(path: str | os.PathLike[str]) -> bool:
    """Tell whether a TOML file configures a join; False for one that cannot be read."""
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
    """Say what Spark would miss; the sample itself is joined by DuckDB."""
    if config.engine != "spark":
        return
    from widedeep.join.engines import check_spark

    try:
        check_spark()
    except WideDeepError as error:
        check.problems.append(str(error))


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
    shown, taken = counts["impressions"], counts["actions"]
    before = taken.last_us < shown.first_us
    if before or taken.first_us > shown.last_us + tried.resolved.plan.window_us:
        when = "before the first impression" if before else "after the last impression's window"
        check.notes.append(f"all actions lie {when}: check the times of both logs")


def _note_splits(config: JoinConfig, tried: DryRun, check: JoinCheck) -> None:
    empty = [name for name, sums in tried.splits.items() if not sums["rows"]]
    wanted = zip(SPLITS, config.split.fractions, strict=True)
    asked = ["train"] if config.split.by == "none" else [name for name, share in wanted if share]
    for name in empty:
        if name in asked:
            told = f"no example of the sample falls in {name}: check [split]"
            certain = name == "train" and tried.one_in == 1
            (check.problems if certain else check.notes).append(told)


def _note_columns(config: JoinConfig, check: JoinCheck) -> None:
    labels = {label.name for label in config.labels}
    for column in check.columns:
        if column.name in labels or column.name == "weight":
            continue
        if column.constant:
            same = f"always {column.top[0][0]}" if column.top else "always null"
            check.notes.append(f"column {column.name!r} is constant in the sample: {same}")
        elif column.missing > _MISSING_MUCH:
            check.notes.append(f"column {column.name!r} is {column.missing:.0%} missing")
