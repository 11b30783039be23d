"""The recent data, scored by both models: one pass, whatever is judged afterwards."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.bundle import Bundle, BundleHead
from widedeep.data.batch import Batch
from widedeep.data.fragments import ColumnKind, Source, column_stream, origin_of
from widedeep.data.sources import Data, open_source
from widedeep.data.transform import Transform
from widedeep.errors import DataError
from widedeep.gate.config import GateConfig
from widedeep.gate.drift import DriftCounts
from widedeep.gate.labels import LabelMatch, check_comparable, class_names

Floats = NDArray[np.float64]
ByHead: TypeAlias = Mapping[str, Floats]
Watch: TypeAlias = Callable[[pa.Table, Batch, ByHead, Batch | None, ByHead | None], None]
"""Is shown each chunk of rows, and for each model the rows encoded by it and its scores by head,
both in the order of that model's own classes."""

_CHUNK_ROWS = 65_536
_MOST_SLICES = 50
_AUTOMATIC_COLUMNS = 6
_AUTOMATIC_VALUES = 32
_RANGES = 5
_SMALLEST = 1e-15


@dataclass(frozen=True, slots=True)
class HeadScores:
    """What both models say of one head, row by row."""

    head: BundleHead  # Of the candidate
    labels_B: Floats  # As trained on
    # Probability of the label, or the value; a class's own probability for classes
    candidate_B: Floats
    serving_B: Floats | None  # The same of the model in service; None without one
    classes: tuple[str, ...] = ()  # Names of the candidate's classes, if they have names
    # By model, rows with a score that is NaN or infinite
    undefined: Mapping[str, int] = field(default_factory=dict)
    # Both models' probability of the row's class among the classes that both know; None where they
    # know the same
    common: tuple[Floats, Floats] | None = None

    def losses(self, scores_B: Floats) -> Floats:
        """Return each row's loss: log loss, or the squared error of a regression."""
        if self.head.kind == "regression":
            return (scores_B - self.labels_B) ** 2
        p = np.clip(scores_B, _SMALLEST, 1.0 - _SMALLEST)
        if self.head.kind == "multiclass":
            return -np.log(p)
        return -(self.labels_B * np.log(p) + (1.0 - self.labels_B) * np.log1p(-p))


@dataclass(frozen=True, slots=True)
class SliceColumn:
    """A column whose values are judged each on its own."""

    name: str  # The column
    values: tuple[str, ...]  # As text, by code
    codes_B: NDArray[np.int64]  # The value of each row


@dataclass(frozen=True, slots=True)
class Scored:
    """Both models' scores, and by what they are judged."""

    heads: tuple[HeadScores, ...]  # One entry a head that both models have
    weight_B: Floats  # Of each example
    units_B: NDArray[np.int64]  # What is resampled whole
    n_units: int  # How many there are
    unit: str | None  # The column of the units; None: rows
    groups_B: NDArray[np.int64] | None  # Queries, for metrics within each; None without
    slices: tuple[SliceColumn, ...]  # To be judged each on its own
    drift: DriftCounts  # Of the candidate's inputs
    inputs: list[Any]  # What was read
    reasons: list[str] = field(default_factory=list)  # Labels that stop the candidate
    notes: list[str] = field(default_factory=list)  # What a person should know of the labels

    def __len__(self) -> int:
        return len(self.weight_B)


@dataclass(slots=True)
class _Collected:
    labels: list[NDArray[np.float32]] = field(default_factory=list)
    weight: list[NDArray[np.float32]] = field(default_factory=list)
    group: list[NDArray[np.int64]] = field(default_factory=list)
    candidate: list[list[Floats]] = field(default_factory=list)
    serving: list[list[Floats]] = field(default_factory=list)
    columns: dict[str, list[pa.Array]] = field(default_factory=dict)
    undefined: Counter[tuple[str, str]] = field(default_factory=Counter)
    common: dict[str, list[tuple[Floats, Floats]]] = field(default_factory=dict)


