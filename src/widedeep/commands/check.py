"""Does a configuration fit its data? Answered from a sample, without training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from widedeep.commands.run_directory import RunDirectory
from widedeep.commands.targets import Targets, read_targets
from widedeep.config import load_config
from widedeep.data.batch import count_values
from widedeep.data.fit import declared_types, fit_schema
from widedeep.data.profile import SAMPLE_ROWS, ColumnProfile, Sample, profile_columns, sample_rows
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError, WideDeepError, nearest
from widedeep.features import Numeric
from widedeep.schema import Schema
from widedeep.training.config import DataConfig, RunConfig

if TYPE_CHECKING:
    from widedeep.training.trainer import Trainer

_MISSING_MUCH = 0.5
_UNSEEN_MUCH = 0.2


@dataclass(frozen=True, kw_only=True)
class InputReport:
    """One data set of a run."""

    role: str  # ``"train"``, ``"valid"`` or ``"test"``
    place: str | list[str]  # Its path, glob or list of paths
    rows: int | None  # Rows in all, or None where only its beginning was read
    sampled: int  # Rows looked at
    columns: list[ColumnProfile]  # What the columns hold that the run reads


@dataclass(kw_only=True)
class CheckReport:
    """What a check found."""

    # What must be put right before training can succeed
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # What a person should know
    inputs: list[InputReport] = field(default_factory=list)  # The data sets that could be read
    # By label column: its values with their shares, or its range
    labels: dict[str, str] = field(default_factory=dict)
    schema: Schema | None = None  # Fitted on the sample, or None if that failed


def check_run(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, rows: int = SAMPLE_ROWS
) -> CheckReport:
    """Check a configuration and a sample of its data."""
    report = CheckReport()
    if not os.path.exists(path):
        raise ConfigError(f"{path}: no such file; 'widedeep init DATA' writes one")
    try:
        config = load_config(path, overrides)
    except WideDeepError as error:
        report.problems.append(str(error))
        return report
    _check_optimizers(config, report)
    _check_follow(path, overrides, report)
    _check_place(RunDirectory.of_config(path), report)
    samples = _check_inputs(config, report, rows)
    if "train" in samples:
        _check_labels(config, samples["train"], report)
        _check_schema(config, samples, report)
        if len(samples) == sum(place is not None for place in _places(config).values()):
            _check_whole_columns(config, report.schema, report)
    return report


def _check_follow(
    path: str | os.PathLike[str], overrides: Sequence[str], report: CheckReport
) -> None:
    from widedeep.config import load_follow_config

    try:
        load_follow_config(path, overrides)
    except WideDeepError as error:
        report.problems.append(str(error))


def _check_place(directory: RunDirectory, report: CheckReport) -> None:
    """Say whether the run's folder can be written, and what is in it."""
    folder = directory.path.absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "may not be written" if existing.is_dir() else "is a file"
        report.problems.append(
            f"{directory.path}: the run cannot be written there: {existing} {why}; name another "
            "folder with --out DIR"
        )
        return
    try:
        directory.check_free()
    except WideDeepError as error:
        report.notes.append(str(error))


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


def _check_split(data: DataConfig, report: CheckReport) -> None:
    if data.train is None:
        report.problems.append('[data] names no training data; write train = "FILE"')
    if data.valid is not None and data.valid_fraction:
        report.notes.append("[data] valid is given, so valid_fraction is not used")
    if not data.valid_fraction and (data.valid_by or data.valid_latest):
        report.notes.append("[data] without valid_fraction, valid_by and valid_latest say nothing")


def _check_inputs(config: RunConfig, report: CheckReport, rows: int) -> dict[str, Sample]:
    data, places = config.data, _places(config)
    _check_split(data, report)
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


def _places(config: RunConfig) -> dict[str, str | list[str] | None]:
    return {"train": config.data.train, "valid": config.data.valid, "test": config.data.test}


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
        if column.name != config.spec.weight:
            report.labels[column.name] = _label_values(column)


def _label_values(column: ColumnProfile) -> str:
    if column.distinct > 10:
        return column.describe()
    return ", ".join(f"{text} {count / max(1, column.values):.1%}" for text, count in column.top)


def _check_schema(config: RunConfig, samples: dict[str, Sample], report: CheckReport) -> None:
    """Fit and encode the sample, as training will do with all rows."""
    try:
        schema = fit_schema(config.spec, samples["train"].table)
    except WideDeepError as error:
        nulls = any(samples["train"].table[c].null_count for c in config.spec.labels.values())
        if not nulls:  # told of all rows, below
            report.problems.append(f"[data] train: {error}")
        return
    report.schema = schema
    report.notes += list(schema.notes)
    for role, sample in samples.items():
        try:
            _check_encoding(schema, role, sample.table, report)
        except WideDeepError as error:
            report.problems.append(f"[data] {role}: {error}")


def _check_whole_columns(config: RunConfig, schema: Schema | None, report: CheckReport) -> None:
    """Make what training makes, and hold every label and weight against it."""
    from widedeep.commands.run_data import training_data

    try:
        _, valid = training_data(config)
        targets = {"train": read_targets(config.spec, config.data.train)}
        for role, data in (("valid", valid), ("test", config.data.test)):
            if data is not None:
                targets[role] = read_targets(config.spec, data)
    except WideDeepError as error:
        report.problems.append(str(error))
        return
    report.problems += targets["train"].single_valued()
    trainer = None if schema is None else _trial(config, schema, targets, report)
    heads = () if trainer is None else trainer.model.heads
    classes = {} if trainer is None else trainer.model.schema.classes
    for role, found in targets.items():
        stops = role == "valid" and config.train.early_stopping is not False
        problems = found.problems(heads, classes, config.train.monitor if stops else None)
        if role == "valid" and config.data.valid is None:  # a share of rows that train has told of
            problems = [problem for problem in problems if "monitor" in problem]
        report.problems += [f"[data] {role}: {problem}" for problem in problems]


def _trial(
    config: RunConfig, schema: Schema, targets: Mapping[str, Targets], report: CheckReport
) -> Trainer | None:
    """The trainer that training would make, with the classes of all rows."""
    from widedeep.commands.train import early_stopping, make_trainer
    from widedeep.training.early_stopping import EarlyStopping
    from widedeep.training.evaluation import metric_names

    # The sample's classes may be fewer than those of all rows.
    labels = config.spec.labels
    classes = {head: targets["train"].classes(labels[head]) for head in schema.classes}
    try:
        trainer = make_trainer(replace(schema, classes=classes), config, progress=False)
        stopping = early_stopping(config.train, has_valid="valid" in targets)
        if isinstance(stopping, EarlyStopping):
            stopping.check_monitor(metric_names(trainer.model))
    except WideDeepError as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))
        return None
    return trainer


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
