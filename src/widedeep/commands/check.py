"""Does a configuration fit its data? Answered from a sample, without training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from widedeep.config import RunConfig, load_config
from widedeep.data.fit import declared_types, fit_schema
from widedeep.data.profile import ColumnProfile, profile_columns
from widedeep.data.sample import SAMPLE_ROWS, Sample, sample_rows
from widedeep.data.transform import Transform
from widedeep.data.unseen import count_values
from widedeep.errors import ConfigError, WideDeepError, nearest
from widedeep.features import Numeric
from widedeep.schema import Schema

__all__ = ["CheckReport", "InputReport", "check_run"]

_MISSING_MUCH = 0.5
_UNSEEN_MUCH = 0.2


@dataclass(frozen=True, kw_only=True)
class InputReport:
    """One data set of a run.

    Args:
        role: ``"train"``, ``"valid"`` or ``"test"``.
        place: Its path, glob or list of paths.
        rows: Rows in all, or None where only its beginning was read.
        sampled: Rows looked at.
        columns: What the columns hold that the run reads.
    """

    role: str
    place: str | list[str]
    rows: int | None
    sampled: int
    columns: list[ColumnProfile]


@dataclass(kw_only=True)
class CheckReport:
    """What a check found.

    Args:
        problems: What must be put right before training can succeed.
        notes: What a person should know.
        inputs: The data sets that could be read.
        labels: By label column: its values with their shares, or its range.
        schema: Fitted on the sample, or None if that failed.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    inputs: list[InputReport] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    schema: Schema | None = None


def check_run(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, rows: int = SAMPLE_ROWS
) -> CheckReport:
    """Check a configuration and a sample of its data.

    Args:
        path: The TOML file.
        overrides: As for :func:`widedeep.config.load_config`.
        rows: Rows to look at in each data set.

    Raises:
        ConfigError: If the file is not there.
    """
    report = CheckReport()
    if not os.path.exists(path):
        raise ConfigError(f"{path}: no such file; 'widedeep init DATA' writes one")
    try:
        config = load_config(path, overrides)
    except WideDeepError as error:
        report.problems.append(str(error))
        return report
    _check_optimizers(config, report)
    samples = _check_inputs(config, report, rows)
    if "train" in samples:
        _check_labels(config, samples["train"], report)
        _check_schema(config, samples, report)
    return report


def _check_optimizers(config: RunConfig, report: CheckReport) -> None:
    from widedeep.optim import make_optimizer

    for part in ("wide", "deep", "dense"):
        table = getattr(config.train, part)
        try:
            if table is not None:
                make_optimizer(table)
        except WideDeepError as error:
            report.problems.append(f"[train] {part}: {error}")
    if config.train.patience is not None and not _has_valid(config):
        report.problems.append(
            f"[train] patience = {config.train.patience} needs validation data; write "
            "valid_fraction = 0.1 or valid = FILE under [data]"
        )


def _has_valid(config: RunConfig) -> bool:
    return config.data.valid is not None or config.data.valid_fraction > 0


def _check_inputs(config: RunConfig, report: CheckReport, rows: int) -> dict[str, Sample]:
    data = config.data
    places = {"train": data.train, "valid": data.valid, "test": data.test}
    if data.train is None:
        report.problems.append('[data] names no training data; write train = "FILE"')
    if data.valid is not None and data.valid_fraction:
        report.notes.append("[data] valid is given, so valid_fraction is not used")
    for role in ("valid", "test"):
        if places[role] is not None and _same_place(places[role], data.train):
            report.notes.append(f"[data] {role} is the training data: its metrics will flatter")
    samples: dict[str, Sample] = {}
    for role, place in places.items():
        if place is None:
            continue
        try:
            sample = sample_rows(place, rows=rows, column_types=declared_types(config.spec))
        except WideDeepError as error:
            report.problems.append(f"[data] {role}: {error}")
            continue
        if _check_columns(config, role, sample, report):
            samples[role] = sample
        wanted = [name for name in sample.table.column_names if name in _columns(config)]
        profile = profile_columns(sample.table.select(wanted))
        seen = sample.table.num_rows
        report.inputs.append(
            InputReport(role=role, place=place, rows=sample.total, sampled=seen, columns=profile)
        )
        if role == "train":
            _note_columns(config, profile, report)
    return samples


