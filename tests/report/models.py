"""Small trained models of every kind, with rows to report on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

import widedeep as wd

EVIL = "<script>alert('x')</script>&\"https://evil.example/"


def rows_of(count: int, seed: int = 0) -> pa.Table:
    """Rows with a city, a shop, a number, and labels of every kind that depend on them."""
    rng = np.random.default_rng(seed)
    city = rng.integers(0, 4, count)
    shop = rng.integers(0, 12, count)
    x = rng.normal(size=count)
    logit = x + 0.8 * (city == 1) - (city == 2) + 1.5 * ((city == 0) & (shop == 3))
    binary = rng.random(count) < 1 / (1 + np.exp(-logit))
    names = np.array(["oslo", EVIL, "rome", "bonn"])
    return pa.table(
        {
            "x": pa.array(np.where(rng.random(count) < 0.1, np.nan, x), from_pandas=True),
            "city": [None if rng.random() < 0.05 else str(name) for name in names[city]],
            "shop": [f"shop {at}" for at in shop],
            "user": rng.integers(0, count // 10 + 1, count),
            "w": rng.uniform(0.5, 2.0, count),
            "click": binary.astype(np.int64),
            "buy": (binary & (rng.random(count) < 0.4)).astype(np.int64),
            "price": 10 + 3 * logit + rng.normal(size=count),
            "kind": [["low", "mid", "high"][int(at)] for at in np.clip(np.round(logit) + 1, 0, 2)],
        }
    )


def train(
    folder: Path,
    *,
    label: object = "click",
    rows: int = 3000,
    seed: int = 0,
    hidden: list[int] | None = None,
    epochs: int = 2,
    l1: float = 1.0,
    head: str | None = None,
    **spec: object,
) -> tuple[wd.Trainer, wd.Bundle]:
    """Train a small model, and export it to a folder."""
    features = [
        wd.numeric("x"),
        wd.categorical("city"),
        wd.categorical("shop"),
        wd.crossed("city", "shop"),
    ]
    declared = wd.FeatureSpec(label=label, features=features, **spec)  # type: ignore[arg-type]
    data = rows_of(rows, seed)
    model = wd.WideDeep(
        wd.fit_schema(declared, data),
        hidden_units=[8] if hidden is None else hidden,
        embedding_dim=4,
        head=head,  # type: ignore[arg-type]
    )
    trainer = wd.Trainer(model, wide=wd.FTRL(lr=0.1, l1=l1), batch_size=128, progress=False)
    trainer.fit(data, epochs=epochs, valid=rows_of(500, seed + 100))
    return trainer, trainer.export(folder)
