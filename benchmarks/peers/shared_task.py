"""What every peer's script has in common: the rows, the clock, and the one line it prints.

A peer reads the Parquet file as text and numbers, prepares its input in whatever way it offers,
learns one pass, and is judged on the file's last rows. Only the standard library, NumPy, PyArrow
and scikit-learn are needed, so that the module runs in every peer's environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import log_loss, roc_auc_score

NUMBERS = [f"I{i}" for i in range(1, 14)]
WORDS = [f"C{i}" for i in range(1, 27)]
CROSSES = {
    "planted": [("C5", "C8"), ("C1", "C14"), ("C19", "C2")],
    "wrong": [("C6", "C9"), ("C7", "C17"), ("C23", "C25")],
    "none": [],
}
REQUEST_ROWS = 200
REQUESTS = 20


def arguments(description: str | None, batch: int = 2048) -> argparse.ArgumentParser:
    """Return the options that all peers share.

    Args:
        description: The script's docstring.
        batch: Its default batch size.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", help="a file that criteo_like.py wrote")
    parser.add_argument("--train-rows", type=int, default=400_000)
    parser.add_argument("--test-rows", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--crosses", choices=CROSSES, default="planted")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def read_rows(asked: argparse.Namespace) -> tuple[pa.Table, pa.Table]:
    """Return the first rows, to learn, and the last, to be judged on."""
    table = pq.read_table(asked.data, columns=["label", *NUMBERS, *WORDS])
    last = min(asked.test_rows, table.num_rows - asked.train_rows)
    return table.slice(0, asked.train_rows), table.slice(table.num_rows - last)


def labels_of(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the labels, 0 or 1."""
    return table["label"].to_numpy().astype(np.float32)


def request_of(table: pa.Table, number: int) -> pa.Table:
    """Return the rows of one request."""
    return table.slice(number * REQUEST_ROWS, REQUEST_ROWS)


def latency_ms(score: Callable[[int], object]) -> float:
    """Return the median time of a request of 200 raw rows.

    Args:
        score: Called with the request's number; from raw rows to probabilities.
    """
    times = []
    for number in range(REQUESTS):
        start = time.perf_counter()
        score(number)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


def report(
    package: str,
    *,
    table: pa.Table,
    probabilities: Any,
    prepare_s: float,
    train_s: float,
    train_rows: int,
    latency: float | None,
    version: str | None = None,
    note: str = "",
) -> None:
    """Print one line of JSON.

    Args:
        package: Distribution that was run.
        table: The judged rows.
        probabilities: Of them.
        prepare_s: From raw columns to the peer's input, for the training rows.
        train_s: One pass over ``train_rows`` prepared rows.
        train_rows: Rows learned.
        latency: Milliseconds of a request, or None.
        version: Of the package; None asks its installation.
        note: What a reader should know.
    """
    labels = labels_of(table)
    clipped = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    found = {
        "peer": package,
        "version": version or importlib.metadata.version(package),
        "rows": train_rows,
        "prepare_s": round(prepare_s, 2),
        "train_s": round(train_s, 2),
        "rows_per_s": round(train_rows / train_s),
        "rows_per_s_from_text": round(train_rows / (prepare_s + train_s)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "auc": round(float(roc_auc_score(labels, clipped)), 4),
        "log_loss": round(float(log_loss(labels, clipped)), 4),
        "latency_ms": None if latency is None else round(latency, 2),
        "note": note,
    }
    print(json.dumps(found), flush=True)
