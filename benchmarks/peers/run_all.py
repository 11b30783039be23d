"""Runs every peer on the same rows, in turns, and writes their section of RESULTS.md.

    python benchmarks/peers/run_all.py [--train-rows 400000] [--repeats 3] [--only NAME ...]

Each peer runs in its own process and environment (`make bench-peers` makes them), on one thread,
one after the other, and the turns are repeated; the table shows medians, of processor time where it
is time. DeepCTR-Torch learns a number of batches alone, at two sizes of its tables, since a pass
would take an hour; pytorch-widedeep learns a quarter, since it prepares a few thousand a second.
Their quality is that of the rows they learned. Results are kept beside the rows (benchmarks/data),
so that a run goes on where an earlier one stopped; `--again` forgets them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from results_file import machine, write_section
from shared_task import NUMBERS, WORDS
from sweep_defaults import data_file

HERE = Path(__file__).resolve().parent
TEST_ROWS = 100_000
RUNS: dict[str, tuple[str, list[str]]] = {
    "widedeep": ("widedeep_itself", []),
    "widedeep, encoded": ("widedeep_itself", ["--encode"]),
    "widedeep, wide only": ("widedeep_itself", ["--wide-only"]),
    "widedeep, wide only, one by one": ("widedeep_itself", ["--wide-only", "--batch", "1"]),
    "Vowpal Wabbit": ("vowpal_wabbit", []),
    "Vowpal Wabbit, at equal quality": ("vowpal_wabbit", []),
    "scikit-learn's SGD": ("sklearn_sgd", []),
    "River": ("river_ftrl", []),
    "FuxiCTR, DCN-v2": ("fuxictr_dcn_v2", []),
    "TorchRec, DLRM": ("torchrec_dlrm", []),
    "TorchRec, DLRM with cross layers": ("torchrec_dlrm", ["--dcn"]),
    "tf.estimator": ("tf_estimator_dnn_linear", []),
    "pytorch-widedeep": ("pytorch_widedeep_tab", []),
    "DeepCTR-Torch, own ids": ("deepctr_torch_wdl", ["--batches", "60"]),
    "DeepCTR-Torch, 5.6M ids": ("deepctr_torch_wdl", ["--batches", "15", "--ids", "5600000"]),
    "LightGBM": ("lightgbm_trees", []),
    "CatBoost": ("catboost_trees", []),
}
ONE_BY_ONE = "widedeep, wide only, one by one"
# Which of our rows a peer is set against; the wide and deep model where none is named.
AGAINST = {
    "Vowpal Wabbit": ONE_BY_ONE,
    "Vowpal Wabbit, at equal quality": ONE_BY_ONE,
    "scikit-learn's SGD": ONE_BY_ONE,
    "River": ONE_BY_ONE,
}
# Of the rows to learn, where a peer does not take just these: the one prepares few a second, and
# the other needs that many to be as good as our wide part.
SHARES = {"pytorch-widedeep": 0.25, "Vowpal Wabbit, at equal quality": 2.25}
NOT_RUN = (
    "TorchEasyRec: not run. It is on no package index: its releases, and pinned builds of what it "
    "needs (pyfg, graphlearn, FBGEMM), lie in its vendor's bucket."
)
ONE_THREAD = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "POLARS_MAX")
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


def csv_files(rows: int) -> list[Path]:
    """Return the rows to learn and to be judged on as text, written on the first call."""
    data = data_file(0)
    names = [f"{data.stem}_first_{rows}.csv", f"{data.stem}_last_{TEST_ROWS}.csv"]
    paths = [data.with_name(name) for name in names]
    if not all(path.exists() for path in paths):
        table = pq.read_table(data, columns=["label", *NUMBERS, *WORDS])
        last = table.slice(table.num_rows - TEST_ROWS)
        for path, part in zip(paths, (table.slice(0, rows), last), strict=True):
            pyarrow.csv.write_csv(part, path, pyarrow.csv.WriteOptions(quoting_style="none"))
    return paths


def run_once(name: str, asked: argparse.Namespace) -> dict[str, Any] | str:
    """Run a peer; return what it printed, or why it did not."""
    script, options = RUNS[name]
    python = python_of(script)
    if not python.exists():
        return f"no environment: run: make peers-{script}"
    files = csv_files(round(asked.train_rows * SHARES.get(name, 1)))
    command = [python, HERE / f"{script}.py", *files, "--batch", str(asked.batch), *options]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=asked.limit,
            env=os.environ | ONE_THREAD,
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


def section(
    found: dict[str, list[dict[str, Any]]], failed: dict[str, str], asked: argparse.Namespace
) -> str:
    """Return the section's Markdown."""
    turns = max(map(len, found.values()), default=0)
    lines = [
        "## Peers: from raw text to a judged model",
        "",
        f"`make bench-peers` on {machine()}. {asked.train_rows:,} rows of `criteo_like.py` "
        "(salt 0) to learn unless the table says otherwise, the last 100,000 to be judged on; "
        "batches of 2,048 where a peer has batches. One thread each, processor time; "
        + ("one run of each. " if turns < 2 else f"medians of {turns} interleaved runs. ")
        + "Everybody starts from one CSV file; rates from text count reading, preparation and "
        "training. Everybody is told the three crosses."
        + (" The machine was loaded by other work." if asked.loaded else ""),
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
    left_out = [name for name in RUNS if name not in found and name not in failed]
    lines.extend(f"- {name}: not run this time." for name in left_out)
    lines.append(f"- {NOT_RUN}")
    lines.extend(ratios(medians))
    return "\n".join(lines)


COMPARED = {
    "rate from text": lambda own, row: own["rows_per_s_from_text"] / row["rows_per_s_from_text"],
    "of training, ours encodes too": lambda own, row: own["rows_per_s"] / row["rows_per_s"],
    "their memory": lambda own, row: row["peak_mb"] / own["peak_mb"],
    "their latency": lambda own, row: (row["latency_ms"] or math.nan) / own["latency_ms"],
    "their log loss": lambda own, row: row["log_loss"] / own["log_loss"],
}


def ratios(medians: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that set our rates and quality against the peers', losses by name."""
    lines, ahead = [], []
    encoded = medians.get("widedeep, encoded")
    for name, row in medians.items():
        own = medians.get(AGAINST.get(name, "widedeep"))
        if name.startswith("widedeep") or own is None:
            continue
        cells = {title: compare(own, row) for title, compare in COMPARED.items()}
        if won := [title for title, ratio in cells.items() if ratio < 1]:
            ahead.append(f"{name} ({', '.join(won)})")
        alone = math.nan if name in AGAINST or encoded is None else encoded["rows_per_s"]
        cells["of training alone, ours encoded beforehand"] = alone / row["rows_per_s"]
        texts = ["-" if math.isnan(ratio) else f"{ratio:#.4g}" for ratio in cells.values()]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    if not lines:
        return []
    titles = [*COMPARED, "of training alone, ours encoded beforehand"]
    return [
        "",
        "How often ours is ahead, in this run; peers that learn a wide part alone stand against "
        f"ours that does, one by one. Ahead of ours are: {'; '.join(ahead) or 'none'}."
        + equal_quality(medians),
        "",
        f"| | {' | '.join(titles)} |",
        "|---" * (1 + len(titles)) + "|",
        *lines,
    ]


def equal_quality(medians: dict[str, dict[str, Any]]) -> str:
    """Return the sentence on what it takes to be as good as our wide part."""
    own, row = medians.get(ONE_BY_ONE), medians.get("Vowpal Wabbit, at equal quality")
    if own is None or row is None:
        return ""
    times = [found["prepare_s"] + found["train_s"] for found in (row, own)]
    return (
        f" From {row['rows'] / own['rows']:.2f} times the rows Vowpal Wabbit is as good as our "
        f"wide part, in {times[0] / times[1]:.1f} times the processor time."
    )


def main() -> None:
    """Run the peers in turns and write their section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-rows", type=int, default=400_000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=900, help="seconds a peer may take")
    parser.add_argument("--again", action="store_true", help="forget the runs of before")
    parser.add_argument("--loaded", action="store_true", help="say that the machine was")
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    asked = parser.parse_args()
    kept = data_file(0).with_name(f"peers_{asked.train_rows}.jsonl")
    if asked.again:
        kept.unlink(missing_ok=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    failed: dict[str, str] = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ():
        name, result = json.loads(line)
        found[name].append(result)
    for turn in range(asked.repeats):
        for name in asked.only:
            if len(found[name]) > turn:
                continue
            result = run_once(name, asked)
            print(f"{name}: {result}", flush=True)
            if isinstance(result, str):
                failed[name] = result
                continue
            found[name].append(result)
            with kept.open("a", encoding="utf-8") as out:
                out.write(json.dumps([name, result]) + "\n")
    write_section("training:peers", section({k: v for k, v in found.items() if v}, failed, asked))


if __name__ == "__main__":
    main()
