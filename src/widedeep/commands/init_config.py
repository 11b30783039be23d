"""A first configuration for a table: which column is what, guessed from a sample and explained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from widedeep.config import config_from_tables
from widedeep.data.fragments import Source
from widedeep.data.profile import ColumnProfile, confirm_columns, profile_columns
from widedeep.data.sample import Sample, sample_source
from widedeep.data.sources import open_source
from widedeep.directory import write_text_whole
from widedeep.errors import ConfigError, DataError, nearest
from widedeep.features.toml import toml_key, toml_value

__all__ = ["Proposal", "Role", "config_text", "propose_config", "write_config"]

Role = Literal["label", "numeric", "categorical", "left out"]

_LABEL_NAMES = (
    *("label", "target", "y", "click", "clicked", "is_click", "is_clicked", "conversion"),
    *("converted", "purchase", "purchased", "install", "installed", "outcome", "response"),
)
_WEIGHT_NAMES = ("weight", "weights", "sample_weight", "example_weight")
_GROUP_NAMES = ("query_id", "request_id", "session_id", "user_id", "qid")
_POSITION_NAMES = ("position", "rank", "slot", "impression_position")
_NULL_WORDS = ("?", "-", "na", "n/a", "nan", "null", "none")
_MANY_VALUES = 10_000
_VALID_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a column is proposed to be, and why.

    Args:
        column: What a sample of it holds.
        role: Label, feature or neither.
        options: The feature's options.
        reason: Why, where it is not plain to see.
    """

    column: ColumnProfile
    role: Role
    options: Mapping[str, object] = field(default_factory=dict)
    reason: str = ""

    def describe(self) -> str:
        """Return what the column holds, and why it is proposed as it is."""
        said = self.column.describe(as_category=self.role == "categorical")
        if self.role == "left out":
            return self.reason
        return f"{said} ({self.reason})" if self.reason else said


def write_config(
    data: str, path: str | os.PathLike[str], *, label: str | None = None, overwrite: bool = False
) -> list[Proposal]:
    """Write a first configuration for a table beside it or elsewhere.

    Args:
        data: A path or glob of the training data.
        path: The TOML file to write.
        label: The label's column; None: guessed from names.
        overwrite: Replace a file that is already there.

    Returns:
        A proposal for each column, in the table's order.

    Raises:
        ConfigError: If the file exists, or no column can be told to be the label.
        DataError: If the data cannot be read, or lacks the label.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: is there already; name another file (-o), or add --force")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no folder {path.parent}; make it first")
    with open_source(data) as source:
        if not source.num_rows:
            raise DataError(f"{data}: got no rows; expected at least one example")
        sample = sample_source(source)
        proposals = propose_config(sample, label=label, source=source)
    text = config_text(proposals, sample, data, path.parent)
    _check_text(text, path)
    try:
        write_text_whole(path, text)
    except OSError as error:
        cause = error.strerror or error
        raise ConfigError(f"{path}: cannot be written ({cause}); name another file (-o)") from error
    return proposals


def _check_text(text: str, path: Path) -> None:
    """Fail here rather than in the user's next command."""
    import tomllib

    config_from_tables(tomllib.loads(text), folder=path.parent, origin=str(path))


def propose_config(
    sample: Sample, *, label: str | None = None, source: Source | None = None
) -> list[Proposal]:
    """Return what each column of a sample may be.

    Args:
        sample: Some rows.
        label: The label's column; None: guessed from names.
        source: The table they are from: what leaves a column out must hold in all of its rows.

    Raises:
        ConfigError: If no label is given and none can be told, or no feature is left.
        DataError: If there is no such column.

    Example:
        >>> from widedeep.data.sample import sample_rows
        >>> rows = [{"age": 20 + i % 9, "job": "ab"[i % 2], "click": i % 2} for i in range(40)]
        >>> [(p.column.name, p.role) for p in propose_config(sample_rows(rows))]
        [('age', 'numeric'), ('job', 'categorical'), ('click', 'label')]
    """
    columns = profile_columns(sample.table)
    chosen = _label_of(columns, label)
    if source is not None and not sample.complete:
        columns = confirm_columns(columns, source, also=[chosen])
    found = [
        Proposal(column=column, role="label") if column.name == chosen else _propose(column)
        for column in columns
    ]
    if all(proposal.role in ("label", "left out") for proposal in found):
        told = "; ".join(f"{p.column.name}: {p.reason}" for p in found if p.role == "left out")
        raise ConfigError(f"got no column that can be a feature ({told}); give a table with more")
    return found


