"""Growing a schema: what an older one knows keeps its place, what new data shows comes behind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from widedeep.data.fit_plan import FitPlan
from widedeep.data.fit_scans import Found
from widedeep.data.id_maps import map_ids, tuples_as_bytes
from widedeep.features import Bucketized, Crossed, FeatureSpec, Numeric
from widedeep.schema import ColumnType, Schema, Vocabulary

__all__ = ["grow_cross", "grow_values"]


def grow_values(found: Found, spec: FeatureSpec, plan: FitPlan, previous: Schema) -> None:
    """Put an older schema's vocabularies before the values that were found, in place.

    Numbers whose declaration is the same keep their quantiles and boundaries too: a model that
    goes on learning reads them as it did.

    Args:
        found: What passes over the new data found, crosses not yet among it.
        spec: The declaration.
        plan: Says which vocabularies are learned.
        previous: The older schema.
    """
    for learned in plan.learned:
        old, new = previous.vocabularies.get(learned.key), found.vocabularies[learned.key]
        if old is not None and isinstance(old.values, np.ndarray) != learned.is_text:
            found.vocabularies[learned.key] = _merged(old, new, learned.max_size)
    for feature in spec.all_features:
        if previous.spec.by_name.get(feature.name) != feature:
            continue
        if isinstance(feature, Numeric | Bucketized):
            before, now = previous.columns[feature.source], plan.types[feature.source]
            if not _same_numbers(before, now):
                found.notes.append(
                    f"feature {feature.name!r}: its column was {before.storage} and is "
                    f"{now.storage}, so its boundaries are learned anew"
                )
                continue
        if isinstance(feature, Numeric):
            found.numerics[feature.name] = previous.numerics[feature.name]
        elif isinstance(feature, Bucketized):
            found.boundaries[feature.name] = previous.boundaries[feature.name]


def _same_numbers(before: ColumnType, now: ColumnType) -> bool:
    """Whether a number means the same in both; what an older version did not write is trusted."""
    narrow = {"float16", "float32"}
    known = before.storage is not None and before.storage != now.storage
    return not (known and narrow & {before.storage, now.storage})


def grow_cross(found: Found, cross: Crossed, parts: Schema, previous: Schema) -> None:
    """Put an older schema's combinations before those that were found, in place.

    Args:
        found: Holds the cross's combinations, in the ids of ``parts``.
        cross: The cross.
        parts: The grown schema of its parts.
        previous: The older schema.
    """
    theirs = previous.spec.by_name.get(cross.name)
    if not isinstance(theirs, Crossed) or theirs.hash_buckets or theirs.parts != cross.parts:
        return
    old = previous.vocabularies[cross.name]
    assert isinstance(old.values, np.ndarray)
    columns = []
    for at, part in enumerate(cross.parts):
        old_of_N = map_ids(parts, previous, part).old_of_N
        new_of_old = np.full(previous.id_count(part), -1, np.int64)
        known = old_of_N >= 0
        new_of_old[old_of_N[known]] = np.flatnonzero(known)
        columns.append(new_of_old[old.values[:, at]])
    tuples = np.stack(columns, axis=1)
    kept = (tuples >= 0).all(axis=1)
    carried = Vocabulary(values=tuples[kept], counts=old.counts[kept])
    new = found.vocabularies[cross.name]
    found.vocabularies[cross.name] = _merged(carried, new, cross.max_size)


def _merged(old: Vocabulary, new: Vocabulary, max_size: int | None) -> Vocabulary:
    """Return the old values in their order, then the new ones; the rarest leave beyond max_size."""
    at = pc.index_in(_keys(new), value_set=_keys(old))
    known = at.is_valid().to_numpy(zero_copy_only=False)
    counts = np.array(old.counts)
    counts[at.drop_null().to_numpy().astype(np.int64)] += np.asarray(new.counts)[known]
    counts = np.concatenate([counts, np.asarray(new.counts)[~known]])
    kept = np.arange(len(counts))
    if max_size is not None and len(counts) > max_size:
        kept = np.sort(np.argsort(-counts, kind="stable")[:max_size])
    values: pa.LargeBinaryArray | NDArray[np.int64]
    if isinstance(old.values, np.ndarray) and isinstance(new.values, np.ndarray):
        values = np.concatenate([old.values, new.values[~known]])[kept]
    else:
        fresh = pa.array(new.values).filter(pa.array(~known))
        values = pa.concat_arrays([old.values, fresh]).take(pa.array(kept))
    gone = len(counts) - len(kept)
    return Vocabulary(values=values, counts=counts[kept], dropped=new.dropped + gone)


def _keys(vocabulary: Vocabulary) -> pa.Array:
    values = vocabulary.values
    if isinstance(values, np.ndarray):
        return tuples_as_bytes(values) if values.ndim == 2 else pa.array(values)
    return values
