"""infer_spec: a first declaration of features for a table, explained column by column.

Gains on held-out rows tell keys from counts, find leaks, and suggest crosses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep import metrics
from widedeep.data.profile import ColumnProfile
from widedeep.data.roles import (
    MOST_BINS,
    InferredColumn,
    assign_roles,
    id_like,
    is_typed,
    joined_roles,
    label_of,
    null_words,
    profiled,
    rows_without_words,
    value_warnings,
    with_bins,
)
from widedeep.data.sources import Data
from widedeep.errors import ConfigError, DataError
from widedeep.features import Feature, FeatureSpec, bucketized, categorical, crossed, numeric
from widedeep.features.learned import ColumnTypes
from widedeep.features.spec import spec_to_table
from widedeep.features.toml import comment_text, toml_key, toml_value
from widedeep.page.document import framed_page, note, table

__all__ = ["InferredSpec", "data_lines", "features_block", "infer_spec"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

# Hessian units: the weight of a cell has a prior standard deviation of about .3.
_SHRINKAGE = 10.0
_BASE_SHRINKAGE = 1.0
_BASE_PASSES = 4
# Cells beyond this many share by a hash: most hold one row then, and one row teaches nothing.
_MOST_CELLS = 1 << 18
_LARGEST_LOGIT = 30.0


@dataclass(frozen=True)
class Cells:
    """The cell that each row falls into, or the cells of its list."""

    codes_N: Codes  # 0 <= code < ``size``; 0 holds nulls
    size: int  # Number of cells
    row_N: Codes | None = None  # Row of each code, ascending; None: one code per row

    @property
    def rows(self) -> Codes | slice:
        """Index of each code's row."""
        return slice(None) if self.row_N is None else self.row_N


@dataclass(frozen=True)
class Gain:
    """What cells add to the fit of rows that they were not learned from."""

    # Log likelihood (or half the squared error, in variances of the label) of all rows
    total: float
    z: float  # The mean gain of a row in standard errors


@dataclass(frozen=True)
class Targets:
    """A label as numbers."""

    values_BC: Floats  # One column for a binary label or a number, one for each class otherwise
    loss: Literal["log", "squared"]  # Squared error for numbers, else log loss


def value_cells(column: pa.ChunkedArray) -> Cells:
    """Return a cell for each value of a column, in the order of their first rows."""
    encoded = column.combine_chunks().dictionary_encode()
    codes_B = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return Cells(codes_B, len(encoded.dictionary) + 1)


def list_cells(column: pa.ChunkedArray) -> Cells:
    """Return a cell for each value of lists."""
    lists = column.combine_chunks()
    row_N = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return replace(value_cells(pa.chunked_array([pc.list_flatten(lists)])), row_N=row_N)


def bin_cells(values_B: Floats, bins: int) -> Cells:
    """Return a cell for each value while they are few, else quantile bins."""
    seen = values_B[~np.isnan(values_B)]
    cuts = np.unique(seen)
    if len(cuts) > bins:
        cuts = np.unique(np.quantile(seen, np.arange(bins) / bins, method="higher"))
    codes_B = np.searchsorted(cuts, values_B, side="right").astype(np.int64)
    codes_B[np.isnan(values_B)] = 0
    return Cells(codes_B, len(cuts) + 1)


def pair_cells(one: Cells, other: Cells) -> Cells:
    """Return a cell for each pair, of lists and plain cells too; very many share some by a hash."""
    size, row_N = one.size * other.size, one.row_N if other.row_N is None else other.row_N
    codes_N = one.codes_N[other.rows] * other.size + other.codes_N[one.rows]
    if size <= _MOST_CELLS:
        return Cells(codes_N, size, row_N)
    # Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
    mixed = (codes_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - 18)
    return Cells(mixed.astype(np.int64), _MOST_CELLS, row_N)


