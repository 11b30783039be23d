"""Explanation: one row's logits as a sum of wide terms, deep part and bias."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.graph import TowerParts
from widedeep.bundle.layout import BundleHead, BundleModel
from widedeep.data.batch import Batch
from widedeep.features import NumberInput
from widedeep.page import bar_list, framed_page, subsection
from widedeep.schema import Schema

__all__ = ["Explanation", "WideTerm", "name_ids"]

_LARGEST_TERMS = 20
_MOST_COMBINATIONS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class WideTerm:
    """What one id of one feature adds to the logits.

    Args:
        feature: The feature's name.
        value: What the id stands for: a value, a bucket, the parts of a cross; of a number, the
            number itself.
        weights: What it adds to each logit column.
        row_value: The row's own value where ``value`` does not say it: of a bucket, a hash, a value
            that training did not see.
    """

    feature: str
    value: str
    weights: tuple[float, ...]
    row_value: str = ""

    def __str__(self) -> str:
        own = f" ({self.row_value})" if self.row_value else ""
        return f"{self.feature} = {self.value}{own}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """One row's logits as wide terms + deep part + bias, before any calibration.

    Args:
        model: Says what each logit column is.
        wide: The wide terms, in feature order.
        deep: The deep part of each logit column.
        towers: What each tower adds to the deep part, by name; empty for a single one.
        attention: Values of a sequence with the weight that a tower gives to each, in their order,
            by ``TOWER/SEQUENCE``.
        bias: The bias of each logit column.
        logits: Sums of the three.
        score: Score of :meth:`Bundle.score` for the row, by head.
    """

    model: BundleModel
    wide: tuple[WideTerm, ...]
    deep: tuple[float, ...]
    bias: tuple[float, ...]
    logits: tuple[float, ...]
    score: dict[str, float | tuple[float, ...]]
    towers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    attention: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        blocks = []
        for head in self.model.heads:
            for column in range(head.start, head.stop):
                blocks.append(self._column_text(head, column))
        for name, events in self.attention.items():
            tower, _, sequence = name.partition("/")
            largest = sorted(events, key=lambda event: -abs(event[1]))[:_LARGEST_TERMS]
            width = max((len(value) for value, _ in largest), default=0)
            lines = [f"{value.ljust(width)}  {weight:+.4f}" for value, weight in largest]
            blocks.append("\n".join([f"attention of {tower} to {sequence}", *lines]))
        return "\n\n".join(blocks)

    def _repr_html_(self) -> str:
        parts = []
        for head in self.model.heads:
            for column in range(head.start, head.stop):
                rows = self._column_rows(head, column)
                bars = [(name, value, f"{value:+.4f}") for name, value in rows[:-1]]
                name, score = rows[-1]
                title = _title(self.model, head, column)
                lead = f"{title}: {name} {score:.4f}" if title else f"{name} {score:.4f}"
                headings = ("term", "logit")
                parts.append(subsection(lead, bar_list(bars, signed=True, headings=headings)))
        return framed_page("Explanation", parts, height=min(120 + 32 * (len(self.wide) + 5), 640))

    def _column_rows(self, head: BundleHead, column: int) -> list[tuple[str, float]]:
        """Return the terms of a logit, the largest first, its parts, its sum and the score."""
        terms = sorted(self.wide, key=lambda term: -abs(term.weights[column]))
        terms = [term for term in terms if term.weights[column]]
        rows = [(str(term), term.weights[column]) for term in terms]
        rows, further = rows[:_LARGEST_TERMS], rows[_LARGEST_TERMS:]
        if further:
            total = sum(weight for _, weight in further)
            rows.append((f"{len(further)} more wide terms", total))
        rows.append(("deep part", self.deep[column]))
        rows += [(f"  of it {name}", values[column]) for name, values in self.towers.items()]
        rows.append(("bias", self.bias[column]))
        rows.append(("logit", self.logits[column]))
        score = self.score[head.name]
        number = score if isinstance(score, float) else score[column - head.start]
        is_number = head.kind in ("regression", "ranking")
        rows.append(("value" if is_number else "probability", number))
        return rows

    def _column_text(self, head: BundleHead, column: int) -> str:
        rows = self._column_rows(head, column)
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {value:+.4f}" for name, value in rows[:-1]]
        lines.append(f"{rows[-1][0].ljust(width)}   {rows[-1][1]:.4f}")
        title = _title(self.model, head, column)
        return "\n".join([title, *lines] if title else lines)


def explain_row(
    row: Mapping[str, Any],
    batch: Batch,
    *,
    schema: Schema,
    model: BundleModel,
    weights: Mapping[str, NDArray[np.float32]],
    encode: Callable[[Sequence[Mapping[str, Any]]], Batch],
    deep_C: NDArray[np.float32],
    parts: TowerParts,
    logits_C: NDArray[np.float32],
    scores: Mapping[str, NDArray[np.float64]],
) -> Explanation:
    """Explain the logits of a row; ``batch`` is the encoded row."""
    terms: list[WideTerm] = []
    for index, slot in enumerate(schema.slots):
        if slot.name not in model.wide:
            continue
        cell = slice(*batch.offsets_BF[index : index + 2].tolist())  # the slot's ids
        ids = batch.ids_N[cell]
        values = np.ones(len(ids)) if batch.values_N is None else batch.values_N[cell]
        scale = _combiner_scale(values, slot.wide_combiner(model.wide_combiner))
        names = name_ids(schema, encode, slot.name, row, ids.tolist())
        for id_, value, (text, row_value) in zip(ids, values.tolist(), names, strict=True):
            added_C = weights[f"wide/{slot.name}"][id_].astype(np.float64) * value * scale
            terms.append(
                WideTerm(
                    feature=slot.name,
                    value=text,
                    row_value=row_value,
                    weights=tuple(added_C.tolist()),
                )
            )
    return Explanation(
        model=model,
        wide=tuple(terms),
        deep=tuple(deep_C.tolist()),
        towers={name: tuple(share_BC[0].tolist()) for name, share_BC in parts.shares.items()},
        attention={
            name: _events(schema, encode, row, batch, name.partition("/")[2], weights_BT[0])
            for name, weights_BT in parts.attention.items()
        },
        bias=tuple(weights["bias"].tolist()),
        logits=tuple(logits_C.tolist()),
        score={head: _plain_score(rows[0]) for head, rows in scores.items()},
    )


def _events(
    schema: Schema,
    encode: Callable[[Sequence[Mapping[str, Any]]], Batch],
    row: Mapping[str, Any],
    batch: Batch,
    sequence: str,
    weights_T: NDArray[np.float32],
) -> tuple[tuple[str, float], ...]:
    """Return the values of a row's sequence with their weights, in their order."""
    slot = next(i for i, slot in enumerate(schema.slots) if slot.name == sequence)
    ids = batch.cells(slot).ids_N.tolist()
    if sequence in schema.spec.parallel_names:  # a value without its parallel ones is not encoded
        names = [(schema.describe_id(sequence, id_), "") for id_ in ids]
    else:
        names = name_ids(schema, encode, sequence, row, ids)
    texts = [f"{name} ({own})" if own else name for name, own in names]
    return tuple(zip(texts, weights_T.tolist(), strict=False))  # padding follows the values


