"""A small training that the tests of callbacks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import widedeep as wd

_RNG = np.random.default_rng(7)
ROWS = [
    {
        "job": "abcd"[job],
        "age": job + 0.5,
        "tags": ["x", "y"][: job % 3],
        "y": int(_RNG.random() < (0.1, 0.3, 0.6, 0.9)[job]),
    }
    for job in _RNG.integers(4, size=64).tolist()
]
SPEC = wd.FeatureSpec(
    label="y",
    features=[wd.categorical("job", embedding_dim=4), wd.numeric("age"), wd.categorical("tags")],
)


def make_trainer(checkpoints: Path | None = None, **options: Any) -> wd.Trainer:
    model = wd.WideDeep(wd.fit_schema(SPEC, ROWS), hidden_units=[8])
    return wd.Trainer(
        model, batch_size=16, progress=False, checkpoints=checkpoints, threads=1, **options
    )
