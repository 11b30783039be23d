"""The labels and weights of a data set, read whole: what training would say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from widedeep.data.sources import open_source
from widedeep.errors import DataError
from widedeep.features import FeatureSpec

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Columns of labels, and of weights if the spec names one, of all rows."""

    spec: FeatureSpec  # Says what the columns are
    table: pa.Table  # The columns, text in full

    def classes(self, column: str) -> tuple[str, ...]:
        """Return the classes of a label that is text, sorted; none for numbers."""
        if self.spec.label_vocabulary or not _is_text(self.table[column].type):
            return tuple(self.spec.label_vocabulary or ())
        return tuple(sorted(v for v in pc.unique(self.table[column]).to_pylist() if v is not None))

    def problems(
        self, heads: Sequence[Any], classes: Mapping[str, Sequence[str]], monitor: str | None
    ) -> list[str]:
        """Return what training or evaluation would refuse."""
        weights, found = self._weights()
        reasons: dict[str, str] = {}
        for column in self.spec.labels.values():
            found += self._nulls(column)
        for head, column in zip(heads, self.spec.labels.values(), strict=False):
            if self.table[column].null_count:
                continue
            try:
                labels = self._labels(head, column, tuple(classes.get(head.name, ())))
            except DataError as error:
                found.append(str(error))
                continue
            if weights is None or (weights > 0).any():
                prefix = f"{head.name}/" if len(heads) > 1 else ""
                reasons |= {f"{prefix}{k}": v for k, v in _undefined(head, labels, weights).items()}
        if monitor in reasons:
            found.append(f"[train] monitor = {monitor!r} is not defined: {reasons[monitor]}")
        return found

    def single_valued(self) -> list[str]:
        """Return what to say of labels that have one value alone."""
        return [
            f"label {column!r} is always {values[0].as_py()}, expected at least two values: "
            "nothing can be learned"
            for column in self.spec.labels.values()
            if len(values := pc.unique(self.table[column].drop_null())) == 1
        ]

    def _nulls(self, column: str) -> list[str]:
        values = self.table[column]
        if not values.null_count:
            return []
        return [
            f"label {column!r} is null in {values.null_count / len(values):.2%} of the rows (the "
            f"first: row {_first(pc.is_null(values))}); drop them"
        ]

    def _labels(self, head: Any, column: str, known: tuple[str, ...]) -> np.ndarray[Any, Any]:
        """A label's column as the numbers that a head learns."""
        import torch

        values = self.table[column]
        name = f"label {column!r}"
        if _is_text(values.type):
            places = pc.index_in(values, pa.array(known, pa.string()))
            if places.null_count:
                row = _first(pc.is_null(places))
                raise DataError(
                    f"{name} (row {row}): got {values[row].as_py()!r}, expected one of "
                    f"{list(known[:_SHOWN])}, the classes of the training data"
                )
            return np.asarray(places, np.float32)
        try:
            labels = np.asarray(values.cast(pa.float64()))
        except pa.ArrowException as error:
            raise DataError(f"{name}: got a column of {values.type}, expected numbers") from error
        if not np.isfinite(labels).all():
            row = int((~np.isfinite(labels)).argmax())
            raise DataError(f"{name} (row {row}): got {labels[row]}, expected a finite number")
        try:
            head.check_labels(torch.from_numpy(labels.astype(np.float32)), column)
        except DataError as error:
            told = str(error).replace("(example", "(row").replace(" of a batch", "")
            raise DataError(told) from error
        return labels.astype(np.float32)

    def _weights(self) -> tuple[np.ndarray[Any, Any] | None, list[str]]:
        """The weights, and what is wrong with them."""
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
            return None, [f"{name}: got {got} in row {row}, expected numbers >= 0"]
        if not weights.any():
            return weights, [f"{name}: got 0 in every row; give some rows a weight above 0"]
        return weights, []


def read_targets(spec: FeatureSpec, data: Any) -> Targets:
    """Read the labels and weights of all rows."""
    names = [*spec.labels.values(), *([] if spec.weight is None else [spec.weight])]
    with open_source(data, columns=names) as source:
        if not source.num_rows:
            raise DataError("got no rows; expected at least one example")
        table = pa.concat_tables([source.read(part, names) for part in source.fragments])
    columns = [_plain(column) for column in table.columns]
    return Targets(spec=spec, table=pa.table(columns, names=table.column_names))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if _is_text(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()) or (
        pa.types.is_string_view(kind)
    )


def _first(flags: pa.ChunkedArray) -> int:
    return int(np.asarray(flags).argmax())


def _undefined(
    head: Any, labels: np.ndarray[Any, Any], weights: np.ndarray[Any, Any] | None
) -> dict[str, str]:
    """Why metrics are not defined for these labels, whatever the model predicts."""
    from widedeep.training.evaluation import HeadMetrics, make_metrics

    metrics: HeadMetrics = make_metrics(head, groups=False)
    scores = np.zeros((len(labels), head.width), np.float32)
    if head.kind == "multiclass":
        metrics.update(scores, labels.astype(np.int64), weights)
    else:
        metrics.update(scores[:, 0], labels, weights)
    metrics.compute()
    return {k: v for k, v in metrics.reasons.items() if k not in ("precision", "recall")}
