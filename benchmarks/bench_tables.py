"""Bundles with tables in bf16, int8 and int4 beside float32: memory, speed and quality.

Memory: the resident bytes of the mapped weights in a process of its own per kind, once every row
was read. Speed: requests of 200 rows with ids drawn evenly from all values, by CPU time on one
thread; the kinds take turns, and each ratio is that of medians. Quality: test AUC and log loss of
the rounded bundle less those of its float32, on UCI Adult by seed and on `criteo_like.py`. Error:
what rounding moves in trained tables, as a fraction of their root mean square, beside that of a
format with a step and an offset in two bytes each.

    python benchmarks/bench_tables.py [--seeds 5] [--rows 300000] [--turns 300] [--write]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_bf16 import Task, adult, click_log
from results_file import machine, write_section

import widedeep as wd
from widedeep import _native
from widedeep.bundle import Bundle
from widedeep.bundle.write import round_bundle
from widedeep.evaluation.bundle_metrics import evaluate_bundle
from widedeep.kernels.packed_rows import PackedKind, PackedTable
from widedeep.kernels.score import from_bfloat16, to_bfloat16

KINDS: tuple[PackedKind, ...] = ("bf16", "int8", "int4")
ALL = ("fp32", *KINDS)
WIDTHS = (8, 16, 32, 64)
FIELDS = 20
REQUEST = 200
SMAPS = """
import sys
from pathlib import Path
import numpy as np
import widedeep as wd
bundle = wd.Bundle.load(sys.argv[1], verify=False)
values, fields = (int(text) for text in sys.argv[2:])
for start in range(0, values, 10_000):
    rows = [{f"c{i}": v for i in range(fields)} for v in range(start, min(start + 10_000, values))]
    bundle.score(rows)
own = resident = 0
for line in Path("/proc/self/smaps").read_text().splitlines():
    if "-" in line.split()[0]:
        own = line.endswith("weights.safetensors")
    elif own and line.startswith("Rss:"):
        resident += int(line.split()[1]) * 1024
print(resident)
"""


def table_model(values: int, width: int, hidden: tuple[int, ...]) -> wd.WideDeep:
    """A model whose weights are nearly all in tables of embeddings."""
    names = [f"c{i}" for i in range(FIELDS)]
    features = wd.categorical(*names, num_buckets=values)
    spec = wd.FeatureSpec(label="y", features=features, wide=[])
    schema = wd.fit_schema(spec, [{**dict.fromkeys(names, 0), "y": 0}])
    return wd.WideDeep(schema, hidden_units=hidden, embedding_dim=width)


def rounded(bundle: Bundle, folder: Path) -> dict[str, Bundle]:
    """The bundle in each kind of numbers."""
    return {
        "fp32": bundle,
        **{kind: round_bundle(bundle, folder / kind, kind, overwrite=True) for kind in KINDS},
    }


def memory_lines(folder: Path) -> Iterator[str]:
    """Yield a table of resident bytes by width."""
    values = 20_000
    yield "| numbers per row | fp32, MB | " + " | ".join(KINDS) + " |"
    yield "|---" * (2 + len(KINDS)) + "|"
    for width in WIDTHS:
        trainer = wd.Trainer(table_model(values, width, (4,)), progress=False)
        bundles = rounded(trainer.export(folder / "fp32", overwrite=True), folder)
        resident = {}
        for kind, bundle in bundles.items():
            command = [sys.executable, "-c", SMAPS, str(bundle.path), str(values), str(FIELDS)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            resident[kind] = int(output)
        cells = [f"{resident[kind] / resident['fp32']:.3f}" for kind in KINDS]
        yield f"| {width} | {resident['fp32'] / 1e6:.1f} | " + " | ".join(cells) + " |"


def in_turns(engines: dict[str, Callable[[int], object]], turns: int) -> dict[str, float]:
    """Return the median CPU time of each, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(turns + 3):
        for name, run in engines.items():
            start = time.process_time()
            run(turn)
            if turn >= 3:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: median(several) for name, several in times.items()}


def gather(table: NDArray[np.float32] | PackedTable, fields: int) -> _native.Scorer:
    """A scorer that only gathers rows, of one table for all fields."""
    scorer = _native.Scorer(fields, 0, 1)
    for field in range(fields):
        scorer.add_embedding(field, table, "sum")
    return scorer


def speed_lines(folder: Path, turns: int) -> Iterator[str]:
    """Yield a table of speeds, float32's time over each kind's."""
    yield "| | values per field | numbers per row | fp32, ms | " + " | ".join(KINDS) + " |"
    yield "|---" * (4 + len(KINDS)) + "|"
    rng, dense_BK = np.random.default_rng(0), np.zeros((REQUEST, 0), np.float32)
    offsets = np.arange(REQUEST * FIELDS + 1)
    for values in (10_000, 200_000):
        ids = [rng.integers(0, values, REQUEST * FIELDS) for _ in range(50)]
        for width, hidden in ((16, (256, 128)), (32, (1024, 512, 256))):
            trainer = wd.Trainer(table_model(values, width, hidden), progress=False)
            bundles = rounded(trainer.export(folder / "fp32", overwrite=True), folder)
            batches = [
                bundles["fp32"].encode(
                    [
                        {f"c{i}": int(v) for i, v in enumerate(row)}
                        for row in some.reshape(REQUEST, FIELDS)
                    ]
                )
                for some in ids
            ]

            def scores(bundle: Bundle, batches: list[Any] = batches) -> Callable[[int], object]:
                return lambda turn: bundle.logits(batches[turn % len(batches)])

            def rows(table: Any, ids: list[Any] = ids) -> Callable[[int], object]:
                scorer = gather(table, FIELDS)
                return lambda turn: scorer.concat(
                    ids[turn % len(ids)], offsets, None, dense_BK, threads=1
                )

            table = np.ascontiguousarray(bundles["fp32"].weights["table/c0"])
            tables = {"fp32": table, **{k: PackedTable.pack(table, k) for k in KINDS}}
            whole = {kind: scores(bundle) for kind, bundle in bundles.items()}
            alone = {kind: rows(one) for kind, one in tables.items()}
            towers = "-".join(map(str, hidden))
            for title, engines in ((f"scores, tower {towers}", whole), ("gather alone", alone)):
                times = in_turns(engines, turns)
                cells = " | ".join(f"{times['fp32'] / times[kind]:.2f}" for kind in KINDS)
                yield f"| {title} | {values:,} | {width} | {times['fp32']:.3f} | {cells} |"


