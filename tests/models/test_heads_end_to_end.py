"""Every kind of head goes the whole way from TOML: trained, resumed, exported, judged, served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import widedeep as wd
from tests.command_line import Run

CLASSES = ["drama", "news", "sport"]
TOML = """
[data]
train = "train.parquet"
test = "test.parquet"
{data}
[features]
numeric = ["age"]
categorical = ["job"]
[model]
{model}
hidden_units = [4]
embedding_dim = 2
[train]
epochs = 2
batch_size = 64
early_stopping = false
schedule = "constant"
deep = {{ optimizer = "adagrad", lr = 0.2, initial_accumulator = 0.1, l2 = 0.025 }}
dense = {{ optimizer = "adagrad" }}
[gate]
min_rows = 10
min_positives = 5
"""

HEADS = {
    "focal": ('label = "click"', 'head = { kind = "binary", loss = "focal", gamma = 1.5 }'),
    "smoothed": (
        'label = "click"',
        'head = { kind = "binary", smoothing = 0.1, pos_weight = 2.0 }',
    ),
    "classes": ('label = "kind"', "head = { kind = 'multiclass', class_weights = { news = 2.0 } }"),
    "integers": ('label = "number"', "head = { kind = 'multiclass', classes = 3 }"),
    "lists": ('label = "tags"', 'head = "multilabel"'),
    "huber": ('label = "units"', 'head = { kind = "regression", loss = "huber", delta = 0.5 }'),
    "squared_log": ('label = "units"', 'head = { kind = "regression", loss = "squared_log" }'),
    "poisson": ('label = "units"', 'head = "poisson"'),
    "tweedie": ('label = "amount"', 'head = { kind = "tweedie", power = 1.3 }'),
    "ziln": ('label = "amount"', 'head = "ziln"'),
    "softmax": ('label = "click"\ngroup = "request"', 'head = "ranking"'),
    "pairs": ('label = "click"\ngroup = "request"', 'head = { kind = "ranking", loss = "pairs" }'),
    "several": (
        'label = { click = "click", buy = "buy", price = "price", tags = "tags" }\n'
        'head_weights = { price = "units" }',
        'heads.buy = { kind = "binary", through = "click" }\n'
        'heads.price = { kind = "ziln", loss_weight = 0.1 }',
    ),
}


def table(rows: int, seed: int) -> pa.Table:
    """Requests of five candidates, whose labels follow the job and the age."""
    random = np.random.default_rng(seed)
    job, age = random.integers(0, 4, rows), random.normal(size=rows)
    strength = job - 1.5 + age
    click = random.random(rows) < 1 / (1 + np.exp(-2 * strength))
    buy = click & (random.random(rows) < 0.6)
    amount = np.where(click, np.exp(0.3 * strength + 0.2 * random.normal(size=rows)), 0.0)
    wish = random.normal(size=(rows, 3)) + np.outer(strength, [1, 0, -1])
    return pa.table(
        {
            "request": np.arange(rows) // 5,
            "job": [f"job {i}" for i in job],
            "age": age,
            "click": click.astype(np.int8),
            "buy": buy.astype(np.int8),
            "number": wish.argmax(axis=1),
            "kind": [CLASSES[i] for i in wish.argmax(axis=1)],
            "tags": [[c for c, w in zip(CLASSES, row, strict=True) if w > 0] for row in wish],
            "units": random.poisson(np.exp(0.5 * strength)),
            "amount": amount,
            "price": pa.array([a if c else None for a, c in zip(amount, click, strict=True)]),
        }
    )


def write_run(folder: Path, name: str) -> Path:
    data, model = HEADS[name]
    pq.write_table(table(400, 1), folder / "train.parquet", row_group_size=130)
    pq.write_table(table(300, 2), folder / "test.parquet")
    (folder / "run.toml").write_text(TOML.format(data=data, model=model))
    return folder / "run.toml"


def as_lists(scores: Any) -> dict[str, list[Any]]:
    by_head = scores if isinstance(scores, dict) else {"": scores}
    return {name: np.asarray(values).tolist() for name, values in by_head.items()}


QUICK = ("lists", "softmax", "several")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in HEADS]
)
def test_a_head_goes_the_whole_way(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toml = write_run(tmp_path, name)
    trained = run("train", toml, "--out", "whole", "--json")
    assert trained.code == 0, trained.err
    assert run("train", toml, "--out", "parts", "--set", "train.epochs=1").code == 0
    resumed = run("train", toml, "--out", "parts", "--resume")
    assert resumed.code == 0, resumed.err
    bundle, other = (wd.Bundle.load(tmp_path / run / "bundle") for run in ("whole", "parts"))
    rows = table(20, 3).to_pylist()
    assert as_lists(bundle.score(rows)) == as_lists(other.score(rows))

    evaluated = run("evaluate", "whole", "test.parquet", "--json")
    assert evaluated.code == 0, evaluated.err
    metrics = json.loads(evaluated.out)["metrics"]
    # Precision alone depends on what is predicted: there may be no predicted positive.
    wrong = {k: v for k, v in metrics.items() if v is None and not k.endswith("precision")}
    assert not wrong

    judged = run("validate", "whole", "--against", "parts", "--data", "test.parquet", "--json")
    assert judged.code in (0, 1), judged.err
    assert "NaN" not in judged.out

    assert run("report", "whole", "-o", "report.html").code == 0
    bundle.explain(rows[0])
    warm = run("train", toml, "--out", "warm", "--warm-start", "whole", "--set", "train.epochs=1")
    assert warm.code == 0, warm.err
