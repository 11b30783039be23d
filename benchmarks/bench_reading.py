"""Reading beside training: an epoch from a file of strings and from encoded rows, CSV, and the fit.

Epochs take turns in one process; medians are printed. An epoch in memory trains on batches that are
encoded already. What reading may cost at least is told by processor time, which other programs on
the machine hardly change: where training keeps all cores busy, its rate beside reading is at most
T / (T + R) of that in memory, with T and R the processor time of training and of reading a row.

    python benchmarks/bench_reading.py [--rows 200000] [--turns 5] [--threads 2] [--csv] [--write]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

# Before torch: it says how long torch's threads spin.
import widedeep as wd

# isort: split
import criteo_like
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch
from results_file import machine, write_section

from widedeep.data.column_values import Chunk, read_numbers
from widedeep.data.counting import ValueCounter
from widedeep.data.encoded import EncodedRows
from widedeep.data.fit import declared_types
from widedeep.data.fragments import Source
from widedeep.data.reader import BatchReader, EpochPlan
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform
from widedeep.features.numbers import NumberSummary

NUMBERS = [f"I{i}" for i in range(1, 14)]
TEXTS = [f"C{i}" for i in range(1, 27)]
CROSSES = (("C5", "C8"), ("C1", "C14"), ("C19", "C2"))
BATCH_ROWS = 2048


def cost(call: Callable[[], object]) -> tuple[float, float]:
    """Return a call's seconds, and those of processors."""
    started, started_cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - started, time.process_time() - started_cpu


def fit_parts(path: str) -> tuple[dict[str, float], int]:
    """Return processor time of what `fit_schema` cannot do without, and entries of dictionaries."""
    spent, n_entries = Counter[str](), 0
    with pq.ParquetFile(path, read_dictionary=TEXTS, pre_buffer=False) as file:
        for name in ["label", *NUMBERS, *TEXTS]:
            with ValueCounter() as counter:
                for group in range(file.num_row_groups):
                    read = partial(file.read_row_group, group, columns=[name], use_threads=False)
                    chunks: list[pa.Table] = []
                    spent["Arrow's decoding"] += cost(lambda: chunks.append(read()))[1]  # noqa: B023
                    (array,) = chunks[0].column(0).chunks
                    if name in TEXTS:
                        n_entries += len(array.dictionary)
                        spent["counting values"] += cost(partial(counter.add, array))[1]
                    elif name in NUMBERS:
                        numbers = read_numbers(Chunk(array, path, 0), name)
                        add = NumberSummary(()).add
                        spent["adding numbers up"] += cost(partial(add, numbers))[1]
                spent["ranking values"] += cost(counter.result)[1]
    return dict(spent), n_entries


def bench_fit(path: str, rows: int, turns: int) -> str:
    """Return what `fit_schema` costs without crosses, and what a floor of it is made of."""
    spec = wd.FeatureSpec(label="label", features=[*wd.numeric(*NUMBERS), *wd.categorical(*TEXTS)])
    whole, parts = [], []
    for _ in range(turns):
        whole.append(cost(lambda: wd.fit_schema(spec, path))[1] / rows * 1e9)
        spent, n_entries = fit_parts(path)
        parts.append(spent)
    cpu = {name: median(spent[name] for spent in parts) / rows * 1e9 for name in parts[0]}
    shown = ", ".join(f"{name} {each:,.0f}" for name, each in cpu.items())
    return (
        f"`fit_schema` on {rows:,} rows (26 strings, 13 numbers): {1e3 / median(whole):.2f}M rows "
        f"per second of a processor, {median(whole):,.0f} ns a row. Each by itself takes, in ns a "
        f"row: {shown}; together {sum(cpu.values()):,.0f}. The row groups' dictionaries hold "
        f"{n_entries:,} entries. Arrow hashes each of them when it decodes a page, and the count "
        "once more; that, and the order of the values, is what 2M rows a second (500 ns a row) "
        "are missed by. Pages read without Arrow would spare its table of entries alone."
    )


