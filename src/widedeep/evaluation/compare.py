"""Both models' scores on the same labelled rows, read in one pass; labels matched by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.data.drift import DriftCounts
from widedeep.data.fragments import Source, row_chunks
from widedeep.data.sources import Data, open_source
from widedeep.data.transform import Transform
from widedeep.errors import DataError, SchemaError
from widedeep.evaluation.logged_rankings import (
    LogColumns,
    LoggedRankings,
    choose_order,
    order_columns,
)
from widedeep.evaluation.slices import (
    SliceColumn,
    default_slice_columns,
    encode_column,
    slice_column,
)
from widedeep.features.learned import ColumnTypes
from widedeep.metrics.regression import poisson_deviances

Floats = NDArray[np.float64]
ByHead: TypeAlias = Mapping[str, Floats]
ChunkCallback: TypeAlias = Callable[[pa.Table, Batch, ByHead, Batch | None, ByHead | None], None]
"""Called with each chunk of rows and, for each model, the rows encoded by it and its scores by
head, in the order of that model's own classes."""

_CHUNK_ROWS = 65_536
_SMALLEST_PROBABILITY = 1e-15
_MAX_LISTED = 10
_SERVERS = "servers that follow one directory refuse it there: publish it in a directory of its own"


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Both models' scores of one head, row by row."""

    head: BundleHead  # Head of the candidate
    labels_B: Floats  # Labels as in training; of several classes a row, their fraction
    weight_B: Floats  # Weight of each row, 0 without a label
    # Probability of the label, or the value; a class's own probability for classes
    candidate_B: Floats
    serving_B: Floats | None  # Scores of the serving model; None without one
    classes: tuple[str, ...] = ()  # Names of the candidate's classes, if they have names
    # Number of rows with a NaN or infinite score, by model
    undefined: Mapping[str, int] = field(default_factory=dict)
    # Both models' probability of the row's class among the classes that both know; None where they
    # know the same
    common: tuple[Floats, Floats] | None = None
    # Losses of each row by model, and of the best ``"constant"``, where the scores do not say them
    row_losses: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def is_amount(self) -> bool:
        """Whether it is a count or an amount, and all labels and scores are at least 0."""
        columns = (self.labels_B, self.candidate_B, self.serving_B)
        rows_B = self.weight_B > 0
        return self.head.label_kind == "amount" and not any(
            column is not None and bool((column[rows_B] < 0).any()) for column in columns
        )

    def losses(self, model: str, scores_B: Floats) -> Floats:
        """Return each row's loss: log loss, squared error, or of an amount Poisson deviance."""
        if self.row_losses:
            return self.row_losses[model]
        if self.is_amount:
            return poisson_deviances(scores_B, self.labels_B)
        if self.head.kind == "regression":
            return (scores_B - self.labels_B) ** 2
        p = np.clip(scores_B, _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)
        if self.head.kind == "multiclass":
            return -np.log(p)
        return -(self.labels_B * np.log(p) + (1.0 - self.labels_B) * np.log1p(-p))


@dataclass(frozen=True, slots=True)
class ComparedRows:
    """Labelled rows with both models' scores, weights, units and slices."""

    heads: tuple[HeadScores, ...]  # One entry per head that both models have
    weight_B: Floats  # Weight of each example
    units_B: NDArray[np.int64]  # Unit of each row; units are resampled whole
    n_units: int  # Number of units
    unit: str | None  # Column of the units; None: rows
    groups_B: NDArray[np.int64] | None  # Query of each row, for grouped metrics; None without
    slices: tuple[SliceColumn, ...]  # Columns that cut the rows into slices
    drift: DriftCounts  # Counts of the candidate's inputs
    inputs: list[Any]  # Files or tables that were read
    reasons: list[str] = field(default_factory=list)  # Labels that the candidate does not know
    notes: list[str] = field(default_factory=list)  # Remarks on the labels
    rankings: LoggedRankings | None = None  # How the rows were ranked, where the log says so
    # By model, with ``rankings``: the score that it ranks each row by, and its scores by head,
    # both as served: with ``training_only`` features at their fixed values
    rank_scores: Mapping[str, Floats] = field(default_factory=dict)
    served_scores: Mapping[str, ByHead] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.weight_B)


