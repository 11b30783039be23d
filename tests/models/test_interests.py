"""An interest that only attention to the candidate finds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import widedeep as wd

ITEMS, EVENTS = 40, 8
SPEC = wd.FeatureSpec(
    label="click",
    wide=[],
    features=[
        *wd.categorical("ad", num_buckets=ITEMS, table="ad"),
        *wd.categorical("seen", num_buckets=ITEMS, table="ad", combiner=None, maxlen=EVENTS),
    ],
)

Task = Literal["seen", "newest", "last"]


def clicks(task: Task, rows: int, seed: int) -> list[dict[str, Any]]:
    """Clicks on what was seen before; on what was seen last; or after half of the last items.

    In the first two all items are as frequent with a click as without one, in histories and as
    candidates; "newest" compares with items that were seen earlier.
    """
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(rows):
        seen = rng.choice(ITEMS, EVENTS, replace=False)
        click = rng.random() < 0.5
        others = seen[:-1] if task == "newest" else np.setdiff1d(np.arange(ITEMS), seen)
        ad = rng.choice((seen[-1:] if task == "newest" else seen) if click else others)
        if task == "last":
            ad, click = rng.choice(ITEMS), seen[-1] < ITEMS // 2
        examples.append({"ad": int(ad), "seen": seen.tolist(), "click": int(click)})
    return examples


@functools.cache
def auc_of(tower: str, task: Task, rows: int, epochs: int) -> float:
    train, test = clicks(task, rows, 1), clicks(task, 1000, 2)
    schema = wd.fit_schema(SPEC, train)
    deep = {"name": tower, "hidden_units": [32, 16]}
    model = wd.WideDeep(schema, deep=deep, embedding_dim=4)
    trainer = wd.Trainer(model, deep=wd.Adam(lr=0.01), batch_size=64, progress=False)
    trainer.fit(train, epochs=epochs)
    return float(trainer.evaluate(test)["auc"])


@pytest.mark.parametrize(
    ("tower", "task", "rows", "epochs"),
    [
        pytest.param("din", "seen", 3000, 3, marks=pytest.mark.slow),
        pytest.param("dien", "newest", 3000, 3, marks=pytest.mark.slow),
        pytest.param("bst", "newest", 6000, 8, marks=pytest.mark.slow),
        pytest.param("history_transformer", "last", 3000, 3, marks=pytest.mark.slow),
    ],
)
def test_what_a_pooled_history_cannot_say(tower: str, task: Task, rows: int, epochs: int) -> None:
    auc, pooled = (auc_of(name, task, rows, epochs) for name in (tower, "history_pooling"))
    assert auc > 0.72
    assert auc > pooled + 0.1


def visits(rows: int, seed: int) -> list[dict[str, Any]]:
    """Each item has one that mostly follows it; clicked is what follows the last one."""
    rng, follower = np.random.default_rng(seed), np.random.default_rng(99).permutation(ITEMS)
    examples = []
    for _ in range(rows):
        seen = [int(rng.choice(ITEMS))]
        while len(seen) < EVENTS:
            seen.append(int(follower[seen[-1]] if rng.random() < 0.8 else rng.choice(ITEMS)))
        click = rng.random() < 0.5
        ad = int(follower[seen[-1]] if click else rng.choice(ITEMS))
        examples.append({"ad": ad, "seen": seen, "click": int(click)})
    return examples


@pytest.mark.slow
def test_the_next_event_teaches_what_few_labels_cannot(tmp_path: Path) -> None:
    train, test = visits(1000, 1), visits(1000, 2)
    schema = wd.fit_schema(SPEC, train)
    aucs = []
    for weight in (0.0, 1.0):
        deep = {"name": "dien", "hidden_units": [32, 16], "next_event_weight": weight}
        model = wd.WideDeep(schema, deep=deep, embedding_dim=8, seed=2)
        trainer = wd.Trainer(model, deep=wd.Adam(lr=0.01), batch_size=64, progress=False)
        trainer.fit(train, epochs=5)
        aucs.append(trainer.evaluate(test)["auc"])
    assert aucs[0] < 0.62 and aucs[1] > 0.75
    bundle = trainer.export(tmp_path / "bundle")
    np.testing.assert_allclose(bundle.score(test), trainer.predict(test), atol=1e-6)
    assert "towers.dien.summaries.0.next_event.layer.weight" in model.state_dict()
    assert b"next_event.layer" not in (tmp_path / "bundle" / "weights.safetensors").read_bytes()
