"""RowScorer and FactorizedScorer: scores row by row, or as sums of query and item sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from widedeep.bundle import Bundle, DeepColumn
from widedeep.bundle.graph import (
    add_inputs,
    add_sequences,
    stage_columns,
    stage_sequences,
    tower_layers,
)
from widedeep.data.transform import plain_value
from widedeep.errors import BundleError
from widedeep.features import FeatureSpec
from widedeep.features.spec import feature_side, item_columns
from widedeep.kernels import EncodedSide, PartialSums, RankScorer, TransformSides
from widedeep.kernels.score import Side, to_bfloat16
from widedeep.serving.catalogue import Arrays

_ROWS_PER_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A request's query."""

    values: dict[str, Any]  # Values by column
    absent: tuple[str, ...]  # Columns that the query lacks and no item has


@dataclass(frozen=True, slots=True)
class ItemRows:
    """Items as rows."""

    rows: Sequence[Mapping[str, Any]]  # Values by column, one mapping per item
    absent: dict[str, int]  # Number of items that lack a column, where any does


class RowScorer:
    """Computes the logits of a request's candidates with the bundle itself."""

    def __init__(
        self, bundle: Bundle, *, item_columns: frozenset[str] | None, threads: int
    ) -> None:
        self._bundle = bundle
        self._threads = threads
        self._columns = bundle.encoder.columns(targets=False)
        self._item_columns = item_columns

    def query(self, row: Mapping[str, Any]) -> QueryRow:
        """Check the query and return it."""
        self._bundle.encode([row])
        of_item = self._item_columns or frozenset()
        absent = (name for name in self._columns if name not in row)
        return QueryRow(dict(row), tuple(name for name in absent if name not in of_item))

    def items(self, table: pa.Table) -> ItemRows:
        """Return a table of items as rows."""
        return self.item_rows(table.select(self._columns_of_item(table.column_names)).to_pylist())

    def item_rows(self, rows: Sequence[Mapping[str, Any]]) -> ItemRows:
        """Check items and return them, without the columns that the model does not read."""
        columns = self._columns_of_item(sorted({name for row in rows for name in row}))
        items = [{name: row[name] for name in columns if name in row} for row in rows]
        for start in range(0, len(items), _ROWS_PER_BLOCK):
            self._bundle.encode(items[start : start + _ROWS_PER_BLOCK])
        expected = set(columns) if self._item_columns is None else self._item_columns
        counts = {name: sum(name not in item for item in items) for name in sorted(expected)}
        return ItemRows(items, {name: n for name, n in counts.items() if n})

    def logits(
        self, query: QueryRow, items: ItemRows, rows_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of candidates, (B, C), not calibrated."""
        if not len(rows_B):
            return np.zeros((0, self._bundle.model.n_logits), np.float32)
        blocks, n_values = [], 0
        for start in range(0, len(rows_B), _ROWS_PER_BLOCK):
            block = rows_B[start : start + _ROWS_PER_BLOCK].tolist()
            batch = self._bundle.encode([{**query.values, **items.rows[row]} for row in block])
            n_values += batch.n_values
            self._bundle.encoder.check_values(n_values)
            blocks.append(self._bundle.logits(batch, threads=self._threads))
        return np.concatenate(blocks)

    def _columns_of_item(self, names: Sequence[str]) -> list[str]:
        allowed = frozenset(self._columns) if self._item_columns is None else self._item_columns
        return [name for name in names if name in allowed]


ArrayCache: TypeAlias = Callable[[Callable[[], Arrays]], Arrays]
"""Returns the arrays that its argument computes, or the same computed by another process."""

_SIDES: tuple[Side, ...] = ("query", "item", "pair")
_ITEMS_PER_BLOCK = 16_384


@dataclass(frozen=True, slots=True)
class QuerySums:
    """A query's part of every candidate's sums."""

    sums: PartialSums  # Sums of one row
    absent: tuple[str, ...]  # Columns that the query lacks


@dataclass(frozen=True, slots=True)
class ItemSums:
    """Each item's part of every request's sums."""

    sums: PartialSums  # Sums of the items' rows
    absent: dict[str, int]  # Number of items that lack a column, where any does


def can_factorize(bundle: Bundle) -> bool:
    """Tell whether a bundle's first layer is a sum of the query's part and the item's."""
    spec = bundle.schema.spec
    of_item = item_columns(spec)
    if bundle.manifest.engine == "onnx" or not of_item:
        return False
    raw = (name for f in spec.all_features for name in f.part_names if name not in spec.by_name)
    mixed = [f for f in spec.all_features if len({c in of_item for c in f.input_columns}) > 1]
    # A number of both sides: an indicator of a cross
    both = any(f.is_dense and feature_side(spec, f.name) == "both" for f in spec.all_features)
    return not mixed and not both and not any(name in spec.training_only for name in raw)


class FactorizedScorer:
    """Computes the logits of a request's candidates; the same bits as the bundle's."""

    def __init__(
        self, bundle: Bundle, *, precision: Literal["float32", "bfloat16"], threads: int
    ) -> None:
        self._bundle = bundle
        self._precision = precision
        self._threads = threads
        self.bias_C = bundle.weights["bias"]
        spec, slots = bundle.schema.spec, bundle.schema.slots
        self._side = {f.name: _side(spec, f.name) for f in spec.all_features}
        # Slots are numbered anew on each side.
        self._slots = {
            side: [slot.name for slot in slots if self._side[slot.name] == side] for side in _SIDES
        }
        self.transform = self._new_transform()
        self.query_columns = self.transform.query_columns
        self._item_columns = self.transform.item_columns
        self.kernel = RankScorer(
            (len(self._slots["query"]), len(self._slots["item"]), len(self._slots["pair"])),
            bundle.schema.n_dense,
            bundle.model.n_logits,
        )
        self._add_wide()
        if bundle.program is not None:
            self._add_program_inputs()
            self.kernel.set_program(bundle.program.native)
        elif bundle.model.deep:
            self._add_tower()

    def _new_transform(self) -> TransformSides:
        plan = self._bundle.encoder.plan
        spec = self._bundle.schema.spec
        of_item = item_columns(spec)
        numbers = [f.name for f in spec.all_features if f.is_dense]

        def indices(names: Iterable[str]) -> list[int]:
            return [plan.operations[name][1] for name in names]

        def is_item_part(name: str) -> bool:
            feature = spec.by_name.get(name)
            return (name if feature is None else feature.main_column) in of_item

        parts = [name for name, (kind, _) in plan.operations.items() if kind == "part"]
        return TransformSides(
            plan.native,
            query=[plan.operations[name] for name in self._slots["query"]],
            item=[plan.operations[name] for name in self._slots["item"]],
            query_numbers=indices(name for name in numbers if self._side[name] == "query"),
            item_numbers=indices(name for name in numbers if self._side[name] == "item"),
            crosses=indices(self._slots["pair"]),
            item_parts=indices(name for name in parts if is_item_part(name)),
        )

    def _add_wide(self) -> None:
        model, weights = self._bundle.model, self._bundle.weights
        combiners = {
            slot.name: slot.wide_combiner(model.wide_combiner) for slot in self._bundle.schema.slots
        }
        for side in _SIDES:
            for slot, name in enumerate(self._slots[side]):
                if name in model.wide:
                    self.kernel.add_wide(side, slot, weights[f"wide/{name}"], combiners[name])

    def _add_tower(self) -> None:
        model = self._bundle.model
        ordered = sorted(model.deep, key=lambda c: _SIDES.index(self._side[c.name]))
        self._add_inputs([[c for c in ordered if self._side[c.name] == side] for side in _SIDES])
        layers = tower_layers(model, self._bundle.weights, ordered)
        for index, layer in enumerate(layers):
            is_inner = 0 < index < len(layers) - 1
            self.kernel.add_layer(*layer, bfloat16=is_inner and self._precision == "bfloat16")

    def _add_program_inputs(self) -> None:
        schema, model, weights = self._bundle.schema, self._bundle.model, self._bundle.weights
        tables = {slot.name: weights.get(f"table/{slot.table}") for slot in schema.slots}
        columns, sequences = stage_columns(schema, model), stage_sequences(schema, model)
        for index, side in enumerate(_SIDES):
            own: list[list[DeepColumn]] = [[], [], []]
            own[index] = columns[index]
            self._add_inputs(own)
            add_sequence = partial(self.kernel.add_sequence, side)
            add_sequences(add_sequence, sequences[index], tables, self._slots[side])

    def _add_inputs(self, columns: Sequence[Sequence[DeepColumn]]) -> None:
        for side, own in zip(_SIDES, columns, strict=True):
            add_inputs(
                partial(self.kernel.add_dense, side),
                partial(self.kernel.add_embedding, side),
                self._bundle.schema,
                own,
                self._bundle.weights,
                self._slots[side],
            )

    def query(self, row: Mapping[str, Any]) -> QuerySums:
        """Return a query's part of the sums."""
        encoded, absent = self.transform.encode_rows(False, [dict(row)], plain_value, "")
        sums = self.kernel.sums_of("query", encoded, threads=1)
        counts = zip(self.query_columns, absent, strict=True)
        return QuerySums(sums, tuple(name for name, n in counts if n))

    def items(self, table: pa.Table, cache: ArrayCache | None = None) -> ItemSums:
        """Return each item's part of the sums, for a table with a row per item."""
        batches = table.select(self._item_columns).combine_chunks().to_batches()
        if not self._item_columns or not batches:
            return self.item_rows([{}] * table.num_rows)
        capsules = [batch.__arrow_c_array__() for batch in batches]
        return self._item_sums(self.transform.encode_items(capsules, "the catalogue"), {}, cache)

    def item_rows(self, rows: Sequence[Mapping[str, Any]]) -> ItemSums:
        """Return each item's part of the sums, for items as mappings; an absent key is a null."""
        dicts: list[dict[str, object]] = [dict(row) for row in rows]
        encoded, absent = self.transform.encode_rows(True, dicts, plain_value, "")
        counts = {name: n for name, n in zip(self._item_columns, absent, strict=True) if n}
        return self._item_sums(encoded, counts)

    def _item_sums(
        self, rows: EncodedSide, absent: dict[str, int], cache: ArrayCache | None = None
    ) -> ItemSums:
        def compute() -> Arrays:
            # wide (items, C), hidden (items, H)
            wide, hidden = self.kernel.sums("item", *rows.arrays, threads=self._threads)
            if self._precision == "float32":
                return {"wide": wide, "hidden": hidden}
            rounded = np.empty(hidden.shape, np.uint16)
            for start in range(0, len(hidden), _ITEMS_PER_BLOCK):
                block = slice(start, start + _ITEMS_PER_BLOCK)
                rounded[block] = to_bfloat16(hidden[block])
            return {"wide": wide, "hidden_bfloat16": rounded}

        arrays = compute() if cache is None else cache(compute)
        hidden, rounded = arrays.get("hidden"), arrays.get("hidden_bfloat16")
        return ItemSums(PartialSums(rows.parts, arrays["wide"], hidden, rounded), absent)

    def logits(
        self, query: QuerySums, items: ItemSums, rows_B: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the logits of candidates, (B, C), not calibrated."""
        return self.kernel.logits(
            self.transform,
            query.sums,
            items.sums,
            rows_B,
            self.bias_C,
            threads=self._threads,
        )


def new_scorer(
    bundle: Bundle, *, threads: int, precision: Literal["float32", "bfloat16"] = "float32"
) -> FactorizedScorer | RowScorer:
    """Return the scorer by sums of sides where the model has them, else the one by rows.

    Raises:
        BundleError: If the model has no sides, and a precision that only they have is asked for.
    """
    if can_factorize(bundle) and (precision == "float32" or bundle.program is None):
        return FactorizedScorer(bundle, precision=precision, threads=threads)
    if precision != "float32":
        raise BundleError(
            f"got precision={precision!r}, but this model's item part cannot be kept "
            "apart in it (it has towers beside the perceptron, or no features of the item); "
            "use 'float32'"
        )
    of_item = item_columns(bundle.schema.spec) & frozenset(bundle.encoder.columns(targets=False))
    return RowScorer(bundle, item_columns=of_item or None, threads=threads)


def _side(spec: FeatureSpec, name: str) -> Side:
    side = feature_side(spec, name)
    return "pair" if side == "both" else side