def score_both(
    candidate: Bundle,
    serving: Bundle | None,
    data: Data,
    *,
    slices: Sequence[str] | None = None,
    unit: str | None = None,
    log: LogColumns | None = None,
    threads: int = 1,
    on_chunk: ChunkCallback | None = None,
) -> ComparedRows:
    """Read the data once and score it with both models.

    ``log`` names the columns of a log that says how it was ranked.
    """
    if not candidate.schema.spec.labels:
        raise DataError(f"{candidate.path}: its schema has no label; it cannot be judged")
    if serving is not None:
        check_comparable(candidate, serving)
    match = LabelMatch(candidate, serving)
    slices = default_slice_columns(candidate) if slices is None else slices
    unit = unit or candidate.schema.spec.group
    extra = [*slices, *([unit] if unit else [])]
    unexplored = None if log is None else log.lacks
    log = log if unexplored is None else None
    if log is not None:
        extra += [
            *log.names,
            *(name for b in (candidate, serving) if b for name in order_columns(b)),
        ]
    transforms = [Transform(b.schema, threads=threads) for b in (candidate, serving) if b]
    columns = [name for each in transforms for name in each.columns(targets=True)]
    types = ColumnTypes(dict.fromkeys(extra, "category"), candidate.schema.spec.null_values)
    for bundle in (serving, candidate):
        types.update(bundle.schema.input_types() if bundle else {})
    drift = DriftCounts(candidate.schema)
    selected = list(dict.fromkeys([*columns, *extra]))
    with open_source(data, columns=selected, column_types=types) as source:
        if not source.num_rows:
            raise DataError("got no rows to judge by; give recent labelled examples")
        if log is not None and (unexplored := log.check(source)) is not None:
            log = None
        names = list(dict.fromkeys(extra))
        reader = _Comparison(candidate, serving, transforms, names, drift, match, on_chunk)
        reader.log = log
        reader.read(source)
        inputs = source.describe()
    reasons, notes = match.findings()
    if serving is not None and (ranking := difference_of_ranking(candidate, serving)):
        notes.append(ranking)
    if serving is not None and (words := difference_of_words(candidate, serving)):
        notes.append(words)
    notes += [] if unexplored is None else [unexplored]
    if not reader.labels:
        raise DataError("no row has a label that can be judged: " + "; ".join([*reasons, *notes]))
    columns_B = {name: pa.chunked_array(chunks) for name, chunks in reader.columns.items()}
    weight_B = np.concatenate(reader.weights).astype(np.float64)
    units_B, n_units = _units(columns_B[unit] if unit else None, len(weight_B))
    return ComparedRows(
        heads=reader.heads(),
        weight_B=weight_B,
        units_B=units_B,
        n_units=n_units,
        unit=unit,
        groups_B=np.concatenate(reader.groups) if reader.groups else None,
        slices=tuple(slice_column(name, columns_B[name]) for name in slices),
        drift=drift,
        inputs=inputs,
        reasons=reasons,
        notes=notes,
        rankings=None if log is None else log.rankings(columns_B),
        rank_scores={name: np.concatenate(scores) for name, scores in reader.orders.items()},
        served_scores={
            model: {name: np.concatenate([one[name] for one in chunks]) for name in chunks[0]}
            for model, chunks in reader.served.items()
        },
    )