class HeldOutGains:
    """Measures gains by one Newton step per cell, learned on one half, measured on the other."""

    def __init__(self, targets: Targets, seed: int = 0) -> None:
        n, classes = targets.values_BC.shape
        order = np.random.Generator(np.random.Philox(seed)).permutation(n)
        self._half_B: Codes = (order % 2).astype(np.int64)
        self._targets = targets
        # (2, B, C): row b as seen by the model that learned from half 0, and from half 1
        self._scores_HBC = np.zeros((2, n, classes))
        for half in (0, 1):
            mean_C = targets.values_BC[self._half_B == half].mean(axis=0)
            if targets.loss == "log":
                mean_C = mean_C.clip(1e-6, 1 - 1e-6)
                mean_C = np.log(mean_C / (1 - mean_C))
            self._scores_HBC[half] = mean_C
        self._update()

    def _update(self) -> None:
        """Derive gradients and second derivatives of the rows learned from, and those held out."""
        rows = np.arange(len(self._half_B))
        self._learned_BC = self._derivatives(self._scores_HBC[self._half_B, rows])
        self._held_BC = self._derivatives(self._scores_HBC[1 - self._half_B, rows])

    def _derivatives(self, scores_BC: Floats) -> tuple[Floats, Floats]:
        if self._targets.loss == "squared":
            return scores_BC - self._targets.values_BC, np.ones_like(scores_BC)
        p_BC = 1 / (1 + np.exp(-scores_BC.clip(-_LARGEST_LOGIT, _LARGEST_LOGIT)))
        return p_BC - self._targets.values_BC, p_BC * (1 - p_BC)

    @property
    def loss(self) -> float:
        """Log loss of the held rows, or half their squared error, summed."""
        rows = np.arange(len(self._half_B))
        scores_BC = self._scores_HBC[1 - self._half_B, rows]
        values_BC = self._targets.values_BC
        if self._targets.loss == "squared":
            return float(0.5 * ((scores_BC - values_BC) ** 2).sum())
        return float((np.logaddexp(0, scores_BC) - values_BC * scores_BC).sum())

    def _steps(
        self, cells: Cells, shrinkage: float = _SHRINKAGE, weights_HNC: Floats | float = 0.0
    ) -> Floats:
        """Return the step of each cell, (2, cells, C), learned on each half.

        A row moves by the steps of all of its cells: each takes its part of the curvature.
        """
        codes_N = cells.codes_N + self._half_B[cells.rows] * cells.size
        gradients_NC, seconds_NC = (each[cells.rows] for each in self._learned_BC)
        if cells.row_N is not None:
            seconds_NC = seconds_NC * np.bincount(cells.row_N)[cells.row_N, None]
        steps = np.empty((2, cells.size, gradients_NC.shape[1]))
        curves = np.empty_like(steps)
        for c in range(gradients_NC.shape[1]):
            sums = np.bincount(codes_N, gradients_NC[:, c], 2 * cells.size)
            seconds = np.bincount(codes_N, seconds_NC[:, c], 2 * cells.size)
            steps[:, :, c] = (-sums).reshape(2, -1)
            curves[:, :, c] = seconds.reshape(2, -1)
        stepped: Floats = (steps - shrinkage * weights_HNC) / (curves + shrinkage)
        return stepped

    def row_gains(self, cells: Cells) -> Floats:
        """Return the gain of each row from steps that the other half taught, (B,)."""
        steps_BC = self.scores(cells)
        gradients_BC, seconds_BC = self._held_BC
        gains_BC = -steps_BC * (gradients_BC + 0.5 * seconds_BC * steps_BC)
        gains_B: Floats = gains_BC.sum(axis=1)
        return gains_B

    def gain(self, cells: Cells) -> Gain:
        """Return the gain of cells, beside what was learned before."""
        return as_gain(self.row_gains(cells))

    def scores(self, cells: Cells) -> Floats:
        """Return what the cells alone say of each row held out, (B, C)."""
        steps_NC = self._steps(cells)[1 - self._half_B[cells.rows], cells.codes_N]
        return self._sum_rows(cells, steps_NC)

    def _sum_rows(self, cells: Cells, steps_NC: Floats) -> Floats:
        """Return the sum of each row's steps, (B, C)."""
        if cells.row_N is None:
            return steps_NC
        rows = len(self._half_B)
        return np.stack([np.bincount(cells.row_N, each_N, rows) for each_N in steps_NC.T], axis=1)

    def learn(
        self, columns: Sequence[Cells], *, passes: int = 1, shrinkage: float = _SHRINKAGE
    ) -> None:
        """Learn columns, each beside the others, so that later gains are beside them."""
        weights: list[Floats | float] = [0.0 for _ in columns]
        for _ in range(passes):
            for number, cells in enumerate(columns):
                steps = self._steps(cells, shrinkage, weights[number])
                weights[number] = weights[number] + steps
                moved = [self._sum_rows(cells, half[cells.codes_N]) for half in steps]
                self._scores_HBC += moved
                self._update()


