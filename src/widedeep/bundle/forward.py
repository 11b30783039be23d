"""Forward: a model's schema, shape and weights made ready to turn batches into logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from widedeep.bundle.graph import TowerGraph
from widedeep.bundle.layout import BundleModel, DeepColumn
from widedeep.data.batch import Batch
from widedeep.errors import SchemaError
from widedeep.features.spec import feature_side
from widedeep.kernels.score import Scorer, new_scorer
from widedeep.schema import Schema

_SIDES = ("query", "item", "both")


class Forward:
    """Computes logits, float32, with the sums in the fixed order of the kernels' scorer."""

    def __init__(
        self,
        schema: Schema,
        model: BundleModel,
        weights: Mapping[str, NDArray[np.float32]],
        graph: TowerGraph | None = None,
        new_scorer: Callable[[int, int, int], Scorer] = new_scorer,
    ) -> None:
        self._graph = graph
        self._bias_C = weights["bias"]
        self._extra = {name: schema.dense_layout[name] for name in schema.spec.extra}
        self._slots = {slot.name: index for index, slot in enumerate(schema.slots)}
        self._scorer = new_scorer(len(self._slots), schema.n_dense, model.n_logits)
        self._add_wide(schema, model, weights)
        if graph is None:
            self._add_tower(schema, model, weights)
        else:
            _add_inputs(self._scorer, schema, model.deep, weights)

    def _add_wide(
        self, schema: Schema, model: BundleModel, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        for name in _query_first(schema, sorted(model.wide, key=self._slots.__getitem__)):
            item = feature_side(schema.spec, name) != "query"
            slot = self._slots[name]
            combiner = schema.slots[slot].wide_combiner(model.wide_combiner)
            self._scorer.add_wide(slot, weights[f"wide/{name}"], combiner, item=item)

    def _add_tower(
        self, schema: Schema, model: BundleModel, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        if not model.deep:
            return
        query, item = _sides(schema, model)
        _add_inputs(self._scorer, schema, query, weights)
        if item:
            self._scorer.start_item_inputs()
            _add_inputs(self._scorer, schema, item, weights)
        for layer in tower_layers(model, weights, [*query, *item]):
            self._scorer.add_layer(*layer)

    def parts(
        self, batch: Batch, *, threads: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the wide and the deep part of the logits, each (B, C)."""
        arrays = (batch.ids_N, batch.offsets_BF, batch.values_N, batch.dense_BK)
        try:
            wide_BC, deep_BC = self._scorer.forward(*arrays, threads=threads)
            if self._graph is not None:
                concat_BX = self._scorer.concat(*arrays, threads=threads)
                extra = {name: batch.dense_BK[:, at] for name, at in self._extra.items()}
                deep_BC = self._graph.run(concat_BX, extra, threads=threads)
        except ValueError as error:
            raise SchemaError(
                f"the batch does not fit the model ({error}); encode rows with the bundle's schema"
            ) from error
        return wide_BC, np.zeros_like(wide_BC) if deep_BC is None else deep_BC

    def logits(self, batch: Batch, *, threads: int = 1) -> NDArray[np.float32]:
        """Return the logits, (B, C)."""
        wide_BC, deep_BC = self.parts(batch, threads=threads)
        wide_BC += deep_BC
        wide_BC += self._bias_C
        return wide_BC


class TowerForward:
    """Computes the standard tower from its concatenated input, bit for bit as :class:`Forward`."""

    def __init__(
        self, schema: Schema, model: BundleModel, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self._scorer = new_scorer(0, model.width, model.n_logits)
        query, item = _sides(schema, model)
        for column in query:
            self._scorer.add_dense(column.start, column.stop - column.start)
        if item:
            self._scorer.start_item_inputs()
        for column in item:
            self._scorer.add_dense(column.start, column.stop - column.start)
        for layer in tower_layers(model, weights, [*query, *item]):
            self._scorer.add_layer(*layer)

    def logits(self, concat_BX: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float32]:
        """Return the deep part of the logits, (B, C)."""
        none, offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
        _, deep_BC = self._scorer.forward(
            none, offsets, None, np.ascontiguousarray(concat_BX), threads=threads
        )
        assert deep_BC is not None
        return deep_BC


def _sides(schema: Schema, model: BundleModel) -> tuple[list[DeepColumn], list[DeepColumn]]:
    """Return the query's columns, and the item's, in the order in which they are summed."""
    by_name = {column.name: column for column in model.deep}
    ordered = [by_name[name] for name in _query_first(schema, list(by_name))]
    query = [c for c in ordered if feature_side(schema.spec, c.name) == "query"]
    return query, ordered[len(query) :]


def tower_layers(
    model: BundleModel,
    weights: Mapping[str, NDArray[np.float32]],
    ordered: Sequence[DeepColumn],
) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None, str]]:
    """Return weights, bias and activation of each layer, the head last."""
    inputs = np.concatenate([np.arange(column.start, column.stop) for column in ordered])
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32] | None, str]] = [
        (weights[f"mlp/{i}/weight"], weights[f"mlp/{i}/bias"], model.activation)
        for i in range(len(model.hidden_units))
    ]
    layers.append((weights["head/weight"], None, "none"))
    first, *rest = layers
    return [(np.ascontiguousarray(first[0][:, inputs]), *first[1:]), *rest]


def _query_first(schema: Schema, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: _SIDES.index(feature_side(schema.spec, name)))


def _add_inputs(
    scorer: Scorer,
    schema: Schema,
    columns: Iterable[DeepColumn],
    weights: Mapping[str, NDArray[np.float32]],
) -> None:
    slots = {slot.name: (index, slot.table) for index, slot in enumerate(schema.slots)}
    for column in columns:
        if column.source == "dense":
            start = schema.dense_layout[column.name].start
            scorer.add_dense(start, column.stop - column.start)
        else:
            index, table = slots[column.name]
            scorer.add_embedding(index, weights[f"table/{table}"], column.combiner or "sum")