class _Comparison:
    """Scores chunks of rows with both models and collects what is judged."""

    def __init__(
        self,
        candidate: Bundle,
        serving: Bundle | None,
        transforms: Sequence[Transform],
        columns: Sequence[str],
        drift: DriftCounts,
        match: LabelMatch,
        on_chunk: ChunkCallback | None,
    ) -> None:
        self._candidate, self._serving = candidate, serving
        self._transforms = transforms
        self._same_schema = serving is not None and serving.schema == candidate.schema
        self._drift, self._match, self._on_chunk = drift, match, on_chunk
        self.columns: dict[str, list[pa.Array]] = {name: [] for name in columns}
        self.labels: list[NDArray[np.float32]] = []
        self.weights: list[NDArray[np.float32]] = []
        self.groups: list[NDArray[np.int64]] = []
        # Scores of the labels by chunk and head, and the number of undefined ones by model and head
        self._scores: dict[str, list[list[Floats]]] = {"candidate": [], "serving": []}
        self._undefined: Counter[tuple[str, str]] = Counter()
        self._common: dict[str, list[tuple[Floats, Floats]]] = {}
        self._class_losses: dict[tuple[str, str], list[Floats]] = {}
        self.log: LogColumns | None = None
        # With a log, by model and chunk: the scores that rows are ranked by, and those by head
        self.orders: dict[str, list[Floats]] = {}
        self.served: dict[str, list[ByHead]] = {}

    def read(self, source: Source) -> None:
        """Score every chunk of a source."""
        for rows, origin, first_row in row_chunks(source, _CHUNK_ROWS):
            chunk = self._match.known(rows)
            if chunk.num_rows:
                self._add(chunk, origin, first_row)

    def _add(self, chunk: pa.Table, origin: str, first_row: int) -> None:
        batch = self._transforms[0](chunk, targets=True, origin=origin, first_row=first_row)
        batch = self._shown_alone(chunk, batch)
        self._match.check(batch)
        self._drift.add(chunk, batch)
        scores, serving_batch, serving_scores = self._score(self._candidate, batch), None, None
        self._scores["candidate"].append(_scores_of_labels(self._candidate, scores, batch))
        self._count_undefined("candidate", scores)
        self._add_class_losses("candidate", scores, batch)
        if self._serving is not None:
            serving_batch = (
                batch
                if self._same_schema
                else self._shown_alone(
                    chunk, self._transforms[1](chunk, targets=True, origin=origin)
                )
            )
            serving_scores = self._score(self._serving, serving_batch)
            of_labels = _scores_of_labels(self._serving, serving_scores, serving_batch)
            self._scores["serving"].append(
                [of_labels[self._match.other_index(h.name)] for h in self._candidate.model.heads]
            )
            self._count_undefined("serving", serving_scores)
            self._add_class_losses("serving", serving_scores, batch)
            self._add_common(scores, serving_scores)
        if self.log is not None:
            self._add_served("candidate", self._candidate, 0, chunk, scores)
            if self._serving is not None and serving_scores is not None:
                self._add_served("serving", self._serving, -1, chunk, serving_scores)
        if self._on_chunk is not None:
            self._on_chunk(chunk, batch, scores, serving_batch, serving_scores)
        assert batch.labels_BL is not None
        self.labels.append(batch.labels_BL)
        ones = np.ones(len(batch), np.float32)
        self.weights.append(ones if batch.weight_B is None else batch.weight_B)
        if batch.group_B is not None:
            self.groups.append(batch.group_B)
        for name, chunks in self.columns.items():
            chunks += chunk.column(name).chunks

    def _score(self, bundle: Bundle, batch: Batch) -> dict[str, Floats]:
        return bundle.scores_by_head(bundle.logits(batch, threads=self._transforms[0].threads))

    def _shown_alone(self, chunk: pa.Table, batch: Batch) -> Batch:
        """Take the weight of candidates that were not shown: their labels say nothing."""
        hidden = None if self.log is None else chunk[self.log.position].is_null()
        if hidden is None or not pc.any(hidden).as_py():
            return batch
        ones_B = np.ones(len(batch), np.float32)
        weight_B = ones_B if batch.weight_B is None else batch.weight_B
        return replace(batch, weight_B=np.where(hidden.to_numpy(), np.float32(0), weight_B))

    def _add_served(
        self, model: str, bundle: Bundle, index: int, chunk: pa.Table, scores: ByHead
    ) -> None:
        """Add the scores that a server would rank by: it does not know the place beforehand."""
        if bundle.schema.spec.training_only:
            scores = self._score(bundle, self._transforms[index](chunk, targets=False))
        self.served.setdefault(model, []).append(scores)
        self.orders.setdefault(model, []).append(choose_order(bundle, scores, chunk))

    def _add_class_losses(self, model: str, by_head: ByHead, batch: Batch) -> None:
        """Add each row's mean loss over the classes of a multi-label head."""
        for head in self._candidate.model.heads:
            if head.kind == "multilabel":
                labels_BC, _ = head.targets(self._candidate.schema, batch)
                losses_BC = log_losses(labels_BC.astype(np.float64), by_head[head.name])
                self._class_losses.setdefault((model, head.name), []).append(
                    np.nan_to_num(losses_BC.mean(axis=1))
                )

    def _count_undefined(self, model: str, by_head: ByHead) -> None:
        for name, scores in by_head.items():
            finite_B = np.isfinite(scores).reshape(len(scores), -1).all(axis=1)
            self._undefined[model, name] += int(np.count_nonzero(~finite_B))

    def _add_common(self, scores: ByHead, serving_scores: ByHead) -> None:
        """Add the rows' probabilities among the classes that both models know."""
        for index, head in enumerate(self._candidate.model.heads):
            columns = self._match.common_columns(head.name)
            if columns is not None:
                totals = [
                    by_head[head.name][:, common].sum(axis=1)
                    for by_head, common in zip((scores, serving_scores), columns, strict=True)
                ]
                pair = (
                    self._scores["candidate"][-1][index] / totals[0],
                    self._scores["serving"][-1][index] / totals[1],
                )
                self._common.setdefault(head.name, []).append(pair)

    def heads(self) -> tuple[HeadScores, ...]:
        """Return the scores of every head over all rows."""
        labels_BL = np.concatenate(self.labels)
        weight_B = np.concatenate(self.weights)
        return tuple(
            HeadScores(
                head=head,
                **self._targets(head, labels_BL, weight_B),
                row_losses=self._row_losses(head, index, labels_BL),
                candidate_B=np.concatenate([s[index] for s in self._scores["candidate"]]),
                serving_B=np.concatenate([s[index] for s in self._scores["serving"]])
                if self._scores["serving"]
                else None,
                classes=class_names(self._candidate, head),
                common=_concatenate_pairs(self._common.get(head.name)),
                undefined={
                    model: self._undefined[model, head.name] for model in ("candidate", "serving")
                },
            )
            for index, head in enumerate(self._candidate.model.heads)
        )

    def _targets(
        self, head: BundleHead, labels_BL: NDArray[np.float32], weight_B: NDArray[np.float32]
    ) -> dict[str, Floats]:
        """Return a head's label and weight of each row; without a label, 0 of both."""
        schema = self._candidate.schema
        labels = labels_BL[:, schema.label_layout[head.name]].astype(np.float64).mean(axis=1)
        weight_B = weight_B.astype(np.float64)
        column = schema.weight_columns.get(head.name)
        if column is not None:
            weight_B = weight_B * np.nan_to_num(labels_BL[:, column], nan=0.0)
        missing_B = np.isnan(labels)
        return {
            "labels_B": np.where(missing_B, 0.0, labels),
            "weight_B": np.where(missing_B, 0.0, weight_B),
        }

    def _row_losses(
        self, head: BundleHead, index: int, labels_BL: NDArray[np.float32]
    ) -> dict[str, Floats]:
        """Return losses by model of heads whose scores of the labels do not say them."""
        models = ["candidate", *(["serving"] if self._scores["serving"] else [])]
        labels = labels_BL[:, self._candidate.schema.label_layout[head.name]].astype(np.float64)
        if head.kind == "multilabel":
            losses = {m: np.concatenate(self._class_losses[m, head.name]) for m in models}
            rates_C = np.nanmean(labels, axis=0, keepdims=True)
            constant = np.nan_to_num(log_losses(labels, rates_C).mean(axis=1))
            return {**losses, "constant": constant}
        if head.kind != "ranking":
            return {}
        labels_B, groups_B = np.nan_to_num(labels[:, 0]), np.concatenate(self.groups)
        groups_B = np.where(np.isnan(labels[:, 0]), -1 - np.arange(len(labels)), groups_B)
        scores = {m: np.concatenate([s[index] for s in self._scores[m]]) for m in models}
        scores["constant"] = np.zeros(len(labels))
        return {m: request_losses(scores_B, labels_B, groups_B) for m, scores_B in scores.items()}


