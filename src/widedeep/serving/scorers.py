"""RowScorer and FactorizedScorer: scores row by row, or as sums of query and item sides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle
from widedeep.bundle.forward import tower_layers
from widedeep.data.batch import Batch
from widedeep.data.transform import plain_value
from widedeep.features import Categorical, Crossed, FeatureSpec, Numeric
from widedeep.features.spec import feature_side, item_columns
from widedeep.kernels.halves import to_bfloat16
from widedeep.kernels.ranker import EncodedSide, Side, SideSums, TransformSides, new_rank_scorer
from widedeep.serving.shared_rows import Arrays

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A request's query."""

    values: dict[str, Any]  # By column
    # Columns that the query lacks, as far as they are known not to be the items'
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ItemRows:
    """Items as rows."""

    rows: Sequence[Mapping[str, Any]]  # Values by column, one dict an item
    absent: dict[str, int]  # How many items lack each column, where any does


class RowByRow:
    """Computes the logits of a request's candidates with the bundle itself."""

    def __init__(
        self, bundle: Bundle, *, item_columns: frozenset[str] | None, threads: int
    ) -> None:
        self._bundle = bundle
        self._threads = threads
        # Shares the look-up tables; only the counts of absent keys are its own.
        self._encoder = copy.copy(bundle.encoder)
        self._encoder.absent = {}
        self._read = self._encoder.columns(targets=False)
        self._item_columns = item_columns

    def query(self, row: Mapping[str, Any]) -> QueryRow:
        """Return the query as it is."""
        self._encode([row])
        of_item = self._item_columns or frozenset()
        lacking = (name for name in self._read if name not in row)
        return QueryRow(dict(row), tuple(name for name in lacking if name not in of_item))

    def items(self, table: pa.Table) -> ItemRows:
        """Return a table of items as rows."""
        return self.item_rows(table.select(self._columns_of(table.column_names)).to_pylist())

    def item_rows(self, rows: Sequence[Mapping[str, Any]]) -> ItemRows:
        """Return items that are rows already."""
        given = {name for row in rows for name in row}
        columns = self._columns_of(sorted(given))
        kept = [{name: row[name] for name in columns if name in row} for row in rows]
        for start in range(0, len(kept), _ROWS_AT_ONCE):
            self._encode(kept[start : start + _ROWS_AT_ONCE])
        expected = set(columns) if self._item_columns is None else self._item_columns
        counts = {name: sum(name not in row for row in kept) for name in sorted(expected)}
        return ItemRows(kept, {name: n for name, n in counts.items() if n})

    def logits(
        self, query: QueryRow, items: ItemRows, positions_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of candidates, (B, C), not calibrated."""
        if not len(positions_B):
            return np.zeros((0, self._bundle.model.n_logits), np.float32)
        parts, total = [], 0
        for start in range(0, len(positions_B), _ROWS_AT_ONCE):
            some = positions_B[start : start + _ROWS_AT_ONCE].tolist()
            batch = self._encode([{**query.values, **items.rows[at]} for at in some])
            total += batch.n_values
            self._encoder.check_values(total)
            parts.append(self._bundle.logits(batch, threads=self._threads))
        return np.concatenate(parts)

    def _encode(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        return self._encoder.rows(rows)

    def _columns_of(self, given: Sequence[str]) -> list[str]:
        allowed = frozenset(self._read) if self._item_columns is None else self._item_columns
        return [name for name in given if name in allowed]


Keep: TypeAlias = Callable[[Callable[[], Arrays]], Arrays]

_SIDES: tuple[Side, ...] = ("query", "item", "pair")
_ITEMS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class QuerySums:
    """What a request's query brings to every candidate."""

    sums: SideSums  # Of its one row
    absent: tuple[str, ...]  # Columns that the query lacks


@dataclass(frozen=True, slots=True)
class ItemSums:
    """What each item brings to every request."""

    sums: SideSums  # Of their rows
    absent: dict[str, int]  # How many items lack each column, where any does


def can_factor(bundle: Bundle) -> bool:
    """Tell whether a bundle's scores can be taken apart into the query's and the item's sums."""
    spec = bundle.schema.spec
    of_item = item_columns(spec)
    if bundle.manifest.engine == "onnx" or not of_item:
        return False
    crosses = (feature for feature in spec.all_features if isinstance(feature, Crossed))
    raw = (part for cross in crosses for part in cross.parts if part not in spec.by_name)
    readers = [f for f in spec.all_features if not isinstance(f, Crossed)]
    mixed = [f for f in readers if len({c in of_item for c in _columns(f)}) > 1]
    return not mixed and not any(name in spec.training_only for name in raw)


def _columns(feature: Any) -> list[str]:
    weights = feature.weights if isinstance(feature, Categorical) else None
    return [feature.source] if weights is None else [feature.source, weights]


class FactoredForward:
    """Computes the logits of a request's candidates; the same bits as the bundle's."""

    def __init__(
        self, bundle: Bundle, *, precision: Literal["float32", "bfloat16"], threads: int
    ) -> None:
        self._bundle = bundle
        self._precision = precision
        self._threads = threads
        self._bias_C = bundle.weights["bias"]
        spec, slots = bundle.schema.spec, bundle.schema.slots
        self._side = {f.name: _side(spec, f.name) for f in spec.all_features}
        self._slots = {
            side: [slot.name for slot in slots if self._side[slot.name] == side] for side in _SIDES
        }
        self._transform = self._new_transform()
        self._query_columns = self._transform.query_columns
        self._item_columns = self._transform.item_columns
        self._scorer = new_rank_scorer(
            (len(self._slots["query"]), len(self._slots["item"]), len(self._slots["pair"])),
            bundle.schema.n_dense,
            bundle.model.n_logits,
        )
        self._add_wide()
        if bundle.model.deep:
            self._add_inputs()
            self._add_layers()

    def _new_transform(self) -> TransformSides:
        plan = self._bundle.encoder.plan
        spec = self._bundle.schema.spec
        of_item = item_columns(spec)
        numbers = [f.name for f in spec.all_features if isinstance(f, Numeric)]

        def places(names: Iterable[str]) -> list[int]:
            return [plan.places[name][1] for name in names]

        def is_item_part(name: str) -> bool:
            feature = spec.by_name.get(name)
            return (name if feature is None else _columns(feature)[0]) in of_item

        parts = [name for name, (kind, _) in plan.places.items() if kind == "part"]
        return TransformSides(
            plan.native,
            query=[plan.places[name] for name in self._slots["query"]],
            item=[plan.places[name] for name in self._slots["item"]],
            query_numbers=places(name for name in numbers if self._side[name] == "query"),
            item_numbers=places(name for name in numbers if self._side[name] == "item"),
            crosses=places(self._slots["pair"]),
            item_parts=places(name for name in parts if is_item_part(name)),
        )

    def _add_wide(self) -> None:
        model, weights = self._bundle.model, self._bundle.weights
        combiners = {
            slot.name: slot.wide_combiner(model.wide_combiner) for slot in self._bundle.schema.slots
        }
        for side in _SIDES:
            for slot, name in enumerate(self._slots[side]):
                if name in model.wide:
                    self._scorer.add_wide(side, slot, weights[f"wide/{name}"], combiners[name])

    def _add_inputs(self) -> None:
        schema, weights = self._bundle.schema, self._bundle.weights
        tables = {slot.name: slot.table for slot in schema.slots}
        for side in _SIDES:
            for column in self._bundle.model.deep:
                if self._side[column.name] != side:
                    continue
                if column.source == "dense":
                    start = schema.dense_layout[column.name].start
                    self._scorer.add_dense(side, start, column.stop - column.start)
                    continue
                table = weights[f"table/{tables[column.name]}"]
                slot = self._slots[side].index(column.name)
                self._scorer.add_embedding(side, slot, table, column.combiner or "sum")

    def _add_layers(self) -> None:
        model, weights = self._bundle.model, self._bundle.weights
        ordered = sorted(model.deep, key=lambda c: _SIDES.index(self._side[c.name]))
        layers = tower_layers(model, weights, ordered)
        for index, layer in enumerate(layers):
            inner = 0 < index < len(layers) - 1
            self._scorer.add_layer(*layer, bfloat16=inner and self._precision == "bfloat16")

    def query(self, row: Mapping[str, Any]) -> QuerySums:
        """Return what a query brings to every candidate."""
        encoded, absent = self._transform.encode_rows(False, [dict(row)], plain_value, "")
        sums = self._scorer.sums_of("query", encoded, threads=1)
        missing = zip(self._query_columns, absent, strict=True)
        return QuerySums(sums, tuple(name for name, n in missing if n))

    def items(self, table: pa.Table, keep: Keep | None = None) -> ItemSums:
        """Return what each row of a table of items brings to every request."""
        batches = table.select(self._item_columns).combine_chunks().to_batches()
        if not self._item_columns or not batches:
            return self.item_rows([{}] * table.num_rows)
        capsules = [batch.__arrow_c_array__() for batch in batches]
        return self._item_sums(self._transform.encode_items(capsules, "the catalogue"), {}, keep)

    def item_rows(self, rows: Sequence[Mapping[str, Any]]) -> ItemSums:
        """Return what items given as dicts bring; an absent key is a null, and counted."""
        dicts: list[dict[str, object]] = [dict(row) for row in rows]
        encoded, absent = self._transform.encode_rows(True, dicts, plain_value, "")
        missing = {name: n for name, n in zip(self._item_columns, absent, strict=True) if n}
        return self._item_sums(encoded, missing)

    def _item_sums(
        self, rows: EncodedSide, absent: dict[str, int], keep: Keep | None = None
    ) -> ItemSums:
        def make() -> Arrays:
            wide, hidden = self._scorer.sums("item", *rows.arrays, threads=self._threads)
            if self._precision == "float32":
                return {"wide": wide, "hidden": hidden}
            half = np.empty(hidden.shape, np.uint16)
            for start in range(0, len(hidden), _ITEMS_AT_ONCE):
                some = slice(start, start + _ITEMS_AT_ONCE)
                half[some] = to_bfloat16(hidden[some])
            return {"wide": wide, "hidden_bfloat16": half}

        sums = make() if keep is None else keep(make)
        kept = sums["wide"], sums.get("hidden"), sums.get("hidden_bfloat16")
        return ItemSums(SideSums(rows.parts, *kept), absent)

    def logits(
        self, query: QuerySums, items: ItemSums, positions_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of candidates, (B, C), not calibrated."""
        return self._scorer.logits(
            self._transform,
            query.sums,
            items.sums,
            positions_B,
            self._bias_C,
            threads=self._threads,
        )


def _side(spec: FeatureSpec, name: str) -> Side:
    side = feature_side(spec, name)
    return "pair" if side == "both" else side
