"""Whether two joins made the same, to the bit; means and sums of the report to twelve digits."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import widedeep as wd
from widedeep.join import JoinResult

CATEGORIES = ("user_id", "item_id", "device", "brand", "last_items")
NUMBERS = ("age", "user_actions_7d", "item_rate")


def differences(one: JoinResult, other: JoinResult) -> dict[str, tuple[int, list[str]]]:
    """Return of each kind of result how many were compared, and which differ.

    Args:
        one: A join.
        other: Another of the same log and configuration.
    """
    found = {"rows of a split": _compared(_rows(one), _rows(other))}
    for split in ("train", "valid", "test"):
        sums = [column_checksums(result, split) for result in (one, other)]
        found[f"columns of {split}"] = _compared(*sums)
    figures = [_figures(result) for result in (one, other)]
    floats = [_only(leaves, floats=True) for leaves in figures]
    found["statistics: integers and text"] = _compared(*(_only(f, floats=False) for f in figures))
    found["statistics: floats, to twelve digits"] = _compared(
        *({path: f"{leaf:.11e}" for path, leaf in leaves.items()} for leaves in floats)
    )
    schemas = [_schema(result) for result in (one, other)]
    found["vocabularies and quantiles"] = _compared(*schemas)
    return found


def _compared(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, list[str]]:
    names = [*dict.fromkeys([*one, *other])]
    missing = object()
    # repr tells 0.0 from -0.0, and NaN is itself.
    return len(names), [
        name for name in names if repr(one.get(name, missing)) != repr(other.get(name, missing))
    ]


def _rows(result: JoinResult) -> dict[str, Any]:
    return dict(result.rows)


def column_checksums(result: JoinResult, split: str) -> dict[str, str]:
    """Return the SHA-256 of each column of a split, its rows in the order of the shards."""
    table = pa.concat_tables([pq.read_table(path) for path in result.paths(split)])
    return {name: _checksum(table[name]) for name in table.column_names}


def _checksum(values: pa.ChunkedArray) -> str:
    digest = hashlib.sha256()
    for part in _bytes(values.combine_chunks()):
        digest.update(part)
    return digest.hexdigest()


def _bytes(values: pa.Array) -> list[bytes]:
    """Return what tells a column from another: type, nulls, lengths, values."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    nulls = np.packbits(np.asarray(values.is_null())).tobytes()
    if pa.types.is_list(values.type):
        lengths = pc.list_value_length(values).fill_null(0).to_numpy()
        return [b"list", nulls, lengths.tobytes(), *_bytes(values.flatten())]
    if pa.types.is_string(values.type):
        lengths = pc.binary_length(values).fill_null(0).to_numpy()
        text = "".join(values.drop_null().to_pylist()).encode()
        return [b"text", nulls, lengths.tobytes(), text]
    return [str(values.type).encode(), nulls, values.fill_null(0).to_numpy().tobytes()]


def _figures(result: JoinResult) -> dict[str, Any]:
    """Return the leaves of the report, and of the manifest what does not name a shard."""
    manifest = result.manifest
    told = {
        "report": json.loads((result.output / "report.json").read_text(encoding="utf-8")),
        "counts": manifest["counts"],
        "columns": manifest["columns"],
        "boundaries": manifest["boundaries_us"],
        "weight": {name: split["weight"] for name, split in manifest["splits"].items()},
    }
    return _leaves(told, "")


def _leaves(figures: Any, path: str) -> dict[str, Any]:
    if not isinstance(figures, dict | list):
        return {path: figures}
    listed = figures.items() if isinstance(figures, dict) else enumerate(figures)
    return {
        key: leaf
        for name, inner in listed
        for key, leaf in _leaves(inner, f"{path}/{name}").items()
    }


def _only(leaves: dict[str, Any], *, floats: bool) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves.items() if isinstance(leaf, float) == floats}


def _schema(result: JoinResult) -> dict[str, Any]:
    """Fit vocabularies and quantiles on train; return the checksums of what was learned."""
    features = [*wd.categorical(*CATEGORIES), *wd.numeric(*NUMBERS)]
    schema = wd.fit_schema(wd.FeatureSpec(features=features), result.output / "train")
    found: dict[str, Any] = {"fingerprint": schema.fingerprint}
    for name, vocabulary in schema.vocabularies.items():
        values = vocabulary.values
        found[f"vocabulary of {name}"] = _digest(values, vocabulary.counts)
    for name, fit in schema.numerics.items():
        found[f"quantiles of {name}"] = _digest(*fit.boundaries)
        found[f"mean and range of {name}"] = _digest(fit.mean, fit.minimum, fit.maximum)
    return found


def _digest(*arrays: pa.Array | np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, pa.Array):
            digest.update(repr(array.to_pylist()).encode())
        else:
            digest.update(array.tobytes())
    return digest.hexdigest()
