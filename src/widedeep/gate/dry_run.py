"""Dry run: a bundle is loaded in a fresh process, replays its warm-up rows, and is timed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from widedeep.bundle import Bundle
from widedeep.errors import WideDeepError

REQUEST_ROWS = 100
_REQUESTS = 30
_TIMEOUT_S = 600
TOLERANCE = 1e-6
_PREFIX = "widedeep dry run: "


def dry_run(bundle: Path) -> dict[str, Any]:
    """Load a bundle in a fresh process, score the rows stored with it, and measure."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.run(
            [sys.executable, "-m", "widedeep.gate.dry_run", str(bundle)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {_TIMEOUT_S} s"}
    for line in process.stdout.splitlines():
        if line.startswith(_PREFIX):
            measured: dict[str, Any] = json.loads(line.removeprefix(_PREFIX))
            return measured
    last = (process.stderr.strip().splitlines() or ["no output"])[-1]
    return {"error": f"its process ended with code {process.returncode}: {last}"}


def _measure(path: str) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        bundle = Bundle.load(path)
    except (WideDeepError, OSError) as error:
        return {"error": str(error)}
    measured: dict[str, Any] = {"error": None, "load_s": time.perf_counter() - started}
    rows = bundle.warmup.rows
    measured["rows"] = len(rows)
    if rows:
        by_head = bundle.scores_by_head(bundle.row_logits(rows))
        if by_head.keys() != bundle.warmup.scores.keys():
            return {"error": f"{path}: not every head's scores are stored with it; export it again"}
        differences = [
            np.abs(by_head[head] - np.asarray(stored, np.float64)) / np.maximum(1.0, np.abs(stored))
            for head, stored in bundle.warmup.scores.items()
        ]
        finite = all(bool(np.isfinite(scores_B).all()) for scores_B in by_head.values())
        measured["finite"] = finite
        measured["worst"] = float(np.max([d.max() for d in differences])) if finite else None
        request = [rows[index % len(rows)] for index in range(REQUEST_ROWS)]
        times = []
        for _ in range(_REQUESTS):
            started = time.perf_counter()
            bundle.score(request)
            times.append(1000.0 * (time.perf_counter() - started))
        median, p99 = np.quantile(times, [0.5, 0.99]).tolist()
        measured |= {"latency_ms": median, "latency_p99_ms": p99}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    measured["memory_mb"] = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return measured


if __name__ == "__main__":
    print(_PREFIX + json.dumps(_measure(sys.argv[1])))
