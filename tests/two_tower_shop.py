"""A shop with a taste for each user and popular items, and a model of it with two towers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

import widedeep as wd
from widedeep import models

ITEMS = 24
CATALOGUE = pa.table(
    {
        "item": [f"i{i}" for i in range(ITEMS)],
        "price": [float(i % 5) for i in range(ITEMS)],
        "stock": list(range(ITEMS)),
    }
)


def shop(rows: int, seed: int = 0) -> pa.Table:
    """Users like a third of the items, each his own; popular items are shown far more often."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 6, rows)
    shown = 1.0 / (1.0 + np.arange(ITEMS))
    item = rng.choice(ITEMS, rows, p=shown / shown.sum())
    buys = rng.random(rows) < np.where((user + item) % 3 == 0, 0.5, 0.02)
    return pa.table(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{i}" for i in item],
            "price": (item % 5).astype(float),
            "place": rng.integers(1, 9, rows),
            "age": rng.integers(18, 80, rows),
            "buy": buys.astype(np.int8),
        }
    )


def spec(**changes: Any) -> wd.FeatureSpec:
    features = [wd.categorical("user", "item"), wd.numeric("price", "place", "age")]
    flat = [f for group in features for f in (group if isinstance(group, list) else [group])]
    declared: dict[str, Any] = {
        "label": "buy",
        "features": flat,
        "item": ["item", "price"],
        "training_only": {"place": 1},
        "wide": [],
    }
    return wd.FeatureSpec(**{**declared, **changes})


def trained(rows: int = 4000, **options: Any) -> wd.Trainer:
    table = shop(rows)
    tower = models.TwoTower(dim=6, hidden_units=(12,), **options)
    model = wd.WideDeep(wd.fit_schema(spec(), table), deep=tower, embedding_dim=6)
    trainer = wd.Trainer(model, progress=False, batch_size=128, threads=1)
    trainer.fit(table, epochs=4)
    return trainer