def _same_place(one: str | list[str] | None, other: str | list[str] | None) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return os.path.realpath(one) == os.path.realpath(other)
    return one == other


def _columns(config: RunConfig) -> dict[str, str]:
    """Return the columns a run reads, and what for."""
    spec = config.spec
    found = dict.fromkeys(spec.columns(), "a feature reads")
    found.update(dict.fromkeys(spec.labels.values(), "is the label"))
    for name, what in ((spec.weight, "is the weight"), (spec.group, "is the group")):
        if name is not None:
            found[name] = what
    return found


def _check_columns(config: RunConfig, role: str, sample: Sample, report: CheckReport) -> bool:
    present = sample.table.column_names
    absent = {n: what for n, what in _columns(config).items() if n not in present}
    for name, what in absent.items():
        hint = nearest(name, present)
        report.problems.append(f"[data] {role}: has no column {name!r}, which {what}; {hint}")
    return not absent


def _note_columns(config: RunConfig, columns: Sequence[ColumnProfile], report: CheckReport) -> None:
    features = set(config.spec.columns())
    for column in columns:
        if column.name not in features:
            continue
        if column.constant:
            report.notes.append(
                f"column {column.name!r} is constant in the sample: {_same(column)}"
            )
        elif column.missing > _MISSING_MUCH:
            report.notes.append(f"column {column.name!r} is {column.missing:.0%} missing")
        elif column.names_rows and not _is_number(config, column.name):
            report.notes.append(
                f"column {column.name!r} has {column.distinct:,} values in {column.rows:,} rows: "
                "it names rows, and nothing can be learned from it"
            )


def _same(column: ColumnProfile) -> str:
    return f"always {column.top[0][0]}" if column.top else "always null"


def _is_number(config: RunConfig, name: str) -> bool:
    return any(isinstance(f, Numeric) and f.source == name for f in config.spec.all_features)


def _check_labels(config: RunConfig, sample: Sample, report: CheckReport) -> None:
    if not config.spec.labels:
        report.problems.append('[data] names no label; write label = "COLUMN"')
    wanted = [*config.spec.labels.values(), config.spec.weight]
    table = sample.table.select([name for name in wanted if name is not None])
    for column in profile_columns(table):
        if column.name == config.spec.weight:
            if column.minimum is not None and column.minimum < 0:
                report.problems.append(
                    f"weight {column.name!r}: got {column.minimum:g}, expected numbers >= 0"
                )
            continue
        report.labels[column.name] = _label_values(column)
        if column.missing:
            report.problems.append(
                f"label {column.name!r} is null in {column.missing:.2%} of the rows; drop them"
            )
        if column.distinct < 2:
            report.problems.append(
                f"label {column.name!r} is {_same(column)}, expected at least two values: "
                "nothing can be learned"
            )


def _label_values(column: ColumnProfile) -> str:
    if column.distinct > 10:
        return column.describe()
    return ", ".join(f"{text} {count / max(1, column.values):.1%}" for text, count in column.top)


def _check_schema(config: RunConfig, samples: dict[str, Sample], report: CheckReport) -> None:
    """Fit and encode the sample, as training will do with all rows."""
    try:
        schema = fit_schema(config.spec, samples["train"].table)
    except WideDeepError as error:
        report.problems.append(f"[data] train: {error}")
        return
    report.schema = schema
    report.notes += list(schema.notes)
    try:
        _check_heads(config, schema)
    except WideDeepError as error:
        report.problems.append(str(error))
    for role, sample in samples.items():
        try:
            _check_encoding(schema, role, sample.table, report)
        except WideDeepError as error:
            report.problems.append(f"[data] {role}: {error}")


def _check_heads(config: RunConfig, schema: Schema) -> None:
    from widedeep.heads import make_heads

    make_heads(schema, config.model.head)


def _check_encoding(schema: Schema, role: str, table: pa.Table, report: CheckReport) -> None:
    batch = Transform(schema)(table, targets=bool(schema.spec.labels))
    if role == "train":
        return
    for name, (unseen, total) in count_values(schema, batch).items():
        if total and unseen / total > _UNSEEN_MUCH:
            report.notes.append(
                f"[data] {role}: {unseen / total:.0%} of the values of {name!r} are not in the "
                "training sample"
            )
