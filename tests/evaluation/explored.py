"""Logs of a policy that explores, in a world whose rewards are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

import widedeep as wd

ITEMS, CANDIDATES, SHOWN = 8, 5, 2
SEEN = np.array([1.0, 0.6])
"""Probability that each place is looked at."""


def chances(kind_R: np.ndarray) -> np.ndarray:
    """Return the chance (R, items) that each item is clicked if it is looked at."""
    rng = np.random.default_rng(5)
    taste = rng.uniform(0.05, 0.6, (3, ITEMS))
    return taste[kind_R]


def explored_log(requests: int, seed: int, *, epsilon: float = 0.5) -> tuple[pa.Table, np.ndarray]:
    """Rank by popularity or, with a chance of epsilon, at random; return the log and the truth.

    The truth is the chance that each row's item is clicked if it is looked at.
    """
    rng = np.random.default_rng(seed)
    kind_R = rng.integers(0, 3, requests)
    items_RC = np.argsort(rng.random((requests, ITEMS)), axis=1)[:, :CANDIDATES]
    truth_RC = np.take_along_axis(chances(kind_R), items_RC, axis=1)
    greedy_RC = np.argsort(np.argsort(items_RC, axis=1), axis=1)  # the first items are popular
    random_RC = np.argsort(rng.random(items_RC.shape), axis=1)
    explores_R = rng.random(requests) < epsilon
    place_RC = np.where(explores_R[:, None], random_RC, greedy_RC)
    propensity_RC = (1 - epsilon) * (place_RC == greedy_RC) + epsilon / CANDIDATES
    shown_RC = place_RC < SHOWN
    seen_RC = np.append(SEEN, 0.0)[np.minimum(place_RC, SHOWN)]
    click_RC = rng.random(items_RC.shape) < truth_RC * seen_RC
    hidden = ~shown_RC.ravel()
    table = pa.table(
        {
            "request": np.repeat(np.arange(requests), CANDIDATES),
            "kind": np.array(["a", "b", "c"])[np.repeat(kind_R, CANDIDATES)],
            "item": np.array([f"item {i}" for i in range(ITEMS)])[items_RC.ravel()],
            "place": pa.array(place_RC.ravel() + 1, mask=hidden),
            "propensity": pa.array(propensity_RC.ravel(), mask=hidden),
            "click": click_RC.ravel().astype(np.int8),
        }
    )
    return table, truth_RC.ravel()


def value_of(scores_B: np.ndarray, truth_B: np.ndarray) -> float:
    """Return the true reward per request of a ranking by scores."""
    order_RC = np.argsort(-scores_B.reshape(-1, CANDIDATES), axis=1, kind="stable")
    best_RS = np.take_along_axis(truth_B.reshape(-1, CANDIDATES), order_RC[:, :SHOWN], axis=1)
    return float((best_RS @ SEEN).mean())


def train(table: pa.Table, path: Path, *, crossed: bool = True, place: bool = False) -> wd.Bundle:
    """Train on the rows that were shown; without the cross the model knows no tastes."""
    shown = table.filter(pa.compute.is_valid(table["propensity"]))
    features = wd.categorical("kind", "item", *(["place"] if place else []))
    wide = [wd.crossed("kind", "item")] if crossed else []
    spec = wd.FeatureSpec(
        label="click",
        group="request",
        features=[*features, *wide],
        item=["item"],
        training_only={"place": 1} if place else {},
    )
    model = wd.WideDeep(wd.fit_schema(spec, shown), hidden_units=[])
    trainer = wd.Trainer(model, batch_size=64, seed=0, threads=1, progress=False)
    trainer.fit(shown, epochs=3)
    return trainer.export(path)