def _combiner_scale(values: NDArray[Any], combiner: str) -> float:
    if combiner == "sum":
        return 1.0
    divisor = float(np.sqrt((values**2).sum()) if combiner == "sqrtn" else values.sum())
    return 1.0 / divisor if divisor else 0.0


def _plain_score(score: Any) -> float | tuple[float, ...]:
    return tuple(score.tolist()) if np.ndim(score) else float(score)


def _title(model: BundleModel, head: BundleHead, column: int) -> str:
    parts = [f"head {head.name}"] if len(model.heads) > 1 else []
    if head.link == "ziln":
        parts.append(("chance of an amount", "mean logarithm", "spread")[column - head.start])
    if head.by_class:
        position = column - head.start
        parts.append(f"class {head.classes[position] if head.classes else position}")
    return ", ".join(parts)


def name_ids(
    schema: Schema,
    encode: Callable[[Sequence[Mapping[str, Any]]], Batch],
    feature: str,
    row: Mapping[str, Any],
    ids: Sequence[int],
) -> list[tuple[str, str]]:
    """Return the name of each id of a feature, and the row's value that it encodes."""
    kind = schema.spec.by_name[feature]
    numbers = kind.number_input
    if kind.dense_width and numbers is not None:
        return [_name_number(schema, feature, numbers, row, id_) for id_ in ids]
    # Each value or combination is encoded as a row of its own, so that its ids are known.
    singles = list(itertools.islice(_single_values(schema, feature, row), _MOST_COMBINATIONS))
    texts: dict[int, list[str]] = {}
    if singles:
        batch = encode([single for single, _ in singles])
        index = next(i for i, slot in enumerate(schema.slots) if slot.name == feature)
        starts = batch.offsets_BF[index :: len(schema.slots)]  # (B,) first id of the feature
        stops = batch.offsets_BF[index + 1 :: len(schema.slots)]  # (B,) one past the last
        for (_, text), start, stop in zip(singles, starts[: len(singles)], stops, strict=True):
            for id_ in batch.ids_N[start:stop].tolist():
                texts.setdefault(id_, []).append(text)
    names = []
    for id_ in ids:
        name, of_id = schema.describe_id(feature, id_), texts.get(id_) or [""]
        text = of_id.pop(0) if len(of_id) > 1 else of_id[0]
        names.append((name, "" if text in (name, _NULL) else text))
    return names


