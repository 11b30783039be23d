"""Versions of a small model, published as a deployment does: beside their place, then renamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bundle import models
from widedeep.bundle import Bundle, BundleHead, Calibration, write_bundle

ITEMS = [f"item {n}" for n in range(6)] + models.APPS
USER = {"age": 31.0, "user": "bo", "tags": ["x"], "seen": ["mail"]}


def publish(
    root: Path,
    version: str,
    *,
    seed: int,
    heads: tuple[BundleHead, ...] = models.BINARY,
    config: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Calibration] | None = None,
) -> Bundle:
    """Write a version; another seed, another model."""
    schema = models.schema()
    shape = models.model(schema, heads=heads)
    return write_bundle(
        root / version,
        schema=schema,
        weights=models.random_weights(schema, shape, seed=seed),
        model=shape,
        metrics={},
        warmup_rows=models.rows(5),
        config=config or {},
        calibration=calibration or {},
        overwrite=True,
    )


def write_items(path: Path, *, price: float = 1.0, rows: int = len(ITEMS)) -> Path:
    """Write a catalogue of `rows` items; each costs `price` more than the one before."""
    names = [ITEMS[n] if n < len(ITEMS) else f"item {n}" for n in range(rows)]
    table = pa.table({"app": names, "price": [price * n for n in range(rows)]})
    made = path.with_suffix(".made")
    pq.write_table(table, made, store_schema=False)
    made.rename(path)
    return path


def whole_rows(items: list[str], price: float = 1.0) -> list[dict[str, Any]]:
    """The rows that USER and these items of the catalogue make."""
    return [{**USER, "app": name, "price": price * ITEMS.index(name)} for name in items]


def eventually(condition: Callable[[], bool], timeout_s: float = 50.0) -> None:
    """Wait until a condition holds; fail if it never does."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)