def with_offset(table_RD: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """Round to a grid from a row's least to its largest number, both ends in bfloat16."""
    least, most = table_RD.min(axis=1, keepdims=True), table_RD.max(axis=1, keepdims=True)
    least = from_bfloat16(to_bfloat16(least))
    step = from_bfloat16(to_bfloat16((most - least) / (levels - 1)))
    steps = np.divide(table_RD - least, step, out=np.zeros_like(table_RD), where=step > 0)
    return np.clip(np.rint(steps), 0, levels - 1) * step + least


def relative_error(
    bundle: Bundle, rounding: Callable[[NDArray[np.float32]], NDArray[Any]]
) -> float:
    """Root mean square of what rounding moves in all tables, as a fraction of their own."""
    tables = [np.asarray(a) for name, a in bundle.weights.items() if name.startswith("table/")]
    moved = sum(float(((rounding(t).astype(np.float64) - t) ** 2).sum()) for t in tables)
    return float(np.sqrt(moved / sum(float((t.astype(np.float64) ** 2).sum()) for t in tables)))


def quality_lines(task: Task, seeds: int, folder: Path) -> Iterator[str]:
    """Yield tables of quality and of errors."""
    schema = wd.fit_schema(task.spec, task.train)
    changes: dict[tuple[str, str], list[float]] = {}
    errors: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {"auc": [], "log_loss": []}
    for seed in range(seeds):
        model = wd.WideDeep(schema, seed=seed)
        trainer = wd.Trainer(
            model, batch_size=task.batch_size, seed=seed, threads=1, progress=False
        )
        trainer.fit(task.train, epochs=task.epochs)
        bundles = rounded(trainer.export(folder / "fp32", overwrite=True), folder)
        metrics = {kind: evaluate_bundle(bundle, task.test) for kind, bundle in bundles.items()}
        for metric, values in own.items():
            values.append(metrics["fp32"][metric])
            for kind in KINDS:
                change = metrics[kind][metric] - metrics["fp32"][metric]
                changes.setdefault((kind, metric), []).append(change)
        for kind in KINDS:
            error = relative_error(bundles["fp32"], lambda t, k=kind: PackedTable.pack(t, k)[:])
            errors.setdefault(kind, []).append(error)
        for name, levels in (("int8", 256), ("int4", 16)):
            error = relative_error(bundles["fp32"], lambda t, n=levels: with_offset(t, n))
            errors.setdefault(f"{name} offset", []).append(error)
    yield f"**{task.name}**, {seeds} seed(s): fp32 " + ", ".join(
        f"{metric} {mean(values):.5f}" + (f" ± {stdev(values):.5f}" if seeds > 1 else "")
        for metric, values in own.items()
    )
    yield "\n| tables | AUC, change | log loss, change | error | with offsets |"
    yield "|---|---|---|---|---|"
    for kind in KINDS:
        cells = []
        for metric in own:
            several = changes[kind, metric]
            spread = f" ± {stdev(several):.1e}" if seeds > 1 else ""
            cells.append(f"{mean(several):+.1e}{spread}")
        offset = errors.get(f"{kind} offset")
        cells += [f"{mean(errors[kind]):.4f}", "" if offset is None else f"{mean(offset):.4f}"]
        yield f"| {kind} | " + " | ".join(cells) + " |"
    yield ""


def main() -> None:
    """Run the benchmark, and write its section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--write", action="store_true", help="into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    lines = [
        "## Tables of bundles in fewer bytes\n",
        f"`python benchmarks/bench_tables.py --seeds {arguments.seeds} --rows {arguments.rows}`, "
        f"{machine()}, {_native.isa()}.\n",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns, seeds = arguments.turns, arguments.seeds
        parts = (
            ("Resident bytes of the mapped weights, of float32's:\n", memory_lines(folder)),
            (
                "\nfloat32's CPU time over each kind's (above 1: faster):\n",
                speed_lines(folder, turns),
            ),
            ("\nQuality, and the error of rows:\n", quality_lines(adult(), seeds, folder)),
            ("", quality_lines(click_log(arguments.rows), 1, folder)),
        )
        for title, part in parts:
            print(title, flush=True)
            lines.append(title)
            for line in part:
                print(line, flush=True)
                lines.append(line)
    if arguments.write:
        write_section("bundles:tables", "\n".join(lines))


if __name__ == "__main__":
    main()