def as_gain(gains_B: Floats) -> Gain:
    """Sum the gains of rows."""
    spread = float(np.sqrt((gains_B**2).sum()))
    total = float(gains_B.sum())
    return Gain(total, total / spread if spread else 0.0)


_LEAST_ROWS = 100
_LEAST_ROWS_OF_CROSSES = 5_000
# Rows times pairs: about twenty seconds of one core.
_PAIR_ROWS = 300_000_000
_LEAST_PAIR_ROWS = 50_000
_MOST_CLASSES = 5
_PAIR_BINS = 32
_SURE = 4.0
# Gain of a row that is worth a table of weights, in units of log likelihood.
_LEAST_GAIN = 1e-4
# Share of the label's entropy (of its variance, for numbers) that keys say beyond ordered bins.
_LEAST_KEY_GAIN = 0.01
_LEAK = 0.99
_SIDE_ROWS = 100_000
# Share of the requests in which an item's column differs; a clock may tick within a request.
_LEAST_DIFFERING = 0.05


@dataclass(frozen=True, kw_only=True)
class SuggestedCross:
    """Two columns that predict more together than apart."""

    columns: tuple[str, str]  # Their names
    # Log likelihood that a row held out gains (for numbers: half the squared error, in variances of
    # the label)
    gain: float
    z: float  # The gain in standard errors

    @property
    def reason(self) -> str:
        """The gain in words."""
        return f"gains {self.gain:.2g} a held row, {self.z:.0f} standard errors"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The columns with corrected roles, and what held-out rows suggest."""

    columns: tuple[InferredColumn, ...]  # Roles corrected
    crosses: tuple[SuggestedCross, ...] = ()  # By descending gain
    warnings: tuple[str, ...] = ()  # To be looked at by a person


def measure(
    table: pa.Table,
    columns: Sequence[InferredColumn],
    label: str | None,
    head: str,
    *,
    crosses: int,
    seed: int,
) -> Evidence:
    """Correct the roles of columns by gains on held-out rows, and suggest crosses."""
    if label is not None:
        table = _labelled(table, label)
    columns = _without_copies(table, columns)
    if label is None or table.num_rows < _LEAST_ROWS:
        return Evidence(columns=tuple(columns))
    targets = _targets(table.column(label), head)
    gains = HeldOutGains(targets, seed)
    warnings = []
    measured = []
    for column in columns:
        if column.is_feature and not column.profile.nested:
            column = _told_by_gain(table, column, gains)
            warnings += _leak(column, gains.scores(_cells(table, column, _PAIR_BINS)), targets)
        measured.append(column)
    suggested, notes = _suggest(table, measured, label, head, crosses, seed)
    return Evidence(columns=tuple(measured), crosses=tuple(suggested), warnings=(*warnings, *notes))


def _labelled(table: pa.Table, label: str) -> pa.Table:
    """Return the rows that have a label."""
    labels = table.column(label)
    if pa.types.is_floating(labels.type):
        labels = pc.if_else(pc.is_finite(labels), labels, None)
    return table.filter(pc.is_valid(labels))


def _targets(column: pa.ChunkedArray, head: str) -> Targets:
    numbers = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    numbers = numbers or pa.types.is_decimal(column.type)
    if head == "regression" or (head == "binary" and numbers):
        values_B = _numbers(column)
        if head == "binary" and values_B.min() >= 0 and values_B.max() <= 1:
            return Targets(values_B[:, None], "log")
        scale = float(values_B.std()) or 1.0
        return Targets(((values_B - values_B.mean()) / scale)[:, None], "squared")
    codes_B = value_cells(column).codes_N
    counts = np.bincount(codes_B)
    classes = np.argsort(-counts, kind="stable")[:_MOST_CLASSES]
    if np.count_nonzero(counts) == 2:
        classes = classes[1:]
    return Targets((codes_B[:, None] == classes).astype(np.float64), "log")


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    values = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _cells(table: pa.Table, column: InferredColumn, bins: int) -> Cells:
    values = table.column(column.name)
    if column.role == "numeric":
        return bin_cells(_numbers(values), bins)
    return list_cells(values) if column.profile.nested else value_cells(values)


def _told_by_gain(table: pa.Table, column: InferredColumn, gains: HeldOutGains) -> InferredColumn:
    """Tell a key from a count: the values of a key say more one by one than in their order."""
    is_whole = column.role == "numeric" and column.profile.kind == "int"
    if not is_whole or column.profile.distinct <= MOST_BINS:
        return column
    values = table.column(column.name)
    one_by_one = gains.row_gains(value_cells(values))
    in_order = gains.row_gains(bin_cells(_numbers(values), MOST_BINS))
    more = as_gain(one_by_one - in_order)
    if more.z < _SURE or more.total < _LEAST_KEY_GAIN * gains.loss:
        return column
    return id_like(column.profile, "its values say more one by one than in order, as ids do")


def _leak(column: InferredColumn, scores_BC: NDArray[np.float64], targets: Targets) -> list[str]:
    values_BC = targets.values_BC
    if targets.loss == "squared":
        spread = float(scores_BC.std() * values_BC.std())
        covariance = float((scores_BC * values_BC).mean() - scores_BC.mean() * values_BC.mean())
        measure, name = (covariance / spread) ** 2 if spread else 0.0, "r2"
    else:
        classes = range(values_BC.shape[1])
        aucs = [metrics.auc(values_BC[:, c] > 0.5, scores_BC[:, c]) for c in classes]
        measure = np.nan_to_num(aucs, nan=0.5).min()
        name = "AUC"
    if measure < _LEAK:
        return []
    return [
        f"{column.name}: tells the label alone ({name} {measure:.4f} on held rows); leave it out "
        "if it is not known when a row is scored"
    ]


# ---- copies -------------------------------------------------------------------------------------


def _without_copies(table: pa.Table, columns: Sequence[InferredColumn]) -> list[InferredColumn]:
    """Leave out columns that say the same as another, in all rows looked at."""
    first: dict[tuple[str, bytes], str] = {}
    result = list(columns)
    for index in sorted(range(len(columns)), key=lambda index: columns[index].joined_by):
        column = columns[index]
        if column.is_feature and not column.profile.nested and table.num_rows >= _LEAST_ROWS:
            values = table.column(column.name)
            numeric = column.role == "numeric"
            same = _numbers(values) if numeric else value_cells(values).codes_N
            key = (column.role, hashlib.blake2b(same.tobytes()).digest())
            twin = first.setdefault(key, column.name)
            if twin != column.name:
                reason = f"says the same as {twin} in each row"
                result[index] = InferredColumn(
                    profile=column.profile, role="left out", reason=reason
                )
    return result


# ---- sides --------------------------------------------------------------------------------------


def item_columns(table: pa.Table, columns: Sequence[InferredColumn]) -> list[str]:
    """Return the features that differ between the rows of one request: what belongs to an item."""
    group = next((column.name for column in columns if column.role == "group"), None)
    names = [column.name for column in columns if column.is_feature and not column.position]
    if group is None or not names:
        return []
    rows = table.slice(0, _SIDE_ROWS)
    values = {name: _comparable(rows.column(name)) for name in names}
    count = pc.CountOptions(mode="all")
    counts = (
        pa.table({group: rows.column(group), **values})
        .group_by(group)
        .aggregate([([], "count_all"), *((name, "count_distinct", count) for name in names)])
    )
    several = pc.greater(counts["count_all"], 1)
    requests = pc.sum(several).as_py() or 0
    differing = {
        name: pc.sum(pc.and_(several, pc.greater(counts[f"{name}_count_distinct"], 1))).as_py() or 0
        for name in names
    }
    return [name for name in names if differing[name] > _LEAST_DIFFERING * requests]


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values that can be counted: of lists, their text."""
    if not pa.types.is_nested(column.type):
        return column
    texts = [pc.binary_join(chunk.cast(pa.list_(pa.string())), "\x1f") for chunk in column.chunks]
    return pa.chunked_array(texts, pa.string())