def score_both(
    candidate: Bundle,
    serving: Bundle | None,
    data: Data,
    config: GateConfig,
    *,
    threads: int = 1,
    watch: Watch | None = None,
) -> Scored:
    """Read the data once and score it with both models."""
    if not candidate.schema.spec.labels:
        raise DataError(f"{candidate.path}: its schema has no label; it cannot be judged")
    if serving is not None:
        check_comparable(candidate, serving)
    match = LabelMatch(candidate, serving)
    slices = _slice_columns(candidate) if config.slices is None else config.slices
    unit = config.unit or candidate.schema.spec.group
    extra = [*slices, *([unit] if unit else [])]
    transforms = [Transform(b.schema, threads=threads) for b in (candidate, serving) if b]
    columns = [name for each in transforms for name in each.columns(targets=True)]
    types: dict[str, ColumnKind] = dict.fromkeys(extra, "category")
    for bundle in (serving, candidate):
        types.update(bundle.schema.input_types() if bundle else {})
    drift = DriftCounts(candidate.schema)
    wanted = list(dict.fromkeys([*columns, *extra]))
    with open_source(data, columns=wanted, column_types=types) as source:
        if not source.num_rows:
            raise DataError("the gate: got no rows to judge by; give recent labelled examples")
        names = list(dict.fromkeys(extra))
        found = _collect(source, candidate, serving, transforms, names, drift, watch, match)
        inputs = source.describe()
    reasons, notes = match.findings()
    if not found.labels:
        raise DataError(
            "the gate: no row has a label that can be judged: " + "; ".join([*reasons, *notes])
        )
    columns_B = {name: pa.chunked_array(parts) for name, parts in found.columns.items()}
    weight_B = _joined(found.weight).astype(np.float64)
    units_B, n_units = _units(columns_B[unit] if unit else None, len(weight_B))
    return Scored(
        heads=_heads(candidate, found),
        weight_B=weight_B,
        units_B=units_B,
        n_units=n_units,
        unit=unit,
        groups_B=_joined(found.group) if found.group else None,
        slices=tuple(_slice(name, columns_B[name]) for name in slices),
        drift=drift,
        inputs=inputs,
        reasons=reasons,
        notes=notes,
    )


def _slice_columns(bundle: Bundle) -> list[str]:
    """The categorical columns of few values, the fewest first."""
    schema = bundle.schema
    found = []
    for feature in schema.spec.all_features:
        column, key = feature.main_column, feature.vocabulary_key
        if column is None or key is None:
            continue
        known = len(schema.vocabularies[key])
        if not schema.columns[column].nested and 2 <= known <= _AUTOMATIC_VALUES:
            found.append((known, column))
    return list(dict.fromkeys(name for _, name in sorted(found)))[:_AUTOMATIC_COLUMNS]


def _collect(
    source: Source,
    candidate: Bundle,
    serving: Bundle | None,
    transforms: Sequence[Transform],
    extra: Sequence[str],
    drift: DriftCounts,
    watch: Watch | None,
    match: LabelMatch,
) -> _Collected:
    found = _Collected(columns={name: [] for name in extra})
    threads = transforms[0].threads
    alike = serving is not None and serving.schema == candidate.schema
    for table in column_stream(source):
        origin, first_row = origin_of(table) or ("", 0)
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            chunk = match.known(table.slice(start, _CHUNK_ROWS))
            if not chunk.num_rows:
                continue
            batch = transforms[0](chunk, targets=True, origin=origin, first_row=first_row + start)
            match.check(batch)
            drift.add(chunk, batch)
            mine, other, theirs = _scores(candidate, batch, threads), None, None
            found.candidate.append(_of_label(candidate, mine, batch))
            _count_undefined(found, "candidate", mine)
            if serving is not None:
                other = batch if alike else transforms[1](chunk, targets=True, origin=origin)
                theirs = _scores(serving, other, threads)
                own = _of_label(serving, theirs, other)
                found.serving.append(
                    [own[match.other_index(h.name)] for h in candidate.model.heads]
                )
                _count_undefined(found, "serving", theirs)
                _add_common(found, match, candidate, mine, theirs)
            if watch is not None:
                watch(chunk, batch, mine, other, theirs)
            assert batch.labels_BL is not None
            found.labels.append(batch.labels_BL)
            ones = np.ones(len(batch), np.float32)
            found.weight.append(ones if batch.weight_B is None else batch.weight_B)
            if batch.group_B is not None:
                found.group.append(batch.group_B)
            for name in extra:
                found.columns[name] += chunk.column(name).chunks
    return found


def _scores(bundle: Bundle, batch: Batch, threads: int) -> dict[str, Floats]:
    scores = bundle.scores_of(bundle.logits(batch, threads=threads))
    return scores if isinstance(scores, dict) else {bundle.model.heads[0].name: scores}


def _count_undefined(found: _Collected, who: str, by_head: ByHead) -> None:
    for name, scores in by_head.items():
        finite_B = np.isfinite(scores).reshape(len(scores), -1).all(axis=1)
        found.undefined[who, name] += int(np.count_nonzero(~finite_B))