_NULL = "null"


def _name_number(
    schema: Schema, feature: str, numbers: NumberInput, row: Mapping[str, Any], id_: int
) -> tuple[str, str]:
    raw: Any = schema.spec.training_only.get(feature, row.get(numbers.column))
    component, size = id_ - 2, numbers.size
    lead = f"component {component % size}: " if size > 1 else ""
    values: Sequence[Any] = [raw] if size == 1 else [] if raw is None else list(raw)
    value = values[component % size] if len(values) == size else None
    missing = value is None or value != value
    if component >= size:  # an indicator feature's flags follow its values
        return f"{lead}<missing>", ""
    return f"{lead}{'<missing>' if missing else _plain_text(value)}", ""


def _single_values(
    schema: Schema, feature: str, row: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield rows that hold one of the feature's values or combinations each, and its text."""
    kind = schema.spec.by_name.get(feature)
    if kind is not None and kind.part_names:
        names = kind.part_names
        for parts in itertools.product(*(_single_values(schema, name, row) for name in names)):
            columns: dict[str, Any] = {}
            for single, _ in parts:
                columns = single | columns
            # Two values of one column, which two parts read, cannot be encoded alone.
            if all(columns[column] is single[column] for single, _ in parts for column in single):
                named = zip(names, parts, strict=True)
                yield columns, " & ".join(f"{name}={text}" for name, (_, text) in named)
        return
    source = feature if kind is None else kind.input_columns[0]
    raw: Any = schema.spec.training_only.get(feature, row.get(source))
    nested = schema.columns[source].nested
    several = isinstance(raw, (list, tuple, np.ndarray))
    numbers = None if kind is None else kind.number_input
    if numbers is not None and numbers.size > 1 and several:
        yield from ((({source: single}), text) for single, text in _single_components(raw))
        return
    values = [v for v in raw if v is not None] if several and raw is not None else [raw]
    weights = None if kind is None else kind.weight_column
    for value in values:
        columns = {source: [value] if nested and value is not None else value}
        if weights is not None:
            columns[weights] = [1.0] if schema.columns[weights].nested else 1.0
        if kind is not None and isinstance(columns[source], list):
            columns |= {name: [None] for name in schema.spec.parallel_columns(feature)}
        yield columns, _NULL if value is None else _plain_text(value)


def _single_components(vector: Sequence[Any]) -> Iterator[tuple[list[Any], str]]:
    """Yield a vector of each component and nulls, and the component's text."""
    for i, value in enumerate(vector):
        if value is not None and value == value:
            yield [value if j == i else None for j in range(len(vector))], _plain_text(value)


def _plain_text(value: object) -> str:
    """Return a value as a person writes it: 17, not 17.0."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