def log_losses(labels: Floats, probabilities: Floats) -> Floats:
    """Return the cross-entropy of labels from 0 to 1, elementwise."""
    p = np.clip(probabilities, _SMALLEST_PROBABILITY, 1.0 - _SMALLEST_PROBABILITY)
    losses: Floats = -(labels * np.log(p) + (1.0 - labels) * np.log1p(-p))
    return losses


def request_losses(scores_B: Floats, labels_B: Floats, groups_B: NDArray[np.int64]) -> Floats:
    """Return y log(1 / p) of each candidate, p the softmax over its request."""
    _, codes_B = np.unique(groups_B, return_inverse=True)
    highest_R = np.full(int(codes_B.max()) + 1, -np.inf)
    np.maximum.at(highest_R, codes_B, scores_B)
    total_R = np.bincount(codes_B, np.exp(scores_B - highest_R[codes_B]))
    losses: Floats = labels_B * ((np.log(total_R) + highest_R)[codes_B] - scores_B)
    return losses


def _scores_of_labels(bundle: Bundle, by_head: ByHead, labelled: Batch) -> list[Floats]:
    """Return one column of scores per head; of a class head, the probability of the row's class."""
    columns = []
    for head in bundle.model.heads:
        scores = by_head[head.name]
        if head.kind == "multiclass":
            labels_B, _ = head.targets(bundle.schema, labelled)
            class_B = np.nan_to_num(labels_B).astype(np.int64)
            scores = scores[np.arange(len(scores)), class_B]
        elif head.kind == "multilabel":
            scores = scores.mean(axis=1)
        columns.append(scores)
    return columns