def _label_of(columns: Sequence[ColumnProfile], label: str | None) -> str:
    names = [column.name for column in columns]
    if label is not None and label not in names:
        raise DataError(f"got --label {label!r}, which is no column; {nearest(label, names)}")
    return label or _guess_label(columns)


def _guess_label(columns: Sequence[ColumnProfile]) -> str:
    lower = {column.name.lower(): column.name for column in columns}
    for name in _LABEL_NAMES:
        if name in lower:
            return lower[name]
    two_values = [c.name for c in columns if c.distinct == 2 and not c.nested and not c.missing]
    if columns and columns[-1].name in two_values:
        return columns[-1].name
    told = (
        f"columns with two values: {', '.join(two_values)}" if two_values else "none has two values"
    )
    raise ConfigError(f"cannot tell which column is the label ({told}); give --label NAME")


def _propose(column: ColumnProfile) -> Proposal:
    if not column.name:
        reason = "has no name; give it one in the file, or leave it out"
        return Proposal(column=column, role="left out", reason=reason)
    if column.constant and column.complete:
        reason = "has no value" if not column.values else f"is always {column.top[0][0]}"
        return Proposal(column=column, role="left out", reason=reason)
    if column.kind == "time":
        reason = "is a time; make columns of what matters in it: hour, weekday, age in days"
        return Proposal(column=column, role="left out", reason=reason)
    if column.kind == "other":
        reason = f"is of type {column.arrow_type}, which no feature reads"
        return Proposal(column=column, role="left out", reason=reason)
    if column.nested:
        return _propose_list(column)
    return _propose_number(column) if column.kind in ("int", "float") else _propose_value(column)


def _propose_list(column: ColumnProfile) -> Proposal:
    if column.kind != "float":
        return Proposal(column=column, role="categorical", reason="lists: a multi-valued feature")
    if column.list_size is None:
        reason = "is lists of numbers of different lengths"
        return Proposal(column=column, role="left out", reason=reason)
    options = {"size": column.list_size}
    return Proposal(column=column, role="numeric", options=options, reason="a vector")


def _propose_number(column: ColumnProfile) -> Proposal:
    names_rows = column.names_rows and column.complete
    if column.kind == "int" and names_rows and (column.named_like_id or _counts_up(column)):
        return Proposal(column=column, role="left out", reason=_NAMES_ROWS)
    if column.kind == "int" and column.named_like_id:
        return _id_like(column)
    if column.named_like_id and column.whole:
        reason = "is an id by its name but a float; write it as integers to use it as a category"
        return Proposal(column=column, role="left out", reason=reason)
    if column.name.lower() in _WEIGHT_NAMES:
        reason = "if it is the weight of an example: weight = ... under [data] instead"
        return Proposal(column=column, role="numeric", reason=reason)
    return Proposal(column=column, role="numeric")


def _propose_value(column: ColumnProfile) -> Proposal:
    if column.names_rows and column.complete:
        return Proposal(column=column, role="left out", reason=_NAMES_ROWS)
    if column.named_like_id or column.distinct > min(_MANY_VALUES, 0.3 * column.values):
        return _id_like(column)
    words = [text for text, _ in column.top if text.lower() in _NULL_WORDS or text == "''"]
    reason = f"{words[0]!r} is a value, not null" if words else ""
    return Proposal(column=column, role="categorical", reason=reason)


_NAMES_ROWS = "has a value of its own in nearly every row: it names rows"


def _counts_up(column: ColumnProfile) -> bool:
    assert column.minimum is not None
    assert column.maximum is not None
    return column.maximum - column.minimum < 1.1 * column.values


def _id_like(column: ColumnProfile) -> Proposal:
    reason = "id-like: values seen once share one id"
    return Proposal(column=column, role="categorical", options={"min_count": 2}, reason=reason)


def config_text(
    proposals: Sequence[Proposal], sample: Sample, data: str, folder: str | os.PathLike[str]
) -> str:
    """Return the proposals as TOML with a comment on each line that was guessed.

    Args:
        proposals: One a column, exactly one of them the label.
        sample: What they were made from.
        data: The path or glob they were made from.
        folder: Where the file will lie; paths in it are relative to it.
    """
    seen = f"{sample.table.num_rows:,} rows"
    if not sample.complete:
        seen = f"{seen} of {sample.total:,}" if sample.total else f"its first {seen}"
    blocks = [
        f"# Written by: widedeep init {data}\n"
        f"# Guessed from {seen}: read it through, change what you know better.",
        _data_block(proposals, data, Path(folder)),
        _features_block(proposals),
        _model_block(proposals),
        _train_block(proposals),
    ]
    return "\n\n".join(blocks) + "\n"


