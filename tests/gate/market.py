"""A market of known truth, from which good models and broken ones are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

import widedeep as wd
from widedeep.bundle import Bundle, write_bundle
from widedeep.gate.config import GateConfig

COUNTRIES = ["de", "fr", "jp", "us"]
CONFIG = GateConfig(unit="user", slices=("country", "device"))
Change = Callable[[pa.Table], pa.Table]


def market(rows: int, seed: int, *, day: float = 0.0) -> pa.Table:
    """Clicks by users of one taste on items of many; with the days, tastes change."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99)
    item_effect, later = truth.normal(0, 0.7, 60), truth.normal(0, 0.7, 60)
    taste = truth.normal(0, 0.5, (4, 60))
    country, item = rng.integers(0, 4, rows), (60 * rng.random(rows) ** 2).astype(int)
    device = rng.integers(0, 3, rows)
    price = np.round(rng.lognormal(1.5, 0.6, rows), 2)
    now = np.cos(day) * item_effect + np.sin(day) * later
    logit = -0.9 + now[item] + taste[country, item] - 0.5 * (np.log(price) - 1.5) + 0.2 * device
    return pa.table(
        {
            "user": rng.integers(0, max(1, rows // 8), rows),
            "country": pa.array([COUNTRIES[c] for c in country]),
            "item": pa.array([f"item {i}" for i in item]),
            "device": pa.array([f"d{d}" for d in device]),
            "price": price,
            "click": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8),
        }
    )


def train(table: pa.Table, path: Path, *, seed: int = 0) -> Bundle:
    """Train as the first run did, on another table or from another seed."""
    spec = wd.FeatureSpec(
        label="click",
        features=[
            *wd.numeric("price"),
            *wd.categorical("country", "item", "device"),
            wd.crossed("country", "item"),
        ],
    )
    model = wd.WideDeep(wd.fit_schema(spec, table), hidden_units=[16], embedding_dim=4, seed=seed)
    trainer = wd.Trainer(model, batch_size=256, seed=seed, threads=1, progress=False)
    trainer.fit(table, epochs=2)
    return trainer.export(path)


def rewritten(
    bundle: Bundle, path: Path, change: Callable[[dict[str, np.ndarray]], None]
) -> Bundle:
    """Write a bundle again with other weights; its checksums are right."""
    weights = {name: np.array(values) for name, values in bundle.weights.items()}
    change(weights)
    return write_bundle(
        path,
        schema=bundle.schema,
        weights=weights,
        model=bundle.model,
        metrics=bundle.metrics,
        warmup_rows=bundle.warmup.rows,
        config=bundle.config,
    )


def with_column(table: pa.Table, name: str, values: object) -> pa.Table:
    """Replace a column."""
    return table.set_column(table.column_names.index(name), name, pa.array(values))
