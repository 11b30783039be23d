"""Runs every peer on the same rows, in turns, and writes their section of RESULTS.md.

    python benchmarks/peers/run_all.py [--train-rows 400000] [--repeats 3] [--only NAME ...]

Each peer runs in its own process and environment (`make bench-peers` makes them), one after the
other, and the turns are repeated; the table shows medians. DeepCTR-Torch learns a number of batches
alone, at two sizes of its tables, since a pass would take an hour; pytorch-widedeep learns 100,000
rows, since it prepares a few thousand a second. Their quality is that of the rows they learned.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results_file import machine, write_section
from sweep_defaults import data_file

HERE = Path(__file__).resolve().parent
RUNS: dict[str, tuple[str, list[str]]] = {
    "widedeep": ("widedeep_itself", []),
    "widedeep, encoded": ("widedeep_itself", ["--encode"]),
    "widedeep, wide only": ("widedeep_itself", ["--wide-only"]),
    "Vowpal Wabbit (wide only)": ("vowpal_wabbit", []),
    "tf.estimator 2.15": ("tf_estimator_dnn_linear", []),
    "pytorch-widedeep": ("pytorch_widedeep_tab", ["--train-rows", "100000"]),
    "DeepCTR-Torch, own ids": ("deepctr_torch_wdl", ["--batches", "60"]),
    "DeepCTR-Torch, 5.6M ids": ("deepctr_torch_wdl", ["--batches", "15", "--ids", "5600000"]),
    "LightGBM (trees)": ("lightgbm_trees", []),
}
SHOWN = {
    "rows": "rows learned",
    "prepare_s": "preparation, s",
    "rows_per_s": "rows/s, training",
    "rows_per_s_from_text": "rows/s from text",
    "peak_mb": "peak MB",
    "auc": "test AUC",
    "log_loss": "test log loss",
    "latency_ms": "200 rows, ms",
}


def python_of(script: str) -> Path:
    """Return the interpreter of a peer's environment; ours is the one that runs this."""
    own = HERE / f".venv-{script}" / "bin" / "python"
    return Path(sys.executable) if script == "widedeep_itself" else own


def run_once(name: str, data: Path, asked: argparse.Namespace) -> dict[str, Any] | str:
    """Run a peer; return what it printed, or why it did not."""
    script, options = RUNS[name]
    python = python_of(script)
    if not python.exists():
        return f"no environment: run: make peers-{script}"
    rows = ["--train-rows", str(asked.train_rows), "--batch", str(asked.batch)]
    command = [str(python), str(HERE / f"{script}.py"), str(data), *rows, *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=asked.limit, env=dict(os.environ)
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {asked.limit} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed without a word"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the numbers, and the words of the first run."""
    first = runs[0]
    return {
        key: statistics.median(run[key] for run in runs)
        if isinstance(value, int | float)
        else value
        for key, value in first.items()
    }


def shown(value: Any) -> str:
    """Return a cell's text."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def section(found: dict[str, list[dict[str, Any]]], failed: dict[str, str], rows: int) -> str:
    """Return the section's Markdown."""
    waiting = os.environ.get("OMP_WAIT_POLICY")
    lines = [
        "## Peers: from raw text to a judged model",
        "",
        f"`make bench-peers` on {machine()}. {rows:,} rows of `criteo_like.py` (salt 0) to learn "
        "unless the table says fewer, the last 100,000 to be judged on; batches of 2,048 where a "
        f"peer has batches; medians of {max(map(len, found.values()), default=0)} interleaved "
        "runs. Rates from text count preparation and training together."
        + (f" OMP_WAIT_POLICY={waiting} for all." if waiting else ""),
        "",
        f"| | version | {' | '.join(SHOWN.values())} |",
        f"|---|---|{'---|' * len(SHOWN)}",
    ]
    medians = {name: median_of(runs) for name, runs in found.items()}
    for name, row in medians.items():
        cells = " | ".join(
            f"{row[key]:.4f}" if key in ("auc", "log_loss") else shown(row[key]) for key in SHOWN
        )
        lines.append(f"| {name} | {row['version']} | {cells} |")
    lines.append("")
    lines.extend(f"- {name}: {row['note']}." for name, row in medians.items())
    lines.extend(f"- {name}: did not finish ({why})." for name, why in failed.items())
    lines.extend(ratios(medians))
    return "\n".join(lines)


def ratios(medians: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that set our rates against the peers'; a wide model against wide ones."""
    found = []
    for name, row in medians.items():
        if name.startswith("widedeep"):
            continue
        wide = "wide only" in name
        own = medians.get("widedeep, wide only" if wide else "widedeep")
        encoded = medians.get("widedeep, encoded")
        if own is None:
            continue
        cells = [f"{own[k] / row[k]:.1f}" for k in ("rows_per_s_from_text", "rows_per_s")]
        alone = (
            "-" if wide or encoded is None else f"{encoded['rows_per_s'] / row['rows_per_s']:.1f}"
        )
        found.append(f"| {name} | {' | '.join([*cells, alone])} |")
    if not found:
        return []
    head = "| | from text | training, ours encodes too | training alone, ours encoded beforehand |"
    return ["", "Our rate over theirs, in this run:", "", head, "|---|---|---|---|", *found]


def main() -> None:
    """Run the peers in turns and write their section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-rows", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=900, help="seconds a peer may take")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    asked = parser.parse_args()
    data = data_file(0)
    found: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}
    for _ in range(asked.repeats):
        for name in asked.only:
            result = run_once(name, data, asked)
            if isinstance(result, str):
                failed[name] = result
            else:
                found.setdefault(name, []).append(result)
            print(f"{name}: {result}", flush=True)
    write_section("training:peers", section(found, failed, asked.train_rows))


if __name__ == "__main__":
    main()
