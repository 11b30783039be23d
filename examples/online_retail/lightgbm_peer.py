"""LightGBM and logistic regression on the very same examples, for comparison.

    python examples/online_retail/run.py online_retail.parquet --out retail
    python examples/online_retail/lightgbm_peer.py retail

LightGBM gets the same columns: numbers as they are, item, country and customer as categories. A
tree has no natural use for the list of the last items; whether the item is among them is given as a
column of its own, and so is the place in the list.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from retail import HISTORY
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from widedeep.metrics import auc, calibration, grouped_auc, log_loss

NUMBERS = [*(h.name for h in HISTORY if h.feature != "last"), "price"]
CATEGORIES = ["item", "country", "customer"]


def place_in_list(table: pa.Table) -> np.ndarray[Any, Any]:
    """Return where the item stands in the customer's last items (0 the newest), 99 if nowhere."""
    lists = table["last_items"].combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy()
    same = pc.equal(pc.list_flatten(lists), table["item"].combine_chunks().take(parents))
    hit = np.flatnonzero(same.to_numpy(zero_copy_only=False))
    offsets = lists.offsets.to_numpy()
    place_B = np.full(len(table), 99.0, np.float32)
    rows_H = parents[hit]
    np.minimum.at(place_B, rows_H, (hit + offsets[0] - offsets[rows_H]).astype(np.float32))
    return place_B


def columns(folder: Path, values: dict[str, pa.Array]) -> tuple[Any, Any, Any]:
    """Return features (B, columns), labels and customers of a split."""
    names = [*NUMBERS, *CATEGORIES, "last_items", "label"]
    table = pq.read_table(folder, columns=names)
    arrays = [table[name].to_numpy().astype(np.float32) for name in NUMBERS]
    arrays.append(place_in_list(table))
    for name in CATEGORIES:
        codes = pc.index_in(table[name].combine_chunks(), values[name])
        arrays.append(codes.fill_null(-1).to_numpy().astype(np.float32))
    return np.stack(arrays, axis=1), table["label"].to_numpy(), table["customer"].to_numpy()


def report(
    name: str, score_B: Any, label_B: Any, customer_B: Any, seconds: float
) -> dict[str, Any]:
    """Print and return the metrics of one model on the test period."""
    metrics = {
        "auc": auc(label_B, score_B),
        "gauc": grouped_auc(label_B, score_B, customer_B),
        "log_loss": log_loss(label_B, score_B),
        "calibration": calibration(label_B, score_B),
    }
    text = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
    print(f"{name}: {text} ({seconds:.0f} s)", flush=True)
    return metrics


def table(out: Path, peers: dict[str, dict[str, Any]]) -> str:
    """Return the figures of all models as Markdown; those of Wide & Deep are run.py's."""
    ours = json.loads((out / "metrics.json").read_text())
    set_right = {key: ours[f"calibrated {key}"] for key in ("log_loss", "calibration")}
    models = {**peers, "**Wide & Deep**": ours, "**Wide & Deep, calibrated**": ours | set_right}
    rows = ["| model | AUC | grouped AUC | log loss | calibration |", "|---|---|---|---|---|"]
    for name, metrics in models.items():
        cells = [f"{metrics[key]:.4f}" for key in ("auc", "gauc", "log_loss", "calibration")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Train both and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="what run.py made")
    parser.add_argument("--threads", type=int, default=0, help="default: all")
    arguments = parser.parse_args()
    examples = arguments.out / "examples"
    train = pq.read_table(examples / "train", columns=CATEGORIES)
    values = {name: pc.unique(train[name]).sort() for name in CATEGORIES}
    train_X, train_y, _ = columns(examples / "train", values)
    valid_X, valid_y, _ = columns(examples / "valid", values)
    test_X, test_y, customers = columns(examples / "test", values)

    numbers = train_X.shape[1] - len(CATEGORIES)
    started = time.perf_counter()
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    linear.fit(np.nan_to_num(train_X[:, :numbers], nan=0.0), train_y)
    score = linear.predict_proba(np.nan_to_num(test_X[:, :numbers], nan=0.0))[:, 1]
    metrics = {"logistic regression": report(
        "logistic regression", score, test_y, customers, time.perf_counter() - started
    )}  # fmt: skip

    started = time.perf_counter()
    options = {
        "objective": "binary",
        "learning_rate": 0.1,
        "num_leaves": 127,
        "min_data_in_leaf": 100,
        "verbose": -1,
        "num_threads": arguments.threads,
        "seed": 0,
    }
    categories = list(range(numbers, train_X.shape[1]))
    data = lgb.Dataset(train_X, train_y, categorical_feature=categories)
    model = lgb.train(
        options,
        data,
        num_boost_round=500,
        valid_sets=[lgb.Dataset(valid_X, valid_y, reference=data)],
        callbacks=[lgb.early_stopping(20, verbose=False)],
    )
    metrics["LightGBM"] = report(
        f"LightGBM, {model.best_iteration} trees",
        model.predict(test_X),
        test_y,
        customers,
        time.perf_counter() - started,
    )
    (arguments.out / "peers.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"\n{table(arguments.out, metrics)}")


if __name__ == "__main__":
    main()