def _data_block(proposals: Sequence[Proposal], data: str, folder: Path) -> str:
    label = next(p.column for p in proposals if p.role == "label")
    lines = ["[data]", f"train = {toml_value(_relative(data, folder))}"]
    others = _siblings(data)
    lines += [f"{role} = {toml_value(_relative(path, folder))}" for role, path in others.items()]
    if "valid" not in others:
        lines.append(
            f"valid_fraction = {_VALID_FRACTION}  # of the training rows; or name a file: valid ="
        )
    lines.append(f"label = {toml_value(label.name)}  # {_shares(label)}")
    for column in (p.column for p in proposals if p.role != "label"):
        if column.name.lower() in _GROUP_NAMES:
            lines.append(f"# group = {toml_value(column.name)}  # adds metrics within each group")
            break
    return "\n".join(lines)


def _shares(label: ColumnProfile) -> str:
    if label.distinct > 10:
        return label.describe()
    shares = [f"{text}: {100 * count / max(1, label.values):.3g}%" for text, count in label.top]
    return ", ".join([*shares, *([f"missing: {label.missing:.2%}"] if label.missing else [])])


def _siblings(data: str) -> dict[str, str]:
    """Return test and validation files that lie beside a training file and are named like it."""
    path = Path(data)
    found: dict[str, str] = {}
    for role, names in (("valid", ("valid", "validation", "dev")), ("test", ("test",))):
        for name in names:
            other = path.with_name(path.name.replace("train", name))
            if other != path and other.is_file():
                found.setdefault(role, str(other))
    return found


def _relative(path: str, folder: Path) -> str:
    """Seen from the file's folder, or absolute where that would climb far up."""
    found = os.path.relpath(path, folder)
    return os.path.abspath(path) if os.path.isabs(path) or found.startswith("../../..") else found


def _features_block(proposals: Sequence[Proposal]) -> str:
    lines = ["[features]"]
    for role in ("numeric", "categorical"):
        lines += _list_lines(role, [p for p in proposals if p.role == role])
    lines += _cross_lines(proposals)
    for proposal in proposals:
        if proposal.options:
            options = toml_value(proposal.options)
            lines.append(f"options.{toml_key(proposal.column.name)} = {options}")
    left_out = [p for p in proposals if p.role == "left out"]
    if left_out:
        lines.append("# Left out:")
        lines += [f"#   {p.column.name or '(no name)'}: {p.reason}" for p in left_out]
    for proposal in proposals:
        name = proposal.column.name
        if name.lower() in _POSITION_NAMES and proposal.role in ("numeric", "categorical"):
            value = 1 if proposal.role == "numeric" else "1"
            lines.append("# If it is not known when a row is scored, fix its value there:")
            lines.append(f"# training_only = {toml_value({name: value})}")
    return "\n".join(lines)


def _list_lines(role: str, proposals: Sequence[Proposal]) -> list[str]:
    if not proposals:
        return []
    entries = [f"    {toml_value(proposal.column.name)}," for proposal in proposals]
    width = max(len(entry) for entry in entries)
    lines = []
    for entry, proposal in zip(entries, proposals, strict=True):
        lines.append(f"{entry.ljust(width)}  # {proposal.describe()}")
    return [f"{role} = [", *lines, "]"]


def _cross_lines(proposals: Sequence[Proposal]) -> list[str]:
    names = [
        p.column.name
        for p in proposals
        if p.role == "categorical"
        and not p.options
        and not p.column.nested
        and p.column.distinct > 2
    ]
    if len(names) < 2:
        return []
    example = toml_value([names[:2]])
    return [
        "# Crosses are what the wide part memorises; name categories that matter together:",
        f"# crossed = {example}",
    ]


def _model_block(proposals: Sequence[Proposal]) -> str:
    lines = ["[model]", "hidden_units = [256, 128]", "embedding_dim = 16"]
    if _is_regression(proposals):
        lines.append('head = "regression"  # the label is a number outside 0 to 1')
    return "\n".join(lines)


def _is_regression(proposals: Sequence[Proposal]) -> bool:
    label = next(p.column for p in proposals if p.role == "label")
    if label.minimum is None or label.maximum is None:
        return False
    return label.minimum < 0 or label.maximum > 1


def _train_block(proposals: Sequence[Proposal]) -> str:
    monitor = "rmse" if _is_regression(proposals) else "log_loss"
    return f"""[train]
epochs = 10
patience = 2  # stop after this many epochs without a better result, and keep the best model
monitor = "{monitor}"
wide = {{ optimizer = "ftrl" }}
deep = {{ optimizer = "adagrad" }}"""