def _concatenate_pairs(pairs: list[tuple[Floats, Floats]] | None) -> tuple[Floats, Floats] | None:
    if pairs is None:
        return None
    candidate, serving = zip(*pairs, strict=True)
    return np.concatenate(candidate), np.concatenate(serving)


def _units(column: pa.ChunkedArray | None, rows: int) -> tuple[NDArray[np.int64], int]:
    if column is None:
        return np.arange(rows), rows
    codes, values = encode_column(column)
    return codes, len(values)


def class_names(bundle: Bundle, head: BundleHead) -> tuple[str, ...]:
    """Return a head's classes in its own order; of a numeric class label, its numbers as text."""
    names = bundle.schema.classes.get(head.name, ()) or head.classes
    if names or head.kind != "multiclass":
        return tuple(names)
    return tuple(str(number) for number in range(head.stop - head.start))


def check_comparable(candidate: Bundle, serving: Bundle) -> None:
    """Raise a :class:`SchemaError` unless both models predict the same labels."""
    if difference := difference_of_labels(candidate, serving):
        raise SchemaError(
            f"{difference}; they cannot be compared: train it on the same label and classes "
            "(label_vocabulary names them), or judge it without --against and publish it by force"
        )


def difference_of_words(first: Bundle, second: Bundle) -> str:
    """Return which words for missing values two models read CSV with, if others; else nothing."""
    words, others = (bundle.schema.spec.null_values for bundle in (first, second))
    if set(words) == set(others):
        return ""
    return (
        f"CSV is read with null_values = {list(words)} as {first.path} was trained with, not with "
        f"the {list(others)} of {second.path}"
    )


def difference_of_labels(candidate: Bundle, serving: Bundle) -> str:
    """Return what two models predict, if it is not the same; else nothing."""
    labels, serving_labels = candidate.schema.spec.labels, serving.schema.spec.labels
    if dict(labels) != dict(serving_labels) or _kinds(candidate) != _kinds(serving):
        return _differ(
            candidate,
            serving,
            f"{dict(labels)} ({_heads_text(candidate)})",
            f"{dict(serving_labels)} ({_heads_text(serving)})",
        )
    others = {head.name: head for head in serving.model.heads}
    for head in candidate.model.heads:
        other = others[head.name]
        pair = class_names(candidate, head), class_names(serving, other)
        named = (
            bool(candidate.schema.classes.get(head.name)),
            bool(serving.schema.classes.get(head.name)),
        )
        # A binary head's score is the probability of its second class: another order is another
        # score, to every reader of the answers too.
        in_order = head.kind in ("binary", "multilabel")
        alike = pair[0] == pair[1] if in_order else len({*pair[0]} & {*pair[1]}) >= 2
        numbers = head.kind in ("regression", "ranking")
        if (not alike and not numbers) or named[0] != named[1]:
            texts = [_listed(names) if names else "numbers" for names in pair]
            column = labels[head.name]
            return _differ(
                candidate, serving, f"label {column!r} as {texts[0]} (in this order)", texts[1]
            )
    return ""


