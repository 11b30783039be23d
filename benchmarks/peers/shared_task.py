"""What every peer's script has in common: the rows, the clock, and the one line it prints.

A peer reads a CSV file, prepares its input in whatever way it offers, learns one pass, and is
judged on a second file. Times are processor seconds of all threads, so that a busy machine takes
nothing away. Only the standard library, NumPy, PyArrow and scikit-learn are needed, so that the
module runs in every peer's environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from sklearn.metrics import log_loss, roc_auc_score

NUMBERS = [f"I{i}" for i in range(1, 14)]
WORDS = [f"C{i}" for i in range(1, 27)]
CROSSES = {
    "planted": [("C5", "C8"), ("C1", "C14"), ("C19", "C2")],
    "wrong": [("C6", "C9"), ("C7", "C17"), ("C23", "C25")],
    "none": [],
}
TYPES = (
    {"label": pa.int8()} | dict.fromkeys(NUMBERS, pa.float32()) | dict.fromkeys(WORDS, pa.utf8())
)
REQUEST_ROWS = 200
REQUESTS = 20
SLICE_ROWS = 50_000


def arguments(description: str | None, batch: int = 2048) -> argparse.ArgumentParser:
    """Return the options that all peers share.

    Args:
        description: The script's docstring.
        batch: Its default batch size.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("train", type=Path, help="CSV of the rows to learn; run_all.py writes it")
    parser.add_argument("test", type=Path, help="CSV of the rows to be judged on")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--crosses", choices=CROSSES, default="planted")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def read_rows(path: Path) -> pa.Table:
    """Return the rows of a CSV file: a label, numbers with nulls, and text."""
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=TYPES),
    )


def slices_of(table: pa.Table) -> Iterator[pa.Table]:
    """Return the rows a part at a time, for peers that make Python objects of them."""
    return (table.slice(at, SLICE_ROWS) for at in range(0, table.num_rows, SLICE_ROWS))


def labels_of(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the labels, 0 or 1."""
    return table["label"].to_numpy().astype(np.float32)


def numbers_of(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the numbers, (B, 13), NaN where missing."""
    return np.stack([table[n].to_numpy(zero_copy_only=False) for n in NUMBERS], axis=1)


def request_of(table: pa.Table, number: int) -> pa.Table:
    """Return the rows of one request."""
    return table.slice(number * REQUEST_ROWS, REQUEST_ROWS)


def latency_ms(score: Callable[[int], object]) -> float:
    """Return the median processor time of a request of 200 raw rows.

    Args:
        score: Called with the request's number; from raw rows to probabilities.
    """
    times = []
    for number in range(REQUESTS):
        start = time.process_time()
        score(number)
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times[2:])


def peak_mb() -> int:
    """Return the most memory that this process had resident."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


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
        prepare_s: Processor seconds from the CSV file to the peer's input.
        train_s: Processor seconds of one pass over ``train_rows`` prepared rows.
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
        "peak_mb": peak_mb(),
        "auc": round(float(roc_auc_score(labels, clipped)), 4),
        "log_loss": round(float(log_loss(labels, clipped)), 4),
        "latency_ms": None if latency is None else round(latency, 2),
        "note": note,
    }
    print(json.dumps(found), flush=True)