def _add_common(
    found: _Collected, match: LabelMatch, candidate: Bundle, mine: ByHead, theirs: ByHead
) -> None:
    """Keep the rows' probabilities among the classes that both models know."""
    for index, head in enumerate(candidate.model.heads):
        columns = match.common_columns(head.name)
        if columns is not None:
            whole = [
                s[head.name][:, at].sum(axis=1)
                for s, at in zip((mine, theirs), columns, strict=True)
            ]
            own = (
                found.candidate[-1][index] / whole[0],
                found.serving[-1][index] / whole[1],
            )
            found.common.setdefault(head.name, []).append(own)


def _of_label(bundle: Bundle, by_head: ByHead, labelled: Batch) -> list[Floats]:
    """One column of scores a head: of a class head, the probability of the row's own class."""
    assert labelled.labels_BL is not None
    found = []
    for index, head in enumerate(bundle.model.heads):
        column = by_head[head.name]
        if head.kind == "multiclass":
            own = labelled.labels_BL[:, index].astype(np.int64)
            column = column[np.arange(len(column)), own]
        found.append(column)
    return found


def _heads(candidate: Bundle, found: _Collected) -> tuple[HeadScores, ...]:
    labels_BL = _joined(found.labels).astype(np.float64)
    return tuple(
        HeadScores(
            head=head,
            labels_B=np.ascontiguousarray(labels_BL[:, index]),
            candidate_B=np.concatenate([part[index] for part in found.candidate]),
            serving_B=np.concatenate([part[index] for part in found.serving])
            if found.serving
            else None,
            classes=class_names(candidate, head),
            common=_joined_pairs(found.common.get(head.name)),
            undefined={who: found.undefined[who, head.name] for who in ("candidate", "serving")},
        )
        for index, head in enumerate(candidate.model.heads)
    )


def _joined_pairs(parts: list[tuple[Floats, Floats]] | None) -> tuple[Floats, Floats] | None:
    if parts is None:
        return None
    mine, theirs = zip(*parts, strict=True)
    return np.concatenate(mine), np.concatenate(theirs)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts)


def _units(column: pa.ChunkedArray | None, rows: int) -> tuple[NDArray[np.int64], int]:
    if column is None:
        return np.arange(rows), rows
    codes, values = _encoded(column)
    return codes, len(values)


def _encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole, pa.ChunkedArray):  # of more than one chunk, past 2 GB of text
        whole = pa.concat_arrays(whole.chunks)
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    encoded = whole.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary


def _slice(name: str, column: pa.ChunkedArray) -> SliceColumn:
    if pa.types.is_nested(column.type):
        raise DataError(
            f"slice column {name!r}: got lists ({column.type}), expected one value a row; name "
            "another column under [gate] slices"
        )
    codes, values = _encoded(column)
    numbers = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if numbers and len(values) > _MOST_SLICES:
        return _ranges(name, codes, values)
    texts = ["missing" if value is None else str(value) for value in values.to_pylist()]
    if len(texts) <= _MOST_SLICES:
        return SliceColumn(name, tuple(texts), codes)
    often = np.argsort(-np.bincount(codes, minlength=len(texts)), kind="stable")[:_MOST_SLICES]
    place = np.full(len(texts), _MOST_SLICES, np.int64)
    place[often] = np.arange(_MOST_SLICES)
    kept = (*(texts[int(at)] for at in often), f"the other {len(texts) - _MOST_SLICES:,} values")
    return SliceColumn(name, kept, place[codes])


def _ranges(name: str, codes: NDArray[np.int64], values: pa.Array) -> SliceColumn:
    """A column of many numbers is cut into ranges of equally many rows."""
    numbers = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)[codes]
    known = numbers[~np.isnan(numbers)]
    cuts = np.unique(np.quantile(known, np.arange(1, _RANGES) / _RANGES)) if len(known) else known
    place = np.searchsorted(cuts, numbers, side="right")
    place[np.isnan(numbers)] = len(cuts) + 1
    ends = [f"{cut:g}" for cut in cuts]
    texts = [f"below {ends[0]}"] if ends else ["any number"]
    texts += [f"{low} to {high}" for low, high in itertools.pairwise(ends)]
    texts += [f"from {ends[-1]}"] if ends else []
    return SliceColumn(name, (*texts, "missing"), place.astype(np.int64))