def difference_of_ranking(candidate: Bundle, serving: Bundle) -> str:
    """Return what two models rank by where no head is named, if it is not the same."""
    ranks_by, served_by = _ranks_by(candidate), _ranks_by(serving)
    if ranks_by == served_by:
        return ""
    return (
        f"{candidate.path}: ranks by {ranks_by}, the model in service ({serving.path}) by "
        f"{served_by}, where a request names no head"
    )


def _ranks_by(bundle: Bundle) -> str:
    if bundle.model.rank_by is not None:
        return f"the formula {bundle.model.rank_by!r}"
    labels = bundle.schema.spec.labels
    names = (f"its label {labels[h.name]!r}" for h in bundle.model.heads if not h.by_class)
    return next(names, "nothing")


def _kinds(bundle: Bundle) -> dict[str, str]:
    return {head.name: head.kind for head in bundle.model.heads}


def _heads_text(bundle: Bundle) -> str:
    heads = []
    for head in bundle.model.heads:
        names = class_names(bundle, head)
        listed = f" of {_listed(names)}" if names else ""
        heads.append(f"{head.name or 'one head'}: {head.kind}{listed}")
    return "; ".join(heads)


def _differ(candidate: Bundle, serving: Bundle, predicted: str, served: str) -> str:
    return f"{candidate.path}: predicts {predicted}, the model in service ({serving.path}) {served}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED:,} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(map(repr, names[:_MAX_LISTED])) + more


