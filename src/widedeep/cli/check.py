"""The verb `check`: tests a configuration against a sample of its data, without training."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.cli.join import (
    check_join,
    column_document,
    column_note,
    is_join_file,
    join_check_document,
    print_join_check,
)
from widedeep.cli.output import Checked, print_json, print_next, print_table, print_text
from widedeep.cli.parser import EXIT_FAILED, EXIT_OK, VerbParser, positive
from widedeep.cli.runs import RunDirectory, train_command, training_data
from widedeep.config import load_config, load_follow_config
from widedeep.data.arrow_types import is_text, logical_type
from widedeep.data.batch import count_values
from widedeep.data.fit import declared_types, fit_schema
from widedeep.data.formats import format_of
from widedeep.data.paths import input_files
from widedeep.data.profile import SAMPLE_ROWS, ColumnProfile, Sample, profile_columns, sample_rows
from widedeep.data.reuse import reuse_inputs
from widedeep.data.sources import RowShare, open_source
from widedeep.data.transform import Transform
from widedeep.errors import ColumnError, ConfigError, DataError, RowError, WideDeepError
from widedeep.features import FeatureSpec
from widedeep.features.learned import ColumnKind
from widedeep.features.spec import item_columns
from widedeep.schema import Schema
from widedeep.training.config import DataConfig, RunConfig

if TYPE_CHECKING:
    from widedeep.training.trainer import Trainer

EXAMPLE = (
    "  widedeep check ads.toml\n"
    "  widedeep check ads.toml --set data.train=other.parquet --rows 100000\n"
    "  widedeep check join.toml       # a join: joins a sample of the users\n\n"
    "Exit code 1 if training, or the join, would fail."
)
NEXT = "widedeep train ads.toml"
_UNSEEN_MUCH = 0.2
_SHOWN = 10


def add_options(parser: VerbParser) -> None:
    """Add the verb's options."""
    parser.option("config CONFIG.toml", "configuration of a run or a join")
    parser.option(
        "--rows N",
        "rows to sample from each data set, or impressions to join",
        type=positive,
        default=50_000,
    )
    parser.set_option()