# ---- crosses ------------------------------------------------------------------------------------


def _suggest(
    table: pa.Table,
    columns: Sequence[InferredColumn],
    label: str,
    head: str,
    most: int,
    seed: int,
) -> tuple[list[SuggestedCross], list[str]]:
    """Return the crosses worth having, the largest gain first, and what was not looked at."""
    parts = [c for c in columns if c.is_feature and not c.position and not c.is_vector]
    if not most or len(parts) < 2 or table.num_rows < _LEAST_ROWS_OF_CROSSES:
        return [], []
    targets = _targets(table.column(label), head)
    budget = _PAIR_ROWS // targets.values_BC.shape[1]
    # A pair costs as many codes a row as its list has values.
    lists = [pc.list_value_length(table.column(c.name)) for c in parts if c.profile.nested]
    values = sum(pc.mean(lengths).as_py() or 0.0 for lengths in lists)
    codes = len(parts) * (len(parts) - 1) // 2 + len(parts) * int(values)
    rows = max(_LEAST_PAIR_ROWS, budget // codes)
    if rows < table.num_rows:
        order = np.random.Generator(np.random.Philox(seed)).permutation(table.num_rows)
        sample = np.sort(order[:rows])
        table = table.take(pa.array(sample))
        targets = replace(targets, values_BC=targets.values_BC[sample])
    gains = HeldOutGains(targets, seed)
    cells = {c.name: _cells(table, c, MOST_BINS) for c in parts}
    limit = max(2, int((2 * budget / _LEAST_PAIR_ROWS) ** 0.5))
    warnings = []
    if len(parts) > limit:
        names = sorted(cells, key=lambda name: -gains.gain(cells[name]).total)[:limit]
        parts = [c for c in parts if c.name in names]
        warnings.append(f"crosses were looked for among the {limit} columns that say most alone")
    coarse = {c.name: _cells(table, c, _PAIR_BINS) for c in parts}
    # What a pair's own margins say is no cross: coarse bins are learned beside the fine ones.
    margins = [*(coarse[c.name] for c in parts if c.role == "numeric"), *cells.values()]
    gains.learn(margins, passes=_BASE_PASSES, shrinkage=_BASE_SHRINKAGE)
    return _pairs_by_gain(gains, coarse, most, table.num_rows), warnings


def _pairs_by_gain(
    gains: HeldOutGains, cells: Mapping[str, Cells], most: int, rows: int
) -> list[SuggestedCross]:
    """Return pairs, each measured beside those before it, until none is sure to gain."""
    lists = {name for name, each in cells.items() if each.row_N is not None}
    names = [pair for pair in combinations(cells, 2) if not lists.issuperset(pair)]
    crosses: list[SuggestedCross] = []
    while len(crosses) < most:
        sure = []
        for one, other in names:
            gain = gains.gain(pair_cells(cells[one], cells[other]))
            if gain.z >= _SURE and gain.total >= _LEAST_GAIN * rows:
                sure.append((gain, (one, other)))
        if not sure:
            break
        gain, best = max(sure, key=lambda pair: pair[0].total)
        crosses.append(SuggestedCross(columns=best, gain=gain.total / rows, z=gain.z))
        learned = pair_cells(cells[best[0]], cells[best[1]])
        gains.learn([learned], passes=1 if learned.row_N is None else _BASE_PASSES)
        names = [pair for _, pair in sure if pair != best]
    return crosses


HeadKind = Literal["binary", "multiclass", "regression"]

_SAMPLE_ROWS = 400_000
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

    def _rows(self) -> list[tuple[str, str, str]]:
        columns = [(c.name or "(no name)", c.role, c.describe()) for c in self.columns]
        return columns + [(" x ".join(c.columns), "cross", c.reason) for c in self.crosses]

    def _repr_html_(self) -> str:
        rows = table(("column", "taken for", "because"), self._rows())
        subtitle = f"from {self.sampled:,} of {self.total:,} rows"
        parts = [*map(note, self.warnings), rows]
        return framed_page("Inferred features", parts, subtitle=subtitle)

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines = [f"{n:<{widths[0]}}  {r:<{widths[1]}}  {why}".rstrip() for n, r, why in rows]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def infer_spec(
    data: Data,
    *,
    label: str | None = None,
    head: HeadKind | None = None,
    crosses: int = 16,
    bins: bool | None = None,
    rows: int = _SAMPLE_ROWS,
    seed: int = 0,
    null_values: Sequence[str] | None = None,
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
        bins: Whether numbers are cut into bins too; None: where there are rows enough for them.
        rows: Most rows to sample, at least 1.
        seed: Seed of the two halves of the rows that gains are measured on.
        null_values: Words that stand for a missing value in CSV files; None: words such as NA
            without which a column would be all numbers.

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
    types = ColumnTypes(null_values=null_values or ())
    sample, profiles = as_written = profiled(data, rows, label, types)
    words = null_words(profiles) if null_values is None and not is_typed(data) else ()
    if words:
        types = ColumnTypes(null_values=words)
        sample, profiles = profiled(data, rows, label, types)
    if not is_typed(data):
        types |= {p.name: pa.float64() for p in profiles if p.is_written_number and p.complete}
        if types:
            sample, profiles = profiled(data, rows, label, types)
    label = label_of(profiles, label)
    joined = joined_roles(data)
    columns = assign_roles(profiles, label, joined)
    head = _head_of(next((p for p in profiles if p.name == label), None), head)
    evidence = measure(sample.table, columns, label, head, crosses=crosses, seed=seed)
    if not any(column.is_feature for column in evidence.columns):
        reasons = "; ".join(f"{c.name}: {c.reason}" for c in evidence.columns if c.reason)
        reasons = reasons or f"the table has no column but the label {label!r}"
        raise ConfigError(f"got no column that can be a feature ({reasons}); give other columns")
    binned = with_bins(evidence.columns, sample.total, bins)
    spec = _spec(binned, evidence.crosses, label, sample.total)
    # What was counted of a user and an item together belongs to neither.
    if "request" in joined.values() and "history" not in joined.values():
        spec = replace(spec, item=item_columns(sample.table, evidence.columns))
    lost = rows_without_words(as_written[1], profiles) if words else ()
    return InferredSpec(
        spec=replace(spec, null_values=types.null_values),
        columns=binned,
        crosses=evidence.crosses,
        warnings=(*value_warnings(profiles, label, head), *lost, *evidence.warnings),
        head=head,
        sampled=sample.table.num_rows,
        total=sample.total,
    )


def _head_of(label: ColumnProfile | None, head: HeadKind | None) -> HeadKind:
    if label is None:
        return head or "binary"
    if not label.values:
        raise DataError(f"label {label.name!r}: holds no value; give rows with a label")
    number = label.kind in ("int", "float")
    if label.nested or label.kind in ("time", "other") or (head == "regression" and not number):
        expected = "numbers" if head == "regression" else "numbers, text or booleans"
        raise DataError(
            f"label {label.name!r}: got a column of {label.arrow_type}, expected {expected}"
            + ("; write a configuration with head = 'multilabel' for it" if label.nested else "")
        )
    if head is not None:
        return head
    if label.minimum is None or label.maximum is None:
        return "multiclass" if label.distinct > 2 else "binary"
    return "regression" if label.minimum < 0 or label.maximum > 1 else "binary"


def _spec(
    columns: Sequence[InferredColumn],
    crosses: Sequence[SuggestedCross],
    label: str | None,
    rows: int,
) -> FeatureSpec:
    features: list[Feature] = []
    deep: list[str] = []
    names = {column.name for column in columns}
    for column in columns:
        if column.is_feature:
            declare = numeric if column.role == "numeric" else categorical
            declared: Sequence[Feature] = declare(column.name, **column.options)
            # Bins tell where a number's mass lies; beside them its size says more than its rank,
            # and that of a long tail by its logarithm.
            scales = column.is_number and column.may_be_scaled
            features += [f.standardised() for f in declared] if scales else declared
            deep.append(column.name)
        if column.bins:
            name = _free_name(f"{column.name}_bin", names)
            features.append(bucketized(name, source=column.name, bins=column.bin_count(rows)))
            deep.append(name)
    parts = {c.name: c.name for c in columns}
    for name in dict.fromkeys(name for cross in crosses for name in cross.columns):
        if next(c for c in columns if c.name == name).role == "numeric":
            parts[name] = _free_name(f"{name}_{_PAIR_BINS}", names)
            features.append(bucketized(parts[name], source=name, bins=_PAIR_BINS))
    for cross in crosses:
        features.append(crossed(*(parts[name] for name in cross.columns), min_count=2))
    roles = {column.role: column.name for column in columns}
    return FeatureSpec(
        features=features,
        label=label,
        weight=roles.get("weight"),
        group=roles.get("group"),
        deep=deep if any(column.is_number for column in columns) else None,
        training_only={c.name: c.first_place for c in columns if c.position},
    )


def _free_name(name: str, names: set[str]) -> str:
    """Return a name that no column and no feature has, and take it."""
    while name in names:
        name += "_"
    names.add(name)
    return name


# ---- TOML ---------------------------------------------------------------------------------------


def data_lines(inferred: InferredSpec) -> list[str]:
    """Return the lines of ``[data]`` about columns."""
    lines = []
    for key, column in spec_to_table(inferred.spec)["data"].items():
        if key == "null_values":
            lines.append(f"{key} = {toml_value(column)}  # words that stand for a missing value")
            continue
        reason = inferred.reasons[str(column)]
        if key == "label":
            label = next(c.profile for c in inferred.columns if c.role == "label")
            reason = _shares(label)
        lines.append(f"{key} = {toml_value(column)}  # {comment_text(reason)}")
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
        texts = [f"{c.name or '(no name)'}: {c.reason}" for c in left_out]
        lines += [f"#   {comment_text(text)}" for text in texts]
    return "\n".join(lines)


def _listed(key: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    if not entries:
        return []
    width = max(len(entry) for entry, _ in entries) + 1
    lines = [f"    {f'{entry},'.ljust(width)}  # {comment_text(why)}" for entry, why in entries]
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
