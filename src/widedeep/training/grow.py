"""A model that grows on a stream: rows for new values, none for those that are no longer seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from widedeep.data.extend_schema import map_ids, without_values
from widedeep.data.fit import fit_schema
from widedeep.data.sources import Data
from widedeep.data.transform import Transform
from widedeep.errors import DataError, FeatureError
from widedeep.models.wide_deep import WideDeep
from widedeep.ranks.ranks import Ranks
from widedeep.schema import Schema
from widedeep.training.evaluation import Evaluator
from widedeep.training.state import TrainState


def grow(state: TrainState, evaluator: Evaluator, data: Data, evict_after: int | None) -> None:
    """Count the values of a shard that is about to be learned, and give the model rows for them.

    A value that ``evict_after`` shards in a row did not hold is forgotten before this one.
    """
    old = known = state.model.schema
    check_widths(old)
    if evict_after is not None:
        unused = {key: idle_V >= evict_after for key, idle_V in state.idle.items()}
        known = without_values(old, unused)
    fitted = fit_schema(old.spec, data, grow=known)
    _check_types(fitted, old)
    # What is no vocabulary stays as the model was made for it.
    schema = replace(
        fitted,
        columns=old.columns,
        classes=old.classes,
        label_means=old.label_means,
        numerics=old.numerics,
        boundaries=old.boundaries,
        history=old.history,
    )
    if evict_after is not None:
        state.idle = _idle_shards(schema, old, state.idle)
    use_schema(state.model, evaluator, schema, state.step.ranks)


def check_widths(schema: Schema) -> None:
    """Refuse a layer that would have to widen with a vocabulary."""
    for feature in schema.spec.all_features:
        if (source := feature.source_feature) is None:
            continue
        counted = schema.spec.by_name[source]
        column = counted.main_column
        is_given = column is not None and counted.given_values(schema.columns[column]) is not None
        if counted.vocabulary_key is not None and not is_given:
            raise FeatureError(
                f"feature {feature.name!r}: the values of its source {source!r} are learned and "
                "grow, and the first layer has a column for each; give the source a vocabulary, "
                "hash_buckets or boundaries, or embed it in the deep part instead"
            )


def use_schema(
    model: WideDeep, evaluator: Evaluator, schema: Schema, ranks: Ranks | None = None
) -> None:
    """Give a model the ids of another schema of its spec: rows move with their values.

    Rows of new values start as in a new model, and so does their optimizer state.
    """
    old = model.schema
    if schema.fingerprint != old.fingerprint:
        for table in model.tables.values():
            features = {name: feature for feature, name in table.features.items()}
            old_ids = {t: map_ids(schema, old, f).old_of_N for t, f in features.items()}
            table.renumber(old_ids, ranks)
    model.schema = schema  # with its counts, where the ids are the same
    evaluator.transform = Transform(schema)


def _check_types(fitted: Schema, old: Schema) -> None:
    """Refuse values of another type, none of which the model knows."""
    for key, vocabulary in old.vocabularies.items():
        now = fitted.vocabularies[key].values
        if isinstance(now, np.ndarray) != isinstance(vocabulary.values, np.ndarray):
            kinds = ("integers", "text")
            was_text = not isinstance(vocabulary.values, np.ndarray)
            raise DataError(
                f"vocabulary {key!r}: got {kinds[not was_text]}, and the model knows "
                f"{kinds[was_text]}; write the column as before"
            )


def _idle_shards(
    schema: Schema, old: Schema, idle: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.int64]]:
    """Return for how many shards in a row each counted value was not seen, by vocabulary."""
    by_key = {
        feature.vocabulary_key: feature.name
        for feature in reversed(schema.spec.all_features)
        if feature.vocabulary_key is not None
    }
    result = {}
    for key, vocabulary in schema.vocabularies.items():
        before = old.vocabularies[key]
        if not np.asarray(vocabulary.counts).any():
            continue  # values that the spec gives are not counted
        name = by_key.get(key, key)
        old_of_V = map_ids(schema, old, name).old_of_N[schema.id_count(name) - len(vocabulary) :]
        places_V = old_of_V - (old.id_count(name) - len(before))
        was_there = (old_of_V >= 0) & (places_V >= 0)
        earlier_V, idle_V = (
            np.where(was_there, np.append(np.asarray(numbers), 0)[places_V], 0)
            for numbers in (before.counts, idle.get(key, np.zeros(len(before), np.int64)))
        )
        is_seen = np.asarray(vocabulary.counts) != earlier_V
        result[key] = np.where(is_seen, 0, idle_V + 1)
    return result