@reuse_inputs()
def run(arguments: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if is_join_file(arguments.config):
        return _check_join_file(arguments)
    report = check_run(arguments.config, arguments.set, rows=arguments.rows)
    if arguments.json:
        print_json(_check_document(report))
    else:
        _print_check(report)
        if not report.problems:
            print_next(*train_command(arguments))
    return EXIT_FAILED if report.problems else EXIT_OK


def _check_join_file(arguments: argparse.Namespace) -> int:
    check = check_join(arguments.config, arguments.set, rows=arguments.rows)
    if arguments.json:
        print_json(join_check_document(check))
    else:
        print_join_check(check, arguments)
    return EXIT_FAILED if check.problems else EXIT_OK


def _check_document(report: CheckReport) -> dict[str, Any]:
    inputs = {
        data.role: {
            "data": data.path,
            "rows": data.rows,
            "sampled": data.sampled,
            "columns": column_document(data.columns),
        }
        for data in report.inputs
    }
    return {**report.document(), "labels": report.labels, "inputs": inputs}


def _print_check(report: CheckReport) -> None:
    for data in report.inputs:
        rows = f"{data.rows:,} rows" if data.rows is not None else "not counted"
        print_text(f"{data.role}: {data.path} ({rows}, {data.sampled:,} sampled)")
        if data.role == "train":
            cells = [[c.name, str(c.arrow_type), c.describe()] for c in data.columns]
            print_table(["column", "type", "holds"], cells)
            print_text()
    for label, values in report.labels.items():
        print_text(f"label {label}: {values}")
    if report.schema is not None:
        whole = report.inputs[0].rows == report.inputs[0].sampled
        print_text("" if whole else "\nOf the sample alone:")
        print_text(repr(report.schema))
    if report.notes or report.problems:
        print_text()
    schema_notes = () if report.schema is None else report.schema.notes  # printed with it
    report.print_all("training would fail", but_notes=schema_notes)


@dataclass(frozen=True, kw_only=True)
class InputReport:
    """One data set of a run."""

    role: str  # ``"train"``, ``"valid"`` or ``"test"``
    path: str | list[str]  # Path, glob or list of paths
    rows: int | None  # All rows; None where only the first ones were read
    sampled: int  # Sampled rows
    columns: list[ColumnProfile]  # Profiles of the columns that the run reads


@dataclass(kw_only=True)
class CheckReport(Checked):
    """Problems and notes of a check, and the inputs it read."""

    inputs: list[InputReport] = field(default_factory=list)  # Readable data sets
    # Label column: its values with their fractions, or its range
    labels: dict[str, str] = field(default_factory=dict)
    schema: Schema | None = None  # Fitted on the sample; None if that failed


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
    with report.collecting():
        load_follow_config(path, overrides)
    _check_folder(RunDirectory.of_config(path), report)
    samples = _check_inputs(config, report, rows)
    if "train" in samples:
        _check_labels(config, samples["train"], report)
        _check_schema(config, samples, report)
        if len(samples) == sum(path is not None for path in _paths(config).values()):
            _check_whole_columns(config, report.schema, report)
    return report


def _check_folder(directory: RunDirectory, report: CheckReport) -> None:
    """Check that the run folder can be written, and note an earlier run in it."""
    folder = directory.path.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "may not be written" if existing.is_dir() else "is a file"
        report.problems.append(
            f"{directory.path}: the run cannot be written: {existing} {why}; choose another "
            "folder with --out DIR"
        )
        return
    try:
        directory.check_free()
    except WideDeepError as error:
        report.notes.append(str(error))


def _check_optimizers(config: RunConfig, report: CheckReport) -> None:
    from widedeep.optim import make_optimizer
    from widedeep.training.early_stopping import configured_stopping

    for group in ("wide", "deep", "dense"):
        table = getattr(config.train, group)
        with report.collecting(f"[train] {group}: "):
            if table is not None:
                make_optimizer(table)
    with report.collecting():
        has_valid = config.data.valid is not None or config.data.valid_fraction > 0
        configured_stopping(config.train, has_valid=has_valid)


def _check_split(data: DataConfig, report: CheckReport) -> None:
    if data.train is None:
        report.problems.append('[data] names no training data; write train = "FILE"')
    if data.valid is not None and data.valid_fraction:
        report.notes.append("[data] valid is given, so valid_fraction is not used")
    if not data.valid_fraction and (data.valid_by or data.valid_latest):
        report.notes.append(
            "[data] without valid_fraction, valid_by and valid_latest have no effect"
        )


def _check_inputs(config: RunConfig, report: CheckReport, rows: int) -> dict[str, Sample]:
    data, paths = config.data, _paths(config)
    _check_split(data, report)
    _check_null_values(config, report)
    for role in ("valid", "test"):
        if paths[role] is not None and _same_path(paths[role], data.train):
            report.notes.append(f"[data] {role} is the training data: its metrics will be too good")
    samples: dict[str, Sample] = {}
    for role, path in paths.items():
        if path is None:
            continue
        columns = _columns(config)
        sample = _present_columns(role, path, columns, report, rows, declared_types(config.spec))
        if sample is None:
            continue
        if set(columns) <= set(sample.table.column_names):
            samples[role] = sample
        profile = profile_columns(sample.table)
        seen = sample.table.num_rows
        report.inputs.append(
            InputReport(role=role, path=path, rows=sample.total, sampled=seen, columns=profile)
        )
        if role == "train":
            _note_columns(config, profile, report)
    _check_items(config, report, rows)
    return samples


def _check_null_values(config: RunConfig, report: CheckReport) -> None:
    """Tell of words for missing values that no file is read with."""
    data = config.data
    paths = [p for p in (data.train, data.valid, data.test, data.items) if p is not None]
    try:
        files = [file.path for path in paths for file in input_files(path) or ()]
        untyped = [path for path in files if not format_of(path).typed]
    except WideDeepError:
        return  # told where the rows are read
    if config.spec.null_values and not untyped:
        report.notes.append(
            "[data] null_values has no effect: no file is CSV, and others have a null of their own"
        )


def _check_items(config: RunConfig, report: CheckReport, rows: int) -> None:
    """Check the items whose vectors the bundle is to keep."""
    items = config.data.items
    if items is None:
        return
    if all(tower.get("name") != "two_tower" for tower in config.model.deep):
        report.problems.append(
            "[data] items: vectors of items need two towers; add { name = 'two_tower' } to deep "
            "under [model], or leave items out"
        )
    columns = dict.fromkeys(sorted(item_columns(config.spec)), "belongs to the item")
    _present_columns("items", items, columns, report, rows, declared_types(config.spec))


def _paths(config: RunConfig) -> dict[str, str | list[str] | None]:
    return {"train": config.data.train, "valid": config.data.valid, "test": config.data.test}


def _same_path(one: str | list[str] | None, other: str | list[str] | None) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return os.path.realpath(one) == os.path.realpath(other)
    return one == other


def _columns(config: RunConfig) -> dict[str, str]:
    """Return the columns that a run reads, with their use as a phrase."""
    spec = config.spec
    uses = dict.fromkeys(spec.columns(), "a feature reads")
    uses.update(dict.fromkeys(spec.labels.values(), "is the label"))
    weights = [(column, "is a weight") for column in spec.head_weights.values()]
    for name, what in ((spec.weight, "is the weight"), *weights, (spec.group, "is the group")):
        if name is not None:
            uses[name] = what
    return uses


def _present_columns(
    role: str,
    path: str | list[str],
    columns: Mapping[str, str],
    report: CheckReport,
    rows: int,
    column_types: Mapping[str, ColumnKind] | None = None,
) -> Sample | None:
    """Read a sample of the columns that are there; report those that are not."""
    present = dict(columns)
    while present:
        try:
            return sample_rows(path, rows=rows, columns=[*present], column_types=column_types)
        except ColumnError as error:
            report.problems.append(
                f"[data] {role}: has no column {error.column!r}, which "
                f"{present.pop(error.column)}; {error.hint}"
            )
        except WideDeepError as error:
            report.problems.append(f"[data] {role}: {error}")
            break
    return None


def _note_columns(config: RunConfig, columns: Sequence[ColumnProfile], report: CheckReport) -> None:
    features = set(config.spec.columns())
    for column in columns:
        note = column_note(column) if column.name in features else None
        if note is not None:
            report.notes.append(note)
        elif column.name in features and column.names_rows and not _is_number(config, column.name):
            report.notes.append(
                f"column {column.name!r} has {column.distinct:,} values in {column.rows:,} rows: "
                "it identifies rows, so nothing can be learned from it"
            )


def _is_number(config: RunConfig, name: str) -> bool:
    return any(f.learns_numbers and f.main_column == name for f in config.spec.all_features)


def _check_labels(config: RunConfig, sample: Sample, report: CheckReport) -> None:
    if not config.spec.labels:
        report.problems.append('[data] names no label; write label = "COLUMN"')
    names = [*config.spec.labels.values(), *config.spec.weights]
    table = sample.table.select([name for name in names if name is not None])
    for column in profile_columns(table):
        if column.name not in config.spec.weights:
            report.labels[column.name] = _label_values(column)


def _label_values(column: ColumnProfile) -> str:
    if column.distinct > 10:
        return column.describe()
    return ", ".join(f"{text} {count / max(1, column.values):.1%}" for text, count in column.top)


def _check_schema(config: RunConfig, samples: dict[str, Sample], report: CheckReport) -> None:
    """Fit and encode the sample, as training will do with all rows."""
    try:
        train = samples["train"]
        schema = fit_schema(config.spec, config.data.train if train.complete else train.table)
    except WideDeepError as error:
        nulls = any(samples["train"].table[c].null_count for c in config.spec.labels.values())
        if not nulls:  # told of all rows, below
            problem = str(error).replace("of the Table", f"of a sample of {config.data.train}")
            report.problems.append(f"[data] train: {problem}")
        return
    report.schema = schema
    report.notes += list(schema.notes)
    for role, sample in samples.items():
        with report.collecting(f"[data] {role}: "):
            _check_encoding(schema, role, sample.table, report)


def _check_whole_columns(config: RunConfig, schema: Schema | None, report: CheckReport) -> None:
    """Check the labels and weights of all rows against the heads that training would build."""
    if not config.spec.labels:
        return  # told already
    try:
        _, valid = training_data(config)
        targets = {"train": read_targets(config.spec, config.data.train)}
        for role, data in (("valid", valid), ("test", config.data.test)):
            if data is not None:
                targets[role] = read_targets(config.spec, data)
        if config.data.valid is None and valid is not None:
            n_rows, n_valid = (len(targets[role].table) for role in ("train", "valid"))
            if n_rows == n_valid:
                raise DataError("[data] valid_fraction leaves no row to train on; lower it")
            report.problems += targets["valid"].held_back(targets["train"])
    except WideDeepError as error:
        report.problems.append(str(error))
        return
    report.problems += targets["train"].single_valued()
    trainer = None if schema is None else _trial(config, schema, targets, report)
    heads = () if trainer is None else trainer.model.heads
    classes = {} if trainer is None else trainer.model.schema.classes
    for role, role_targets in targets.items():
        stops = role == "valid" and config.train.early_stopping is not False
        problems, notes = role_targets.findings(
            heads, classes, config.train.monitor if stops else None
        )
        report.notes += [f"[data] {role}: {note}" for note in notes if role != "train"]
        if role == "valid" and config.data.valid is None:  # a share of rows that train has told of
            problems = [problem for problem in problems if "monitor" in problem]
        report.problems += [f"[data] {role}: {problem}" for problem in problems]


def _trial(
    config: RunConfig, schema: Schema, targets: Mapping[str, Targets], report: CheckReport
) -> Trainer | None:
    """The trainer that training would make, with the classes of all rows."""
    from widedeep.cli.run_training import make_trainer
    from widedeep.training.early_stopping import (
        as_stopping,
        check_conditions,
        configured_stopping,
    )
    from widedeep.training.evaluation import metric_names

    # The sample's classes may be fewer than those of all rows.
    labels, has_valid = config.spec.labels, "valid" in targets
    classes = {head: targets["train"].classes(labels[head]) for head in schema.classes}
    trainer = None
    with report.collecting():
        trainer = make_trainer(replace(schema, classes=classes), config, progress=False)
        names = metric_names(trainer.model)
        stopping = configured_stopping(config.train, has_valid=has_valid)
        as_stopping(stopping, has_valid=has_valid, names=names)
        check_conditions(config.train, has_valid=has_valid, names=names)
    return trainer


def _check_encoding(schema: Schema, role: str, table: pa.Table, report: CheckReport) -> None:
    transform = Transform(schema)
    batch = transform(table, targets=bool(schema.spec.labels))
    # Those of the training sample are notes of its schema.
    for name, n_lists in transform.truncated.items() if role != "train" else ():
        feature = schema.spec.by_name[name]
        most = feature.most_values
        report.notes.append(
            f"[data] {role}: {n_lists:,} of {len(batch):,} lists of {name!r} are longer than its "
            f"maxlen = {most}; their {feature.end_read} {most} values are read"
        )
    if role == "train":
        return
    for name, (unseen, total) in count_values(schema, batch).items():
        if total and unseen / total > _UNSEEN_MUCH:
            report.notes.append(
                f"[data] {role}: {unseen / total:.0%} of the values of {name!r} are not in the "
                "training sample"
            )


# ---- labels and weights, read whole -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Columns of labels, and of weights if the spec names one, of all rows."""

    spec: FeatureSpec  # Says what the columns are
    table: pa.Table  # The columns, text in full
    # Where runs of rows come from: the first one's number here, its file, and its number there
    origins: Sequence[tuple[int, str, int]]
    row_name: Callable[[str, int], str]  # How a person finds a row of a file

    def _where(self, row: int) -> str:
        """Return a row's place in its file."""
        first, origin, first_there = max(one for one in self.origins if one[0] <= row)
        return self.row_name(origin, first_there + row - first)

    def classes(self, column: str) -> tuple[str, ...]:
        """Return the classes of a label that is text, sorted; none for numbers."""
        values = self._values(column)
        if self.spec.label_vocabulary or not is_text(values.type):
            return tuple(self.spec.label_vocabulary or ())
        return tuple(sorted(v for v in pc.unique(values).to_pylist() if v is not None))

    def _values(self, column: str) -> pa.ChunkedArray:
        """Return a label's values, of a column of lists those in the lists."""
        values = self.table[column]
        return pc.list_flatten(values) if self._is_list(column) else values

    def _is_list(self, column: str) -> bool:
        kind = logical_type(self.table[column].type)
        return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))

    def findings(
        self, heads: Sequence[Any], classes: Mapping[str, Sequence[str]], monitor: str | None
    ) -> tuple[list[str], list[str]]:
        """Return the problems for which training or evaluation would fail, and notes."""
        weights, problems = self._weights()
        reasons: dict[str, str] = {}
        for column in self.spec.labels.values():
            problems += self._nulls(column)
        for head, column in zip(heads, self.spec.labels.values(), strict=False):
            # A null leaves its row to the others.
            has_label = np.asarray(self.table[column].is_valid())
            if not has_label.any() or (len(self.spec.labels) == 1 and not has_label.all()):
                continue
            try:
                labels = self._labels(head, column, tuple(classes.get(head.name, ())))
            except DataError as error:
                problems.append(str(error))
                continue
            label_weights = None if weights is None else weights[has_label]
            if head.kind != "multilabel" and (label_weights is None or (label_weights > 0).any()):
                prefix = f"{head.name}/" if len(heads) > 1 else ""
                why = _undefined(head, labels[has_label], label_weights)
                reasons |= {f"{prefix}{name}": text for name, text in why.items()}
        if monitor in reasons:
            problems.append(f"[train] monitor = {monitor!r} is not defined: {reasons[monitor]}")
        ranked = [name for name in reasons if name.rpartition("/")[2] == "auc" and name != monitor]
        return problems, [f"{name} will be undefined: {reasons[name]}" for name in ranked]

    def single_valued(self) -> list[str]:
        """Return a problem for each label column with a single value."""
        return [
            f"label {column!r} is always {values[0].as_py()}, expected at least two values: "
            "nothing can be learned"
            for column in self.spec.labels.values()
            if not pa.types.is_nested(self.table[column].type)
            and len(values := pc.unique(self.table[column].drop_null())) == 1
        ]

    def held_back(self, whole: Targets) -> list[str]:
        """Return a problem for each label with a class that all data have in these rows alone."""
        problems = []
        for column in self.spec.labels.values():
            if self.spec.label_vocabulary or not is_text(self._values(column).type):
                continue
            own, of_all = (
                {entry["values"]: entry["counts"] for entry in counts.to_pylist()}
                for counts in (pc.value_counts(one._values(column)) for one in (self, whole))
            )
            lost = [v for v, count in own.items() if v is not None and count == of_all[v]]
            if lost:
                problems.append(
                    f"[data] valid_fraction: all rows whose label {column!r} is {lost[0]!r} are "
                    "kept for validation, so that training knows no such class; drop them, or name "
                    "valid = FILE"
                )
        return problems

    def _nulls(self, column: str) -> list[str]:
        values = self.table[column]
        if not values.null_count or (len(self.spec.labels) > 1 and values.null_count < len(values)):
            return []
        return [
            f"label {column!r} is null in {values.null_count / len(values):.2%} of the rows (the "
            f"first: {self._where(_first(pc.is_null(values)))}); drop them"
        ]

    def _labels(self, head: Any, column: str, classes: tuple[str, ...]) -> np.ndarray[Any, Any]:
        """A label's column as the numbers that a head learns."""
        import torch

        values, name = self._values(column), f"label {column!r}"
        is_list = self._is_list(column)
        if is_text(values.type):
            indices = pc.index_in(values, pa.array(classes, pa.string()))
            unknown = pc.and_(pc.is_null(indices), pc.is_valid(values))
            if pc.any(unknown).as_py():
                at = _first(unknown)
                where = "" if is_list else f" ({self._where(at)})"
                raise DataError(
                    f"{name}{where}: got {values[at].as_py()!r}, expected one of "
                    f"{list(classes[:_SHOWN])}, the classes of the training data"
                )
            return np.asarray(pc.fill_null(indices, 0), np.float32)
        try:
            labels = np.asarray(values.cast(pa.float64()))
        except pa.ArrowException as error:
            raise DataError(f"{name}: got a column of {values.type}, expected numbers") from error
        has_value = np.asarray(values.is_valid())
        labels = np.where(has_value, labels, 0.0)
        if is_list:
            return labels.astype(np.float32)
        if not np.isfinite(labels).all():
            row = int((~np.isfinite(labels)).argmax())
            where = self._where(row)
            raise DataError(f"{name} ({where}): got {labels[row]}, expected a finite number")
        try:
            numbers = np.where(has_value, labels, labels[has_value][0])
            head.check_labels(torch.from_numpy(numbers.astype(np.float32)), column)
        except RowError as error:
            raise error.at(self._where(error.row)) from error
        return labels.astype(np.float32)

    def _weights(self) -> tuple[np.ndarray[Any, Any] | None, list[str]]:
        """Return the weights and their problems."""
        column = self.spec.weight
        if column is None:
            return None, []
        values, name = self.table[column], f"weight {column!r}"
        try:
            weights = np.asarray(values.cast(pa.float64()))
        except pa.ArrowException:
            return None, [f"{name}: got a column of {values.type}, expected numbers >= 0"]
        bad = ~(np.isfinite(weights) & (weights >= 0))
        if bad.any():
            row = int(bad.argmax())
            got = f"{weights[row]:g}" if values[row].is_valid else "null"
            return None, [f"{name}: got {got} in {self._where(row)}, expected numbers >= 0"]
        if not weights.any():
            return weights, [f"{name}: got 0 in every row; give some rows a weight above 0"]
        return weights, []