class LabelMatch:
    """Selects the rows whose labels both models know, and reports those left out."""

    def __init__(self, candidate: Bundle, serving: Bundle | None) -> None:
        self._labels = dict(candidate.schema.spec.labels)
        self._schema = candidate.schema
        # Lists of classes are checked as they are read.
        lists = {h.name for h in candidate.model.heads if h.kind == "multilabel"}
        self._classes = {
            h.name: () if h.name in lists else class_names(candidate, h)
            for h in candidate.model.heads
        }
        others = () if serving is None else serving.model.heads
        self._serving_classes = (
            {h.name: () if h.name in lists else class_names(serving, h) for h in others}
            if serving
            else {}
        )
        self._heads = candidate.model.heads
        self._other_index = {head.name: index for index, head in enumerate(others)}
        self._unknown: dict[tuple[str, str], Counter[str]] = {}
        self._serves = serving is not None

    def known(self, table: pa.Table) -> pa.Table:
        """Return the rows whose labels both models know; the others are counted."""
        keep = np.ones(table.num_rows, np.bool_)
        for name, column in self._labels.items():
            if not self._classes.get(name):
                continue
            texts = _texts(table.column(column))
            for model, names in (("candidate", self._classes), ("serving", self._serving_classes)):
                if names.get(name):
                    in_classes = np.asarray(pc.is_in(texts, value_set=pa.array(names[name])))
                    in_classes |= np.asarray(pc.is_null(texts))  # refused on reading, with its row
                    keep &= in_classes
                    self._count(column, model, texts.filter(pa.array(~in_classes)))
        return table if keep.all() else table.filter(pa.array(keep))

    def _count(self, column: str, model: str, texts: pa.Array) -> None:
        if len(texts):
            counts = self._unknown.setdefault((column, model), Counter())
            for entry in pc.value_counts(texts).to_pylist():
                counts[entry["values"]] += entry["counts"]

    def check(self, batch: Batch) -> None:
        """Raise a :class:`DataError` for a numeric label that its head cannot have."""
        for head in self._heads:
            labels_B, _ = head.targets(self._schema, batch)
            if head.kind == "multilabel":
                continue
            good_B = np.isfinite(labels_B)
            expected = "a finite number"
            if head.kind in ("binary", "ranking"):
                good_B &= (labels_B >= 0) & (labels_B <= 1)
                expected = f"0 to 1 for a {head.kind} head"
            elif head.label_kind == "amount":
                good_B &= labels_B >= 0
                expected = "a number of at least 0"
            elif head.kind == "multiclass":
                good_B &= (labels_B >= 0) & (labels_B == np.rint(labels_B))
                expected = f"a class, 0 to {head.stop - head.start - 1}"
            if len(self._heads) > 1:
                good_B |= np.isnan(labels_B)  # no label for this head
            if not good_B.all():
                label = labels_B[int(good_B.argmin())]
                column = self._labels[head.name]
                raise DataError(
                    f"label {column!r}: got {label:g}, expected {expected}; correct the label or "
                    "drop the row"
                )

    def common_columns(self, name: str) -> tuple[list[int], list[int]] | None:
        """Return where each model has the classes that both know; None if they know the same."""
        classes, served = self._classes.get(name, ()), self._serving_classes.get(name, ())
        if not self._serves or set(classes) == set(served):
            return None
        common = [c for c in classes if c in set(served)]
        return [classes.index(c) for c in common], [served.index(c) for c in common]

    def other_index(self, name: str) -> int:
        """Return the index of a head among those of the serving model."""
        return self._other_index[name]

    def findings(self) -> tuple[list[str], list[str]]:
        """Return the reasons that stop the candidate, and notes on its labels."""
        reasons, notes = [], []
        for (column, model), counts in self._unknown.items():
            values = ", ".join(f"{k!r} ({n:,})" for k, n in counts.most_common(_MAX_LISTED))
            rows = f"label {column!r}: {counts.total():,} rows hold {values}"
            if model == "candidate":
                name = next(n for n, c in self._labels.items() if c == column)
                reasons.append(
                    f"{rows}, which the candidate does not know (its classes: "
                    f"{_listed(self._classes[name])}); train it on data with that label, or leave "
                    "those rows out"
                )
            else:
                notes.append(f"{rows}, which the model in service does not know; they are left out")
        for name, served in self._serving_classes.items():
            lost = [c for c in served if c not in self._classes[name]]
            if served != self._classes[name] and set(served) == set(self._classes[name]):
                notes.append(
                    f"label {self._labels[name]!r}: the candidate has the classes in another order "
                    f"({_listed(self._classes[name])}) than the model in service; they were "
                    f"matched by name; {_SERVERS}"
                )
            if lost:
                notes.append(
                    f"label {self._labels[name]!r}: the candidate does not know {_listed(lost)}, "
                    f"which the model in service predicts; {_SERVERS}"
                )
            new = [c for c in self._classes[name] if c not in served]
            if new and self._serves:
                notes.append(
                    f"label {self._labels[name]!r}: the candidate predicts {_listed(new)}, which "
                    f"the model in service does not know; {_SERVERS}"
                )
        return reasons, notes


def _texts(column: pa.ChunkedArray) -> pa.Array:
    """Labels as text; whole numbers as they are written, whatever their type."""
    whole = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    if pa.types.is_floating(whole.type):
        numbers = whole.to_numpy(zero_copy_only=False)
        safe = np.isfinite(numbers) & (numbers == np.rint(numbers)) & (np.abs(numbers) < 2**53)
        # What is no class at all is refused by :meth:`LabelMatch.check`, not called unknown.
        texts = [str(int(n)) if ok and n >= 0 else None
                 for n, ok in zip(numbers.tolist(), safe.tolist(), strict=True)]  # fmt: skip
        return pa.array(texts, pa.string())
    if pa.types.is_boolean(whole.type):
        whole = whole.cast(pa.int64())
    if pa.types.is_integer(whole.type):
        negative = pc.less(whole, 0)
        texts = whole.cast(pa.string())
        return pc.if_else(negative, pa.scalar(None, pa.string()), texts)
    return whole.cast(pa.string())
