"""infer_spec: a first declaration of features for a table, explained column by column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from widedeep.data.infer_evidence import SuggestedCross, item_columns, measure
from widedeep.data.profile import ColumnProfile, confirm_columns, profile_columns, sample_source
from widedeep.data.roles import InferredColumn, assign_roles, joined_roles, label_of
from widedeep.data.sources import Data, open_source
from widedeep.errors import ConfigError, DataError
from widedeep.features import Feature, FeatureSpec, bucketized, categorical, crossed, numeric
from widedeep.features.spec import spec_to_table
from widedeep.features.toml import toml_key, toml_value

__all__ = ["InferredSpec", "data_lines", "features_block", "infer_spec"]

HeadKind = Literal["binary", "multiclass", "regression"]

_BINS = 255
_CROSS_BINS = 32
_SAMPLE_ROWS = 400_000
_SAMPLE_VALUES = 40_000_000
_USER_NAMES = ("user_id", "user")


@dataclass(frozen=True, kw_only=True, repr=False)
class InferredSpec:
    """A declaration of features inferred from a table, with the reason of each choice.

    Args:
        spec: The declaration.
        columns: What each column is taken for, in the table's order.
        crosses: The suggested crosses with their gains, the largest first.
        warnings: What a person should look at before training.
        head: What the label asks for.
        sampled: Rows looked at.
        total: Rows of the table.
    """

    spec: FeatureSpec
    columns: tuple[InferredColumn, ...]
    crosses: tuple[SuggestedCross, ...] = ()
    warnings: tuple[str, ...] = ()
    head: HeadKind = "binary"
    sampled: int = 0
    total: int = 0

    @property
    def reasons(self) -> dict[str, str]:
        """Why each column and each cross is what it is, by name."""
        reasons = {column.name: column.describe() for column in self.columns}
        return reasons | {" x ".join(cross.columns): cross.reason for cross in self.crosses}

    @property
    def time(self) -> str | None:
        """The column of the time at which each row happened, None if there is none."""
        return next((c.name for c in self.columns if c.role == "time"), None)

    def to_toml(self) -> str:
        """Return ``[data]`` and ``[features]`` as TOML, each choice with its reason beside it.

        :meth:`widedeep.FeatureSpec.from_toml` reads it to an equal spec.
        """
        return "\n".join(["[data]", *data_lines(self), "", features_block(self)]) + "\n"

    def __repr__(self) -> str:
        rows: list[tuple[str, str, str]] = [
            (c.name or "(no name)", c.role, c.describe()) for c in self.columns
        ]
        rows += [(" x ".join(c.columns), "cross", c.reason) for c in self.crosses]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines = [f"{n:<{widths[0]}}  {r:<{widths[1]}}  {why}".rstrip() for n, r, why in rows]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def infer_spec(
    data: Data,
    *,
    label: str | None = None,
    head: HeadKind | None = None,
    crosses: int = 16,
    rows: int = _SAMPLE_ROWS,
    seed: int = 0,
) -> InferredSpec:
    """Infer which column of a table is what, and return it as a declaration with reasons.

    Rows are sampled from the whole input. Numbers become numeric features and bins, text, booleans,
    lists and integer keys categorical ones. Columns that name rows, times, constants and copies of
    other columns are left out. Crosses are suggested where they say more of held rows than their
    parts do alone.

    Args:
        data: As for :func:`widedeep.fit_schema`: a path, a glob, a data frame, an Arrow table.
        label: The label's column; None: guessed from names. Without a label nothing is measured.
        head: What the label asks for; None: by its values.
        crosses: Most crosses to suggest; 0 measures none.
        rows: Most rows to sample, at least 1.
        seed: Of the halves that gains are measured on.

    Returns:
        The declaration, a reason for each column, and warnings.

    Raises:
        ConfigError: If no column can be a feature.
        DataError: If the data cannot be read, or lacks the label.

    Example:
        >>> import widedeep as wd
        >>> rows = [{"age": 20 + i % 9, "job": "ab"[i % 2], "click": i % 2} for i in range(40)]
        >>> inferred = wd.infer_spec(rows)
        >>> inferred.spec.label, list(inferred.spec.by_name)
        ('click', ['age', 'age_bin', 'job'])
    """
    with open_source(data) as source:
        if not source.num_rows:
            raise DataError(f"{data}: got no rows; expected at least one example")
        rows = max(1, min(rows, _SAMPLE_VALUES // max(1, len(source.arrow_schema.names))))
        sample = sample_source(source, rows=rows)
        profiles = profile_columns(sample.table)
        label = label_of(profiles, label)
        if not sample.complete:
            also = [] if label is None else [label]
            profiles = confirm_columns(profiles, source, also=also)
    joined = joined_roles(data)
    columns = assign_roles(profiles, label, joined)
    head = _head_of(next((p for p in profiles if p.name == label), None), head)
    evidence = measure(sample.table, columns, label, head, crosses=crosses, seed=seed)
    if not any(column.is_feature for column in evidence.columns):
        reasons = "; ".join(f"{c.name}: {c.reason}" for c in evidence.columns if c.reason)
        raise ConfigError(
            f"got no column that can be a feature ({reasons}); give a table with more"
        )
    spec = _spec(evidence.columns, evidence.crosses, label)
    # What was counted of a user and an item together belongs to neither.
    if "request" in joined.values() and "history" not in joined.values():
        spec = replace(spec, item=item_columns(sample.table, evidence.columns))
    return InferredSpec(
        spec=spec,
        columns=evidence.columns,
        crosses=evidence.crosses,
        warnings=(*_value_warnings(profiles, label, head), *evidence.warnings),
        head=head,
        sampled=sample.table.num_rows,
        total=sample.total,
    )


def _head_of(label: ColumnProfile | None, head: HeadKind | None) -> HeadKind:
    if label is None:
        return head or "binary"
    number = label.kind in ("int", "float")
    if label.nested or label.kind in ("time", "other") or (head == "regression" and not number):
        expected = "numbers" if head == "regression" else "numbers, text or booleans"
        raise DataError(
            f"label {label.name!r}: got a column of {label.arrow_type}, expected {expected}"
        )
    if head is not None:
        return head
    if label.minimum is None or label.maximum is None:
        return "multiclass" if label.distinct > 2 else "binary"
    return "regression" if label.minimum < 0 or label.maximum > 1 else "binary"


def _value_warnings(
    profiles: Sequence[ColumnProfile], label: str | None, head: HeadKind
) -> list[str]:
    warnings = [
        f"{p.name}: holds infinity, which no feature reads; write null or clip it"
        for p in profiles
        if p.minimum == -math.inf or p.maximum == math.inf
    ]
    return [*warnings, *_label_warnings(profiles, label, head)]


def _label_warnings(
    profiles: Sequence[ColumnProfile], label: str | None, head: HeadKind
) -> list[str]:
    column = next((p for p in profiles if p.name == label), None)
    if column is None:
        return ["no column looks like the label, so nothing was measured; give label=NAME"]
    if column.constant:
        return [f"{label}: is the same in every row, so there is nothing to tell apart"]
    warnings = []
    if column.missing:
        warnings.append(f"{label}: {column.missing:.2%} of its rows have no label; drop them")
    if column.whole and head == "regression" and column.distinct <= 10:
        advice = "make it 0 and 1" if column.distinct == 2 else "make it text"
        warnings.append(
            f"{label}: {column.distinct} whole numbers, taken for a number; if they are classes, "
            f"{advice}"
        )
    return warnings


def _spec(
    columns: Sequence[InferredColumn], crosses: Sequence[SuggestedCross], label: str | None
) -> FeatureSpec:
    features: list[Feature] = []
    deep: list[str] = []
    names = {column.name for column in columns}
    for column in columns:
        declare = {"numeric": numeric, "categorical": categorical}.get(column.role)
        if declare is not None:
            features += declare(column.name, **column.options)  # type: ignore[operator]
            deep.append(column.name)
        if column.bins:
            name = _free_name(f"{column.name}_bin", names)
            features.append(bucketized(name, source=column.name, bins=_BINS))
            deep.append(name)
    parts = {c.name: c.name for c in columns}
    for name in dict.fromkeys(name for cross in crosses for name in cross.columns):
        if next(c for c in columns if c.name == name).role == "numeric":
            parts[name] = _free_name(f"{name}_{_CROSS_BINS}", names)
            features.append(bucketized(parts[name], source=name, bins=_CROSS_BINS))
    for cross in crosses:
        features.append(crossed(*(parts[name] for name in cross.columns), min_count=2))
    roles = {column.role: column.name for column in columns}
    return FeatureSpec(
        features=features,
        label=label,
        weight=roles.get("weight"),
        group=roles.get("group"),
        deep=deep if any(column.bins for column in columns) else None,
        training_only={c.name: _first_place(c.profile) for c in columns if c.position},
    )


def _free_name(name: str, names: set[str]) -> str:
    """Return a name that no column and no feature has, and take it."""
    while name in names:
        name += "_"
    names.add(name)
    return name


def _first_place(profile: ColumnProfile) -> str | int | float:
    if profile.minimum is None:
        return profile.top[0][0]
    return int(profile.minimum) if profile.kind == "int" else profile.minimum


# ---- TOML ---------------------------------------------------------------------------------------


def data_lines(inferred: InferredSpec) -> list[str]:
    """Return the lines of ``[data]`` about columns."""
    lines = []
    for key, column in spec_to_table(inferred.spec)["data"].items():
        reason = inferred.reasons[str(column)]
        if key == "label":
            label = next(c.profile for c in inferred.columns if c.role == "label")
            reason = _shares(label)
        lines.append(f"{key} = {toml_value(column)}  # {reason}")
    user = next((c.name for c in inferred.columns if c.name.lower() in _USER_NAMES), None)
    if user is not None and inferred.spec.group is None:
        lines.append(f"# group = {toml_value(user)}  # adds metrics within each group")
    return lines


def _shares(label: ColumnProfile) -> str:
    if label.distinct > 10:
        return label.describe()
    shares = [f"{text}: {100 * count / max(1, label.values):.3g}%" for text, count in label.top]
    return ", ".join([*shares, *([f"missing: {label.missing:.2%}"] if label.missing else [])])


def features_block(inferred: InferredSpec) -> str:
    """Return ``[features]``: what the declaration holds, and what was left out."""
    table = spec_to_table(inferred.spec)["features"]
    reasons = inferred.reasons
    lines = ["[features]"]
    for key in ("numeric", "categorical"):
        names: Sequence[str] = table.pop(key, [])  # type: ignore[assignment]
        lines += _listed(key, [(toml_value(name), reasons[name]) for name in names])
    entries: Sequence[object] = table.pop("crossed", [])  # type: ignore[assignment]
    gains = [cross.reason for cross in inferred.crosses]
    if entries:
        lines.append("# Pairs that say more together than apart, by their gain on held rows:")
    lines += _listed("crossed", [(toml_value(e), g) for e, g in zip(entries, gains, strict=True)])
    for key, value in table.items():
        lines += _lines_of(key, value)
    left_out = [c for c in inferred.columns if c.role in ("left out", "time")]
    if left_out:
        lines.append("# Left out:")
        lines += [f"#   {c.name or '(no name)'}: {c.reason}" for c in left_out]
    return "\n".join(lines)


def _listed(key: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    if not entries:
        return []
    width = max(len(entry) for entry, _ in entries) + 1
    lines = [f"    {f'{entry},'.ljust(width)}  # {reason}" for entry, reason in entries]
    return [f"{key} = [", *lines, "]"]


def _lines_of(key: str, value: object) -> list[str]:
    if key == "bucketized" and isinstance(value, Mapping):
        lines = ["# Each number also in bins, which tell the wide part its steps:"]
        return lines + [f"{key}.{toml_key(k)} = {toml_value(v)}" for k, v in value.items()]
    if key == "options" and isinstance(value, Mapping):
        return [f"{key}.{toml_key(k)} = {toml_value(v)}" for k, v in value.items()]
    if key in ("wide", "deep") and isinstance(value, list):
        return _wrapped(key, [toml_value(name) for name in value])
    lines = []
    if key == "item":
        lines.append(
            "# Of each candidate, for it differs within a request; the rest is the query's:"
        )
        if isinstance(value, list):
            return [*lines, *_wrapped(key, [toml_value(name) for name in value])]
    if key == "training_only":
        lines.append("# Not known when a row is scored, so fixed there:")
    return [*lines, f"{key} = {toml_value(value)}"]


def _wrapped(key: str, words: Sequence[str]) -> list[str]:
    """Return a list of many names in lines of at most 100 characters."""
    lines, line = [f"{key} = ["], "   "
    for word in words:
        if len(line) + len(word) + 2 > 100 and line.strip():
            lines.append(line)
            line = "   "
        line += f" {word},"
    return [*lines, line, "]"]