def read_targets(spec: FeatureSpec, data: Any) -> Targets:
    """Read the labels and weights of all rows."""
    names = [*spec.labels.values(), *spec.weights]
    with open_source(data, columns=names, column_types=declared_types(spec)) as source:
        if not source.num_rows and isinstance(data, RowShare):
            raise DataError(
                f"[data] no row lies in the validation share{data.description}; set another "
                "valid_fraction, or name valid = FILE"
            )
        if not source.num_rows:
            raise DataError("got no rows; expected at least one example")
        table = pa.concat_tables([source.read(fragment, names) for fragment in source.fragments])
        starts = np.cumsum([0, *(fragment.num_rows for fragment in source.fragments)]).tolist()
        origins = [
            (start, fragment.origin, fragment.first_row)
            for start, fragment in zip(starts, source.fragments, strict=False)
        ]
    columns = [_plain(column) for column in table.columns]
    table = pa.table(columns, names=table.column_names)
    return Targets(spec=spec, table=table, origins=origins, row_name=source.row_name)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_text = logical_type(column.type) in (pa.string(), pa.binary())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if is_text else column


def _first(flags: pa.ChunkedArray) -> int:
    return int(np.asarray(flags).argmax())


def _undefined(
    head: Any, labels: np.ndarray[Any, Any], weights: np.ndarray[Any, Any] | None
) -> dict[str, str]:
    """Why metrics are not defined for these labels, whatever the model predicts."""
    from widedeep.training.evaluation import make_metrics

    metrics = make_metrics(head, groups=False)
    scores = np.zeros((len(labels), head.width), np.float32)
    if head.kind == "multiclass":
        metrics.update(scores, labels.astype(np.int64), weights)
    else:
        metrics.update(scores[:, 0], labels, weights)
    metrics.compute()
    return {k: v for k, v in metrics.reasons.items() if k not in ("precision", "recall")}
