"""A bundle tried in a process of its own: it loads, answers as it did at export, fast enough."""

from __future__ import annotations

import json
import math
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
from widedeep.gate.config import GateConfig

_REQUEST_ROWS = 100
_REQUESTS = 30
_TIMEOUT_S = 600
_TOLERANCE = 1e-6
_MARK = "widedeep dry run: "


def dry_run(bundle: Path) -> dict[str, Any]:
    """Load a bundle in a fresh process, score the rows stored with it, and measure."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "widedeep.gate.dry_run", str(bundle)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it did not end within {_TIMEOUT_S} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return {"error": f"its process ended with code {done.returncode}: {last}"}


def dry_run_reasons(found: dict[str, Any], config: GateConfig) -> tuple[list[str], list[str]]:
    """Return why a dry run is not good enough, in plain words, and what to know besides."""
    if found["error"] is not None:
        return [f"dry run: {found['error']}"], []
    reasons, notes = [], []
    if not found["rows"]:
        told = "dry run: the bundle holds no rows to replay; it was only loaded"
        if math.isfinite(config.max_latency_ms):
            reasons.append(
                f"{told}, so its scores and its latency cannot be judged: export it with rows "
                "(warmup), or set max_latency_ms = inf"
            )
        else:
            notes.append(told)
    elif not found["finite"]:
        reasons.append("dry run: a score is NaN or infinite")
    elif not found["worst"] <= _TOLERANCE:
        reasons.append(
            f"dry run: scores differ by up to {found['worst']:.2g} from those stored at export, "
            f"allowed {_TOLERANCE:g}; export the model with this version"
        )
    for key, told, unit in (
        ("latency_ms", f"scoring {_REQUEST_ROWS} rows takes", "ms"),
        ("memory_mb", "the process holds", "MB"),
        ("load_s", "loading takes", "s"),
    ):
        limit = getattr(config, f"max_{key}")
        if limit is not None and key in found and not found[key] <= limit:
            reasons.append(
                f"dry run: {told} {found[key]:.4g} {unit}, allowed {limit:g} (max_{key})"
            )
    return reasons, notes


def _measure(path: str) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        bundle = Bundle.load(path)
    except (WideDeepError, OSError) as error:
        return {"error": str(error)}
    found: dict[str, Any] = {"error": None, "load_s": time.perf_counter() - started}
    rows = bundle.warmup.rows
    found["rows"] = len(rows)
    if rows:
        scores = bundle.score(rows)
        by_head = scores if isinstance(scores, dict) else {bundle.model.heads[0].name: scores}
        if by_head.keys() != bundle.warmup.scores.keys():
            return {"error": f"{path}: not every head's scores are stored with it; export it again"}
        worst = [
            np.abs(by_head[head] - np.asarray(stored, np.float64)) / np.maximum(1.0, np.abs(stored))
            for head, stored in bundle.warmup.scores.items()
        ]
        found["finite"] = all(bool(np.isfinite(part).all()) for part in by_head.values())
        found["worst"] = float(np.max([p.max() for p in worst])) if found["finite"] else None
        request = [rows[at % len(rows)] for at in range(_REQUEST_ROWS)]
        times = []
        for _ in range(_REQUESTS):
            started = time.perf_counter()
            bundle.score(request)
            times.append(1000.0 * (time.perf_counter() - started))
        found["latency_ms"], found["latency_p99_ms"] = np.quantile(times, [0.5, 0.99]).tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["memory_mb"] = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return found


if __name__ == "__main__":
    print(_MARK + json.dumps(_measure(sys.argv[1])))