def column_bytes(path: str) -> int:
    """Return the bytes of the columns that are read."""
    metadata, names = pq.read_metadata(path), {"label", *NUMBERS, *TEXTS}
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema in names)


def write_csv(path: str, csv: str) -> None:
    """Write the columns that are read as CSV."""
    table = pq.read_table(path, columns=["label", *NUMBERS, *TEXTS])
    pacsv.write_csv(table, csv, pacsv.WriteOptions(quoting_style="none"))


def arrow_read(csv: str, types: dict[str, pa.DataType]) -> pa.Table:
    """Read a CSV file through Arrow, on this thread."""
    return pacsv.read_csv(
        csv,
        read_options=pacsv.ReadOptions(use_threads=False),
        convert_options=pacsv.ConvertOptions(column_types=types),
    )


def bench_csv(path: str, csv: str, rows: int, turns: int) -> list[str]:
    """Return lines of a table: what it costs to read CSV, beside Arrow's reader."""
    spec = wd.FeatureSpec(label="label", features=[*wd.numeric(*NUMBERS), *wd.categorical(*TEXTS)])
    names, content = ["label", *NUMBERS, *TEXTS], Path(csv).read_bytes()
    kinds, text = declared_types(spec), pa.string()
    schema = wd.fit_schema(spec, csv)
    transform = Transform(schema)
    typed = dict.fromkeys(NUMBERS, pa.float64())

    def read_again(source: Source) -> int:
        return sum(source.read(fragment, names).num_rows for fragment in source.fragments)

    def fit_and_encode() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fitted, types = wd.fit_schema(spec, csv), schema.input_types()
            with open_source(csv, columns=transform.columns(), column_types=types) as source:
                EncodedRows.write(f"{folder}/encoded", Transform(fitted), source)

    with open_source(csv, columns=names, column_types=kinds) as opened:
        calls: dict[str, Callable[[], object]] = {
            "a copy in memory": lambda: bytearray(content),
            "Arrow, all columns text": lambda: arrow_read(csv, dict.fromkeys(names, text)),
            "Arrow, numbers parsed, text by dictionary": lambda: arrow_read(
                csv, dict.fromkeys(names, pa.dictionary(pa.int32(), text)) | typed
            ),
            "ours, types declared": lambda: open_source(
                csv, columns=names, column_types=kinds
            ).close(),
            "ours, types found out": lambda: open_source(csv, columns=names).close(),
            "ours, read again": lambda: read_again(opened),
            "`fit_schema` of CSV": lambda: wd.fit_schema(spec, csv),
            "`fit_schema` of Parquet": lambda: wd.fit_schema(spec, path),
            "`fit_schema` and encoding": fit_and_encode,
            "the same within `reuse_inputs`": wd.reuse_inputs()(fit_and_encode),
        }
        costs: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(turns + 1):
            for name, call in calls.items():
                costs[name].append(cost(call)[1])
    cpu = {name: median(each[1:]) / rows for name, each in costs.items()}
    whole = cpu["Arrow, all columns text"]
    return [f"| {name} | {each * 1e9:,.0f} | {each / whole:.2f} |" for name, each in cpu.items()]


def bench_epochs(path: str, rows: int, turns: int, threads: int) -> list[str]:
    """Return lines of a table: epochs in memory, from the file, from encoded rows."""
    spec = wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*NUMBERS),
            *wd.categorical(*TEXTS),
            *(wd.crossed(*parts) for parts in CROSSES),
        ],
    )
    schema = wd.fit_schema(spec, path)
    torch.set_num_threads(threads)
    trainer = wd.Trainer(
        wd.WideDeep(schema),
        batch_size=BATCH_ROWS,
        threads=threads,
        progress=False,
        pool_rows=65_536,
    )
    evaluator = trainer.evaluator
    pack = evaluator.packer([slot.size for slot in schema.slots])
    with evaluator.open(path, "the log") as source, tempfile.TemporaryDirectory() as folder:
        encoded = EncodedRows.write(f"{folder}/encoded", evaluator.transform, source)
        plan = EpochPlan(source, batch_size=BATCH_ROWS, seed=0, epoch=0, pool_rows=65_536)

        def reader(stored: bool) -> BatchReader:
            return BatchReader(source, pack, plan, encoded=encoded.read if stored else None)

        def train(batches: object) -> None:
            for batch in batches:  # type: ignore[attr-defined]
                trainer.step(batch)

        batches = list(reader(False))
        calls: dict[str, Callable[[], object]] = {
            "memory": lambda: train(batches),
            "file": lambda: train(reader(False)),
            "encoded": lambda: train(reader(True)),
            "reading the file": lambda: sum(len(batch) for batch in reader(False)),
            "reading encoded": lambda: sum(len(batch) for batch in reader(True)),
        }
        for call in calls.values():
            call()
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for _ in range(turns):
            for name, call in calls.items():
                costs[name].append(cost(call))
    wall = {name: median(seconds for seconds, _ in each) for name, each in costs.items()}
    cpu = {name: median(seconds for _, seconds in each) / rows for name, each in costs.items()}
    lines = [f"| batches in memory | {rows / wall['memory']:,.0f} | 100% | | | |"]
    for what, name, reading, size in (
        ("the file of strings", "file", "reading the file", column_bytes(path)),
        ("encoded rows", "encoded", "reading encoded", encoded.nbytes),
    ):
        floor = cpu["memory"] / (cpu["memory"] + cpu[reading])
        lines.append(
            f"| {what} | {rows / wall[name]:,.0f} | {wall['memory'] / wall[name]:.0%} | "
            f"{cpu[reading] * 1e9:,.0f} ns of {cpu['memory'] * 1e9:,.0f} | {floor:.1%} | "
            f"{size / rows:.0f} |"
        )
    return lines


def epochs_text(folder: str, arguments: argparse.Namespace, load: float) -> str:
    """Measure epochs and the fit; return what RESULTS.md says of them."""
    path, long = (str(Path(folder) / name) for name in ("rows.parquet", "long.parquet"))
    criteo_like.write(long, arguments.fit_rows)
    fit = bench_fit(long, arguments.fit_rows, arguments.turns)
    lines = bench_epochs(path, arguments.rows, arguments.turns, arguments.threads)
    return "\n".join(
        [
            f"`benchmarks/bench_reading.py` on {machine()}, {arguments.threads} threads, load of "
            f"the machine before: {load:.1f}. {arguments.rows:,} rows of `criteo_like.py`, medians "
            f"of {arguments.turns} turns. With a load above the number of processors the rates are "
            "those of what other programs left, and processor time is the figure to go by. Bytes "
            "of the file are those of the columns that are read.",
            "",
            "| epoch from | rows/s | of the rate in memory | processor time of reading a row | "
            "the rate at best, all cores busy | bytes a row |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            fit,
        ]
    )


def csv_text(folder: str, arguments: argparse.Namespace, load: float) -> str:
    """Measure reading CSV; return what RESULTS.md says of it."""
    path, csv = (str(Path(folder) / name) for name in ("rows.parquet", "rows.csv"))
    write_csv(path, csv)
    time.sleep(2.5)  # Files that were written just now are not kept
    lines = bench_csv(path, csv, arguments.rows, arguments.turns)
    return "\n".join(
        [
            f"`benchmarks/bench_reading.py --csv` on {machine()}, load of the machine before: "
            f"{load:.1f}. {arguments.rows:,} rows of `criteo_like.py` (a label, 13 numbers, 26 "
            f"texts), medians of {arguments.turns} turns of processor time.",
            "",
            "| | ns of a processor a row | of Arrow's reader, all columns text |",
            "|---|---|---|",
            *lines,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--fit-rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", action="store_true", help="measure reading CSV alone")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        criteo_like.write(str(Path(folder) / "rows.parquet"), arguments.rows)
        sections = {"reading:csv": ("Reading CSV", csv_text(folder, arguments, load))}
        if not arguments.csv:
            sections["reading"] = ("Reading beside training", epochs_text(folder, arguments, load))
    for section, (title, text) in sections.items():
        print(text, end="\n\n")
        if arguments.write:
            write_section(section, f"## {title}\n\n{text}")


if __name__ == "__main__":
    main()
