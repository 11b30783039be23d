"""Speed of the transform: 26 text columns as plain strings and through dictionaries, and requests.

The columns have the cardinalities of the Criteo click log and Zipf-like frequencies. Every row of
the table carries 26 short strings; "model S" adds 13 numbers and 3 learned crosses. Medians of the
repeats are printed; rows per CPU-second tell more than rows per second on a busy machine.

    python benchmarks/bench_transform.py [--rows 500000] [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pyarrow as pa

import widedeep as wd
from widedeep.data.transform import Transform
from widedeep.schema import ColumnType, NumericFit, Schema, Vocabulary

CARDINALITIES = [
    *(1460, 583, 1_000_000, 800_000, 305, 24, 12517, 633, 3, 93145, 5683, 1_000_000, 3194, 27),
    *(14992, 1_000_000, 10, 5652, 2173, 4, 1_000_000, 18, 15, 286181, 105, 142572),
]
NUMBERS = [f"I{i + 1}" for i in range(13)]
TEXTS = [f"C{i + 1}" for i in range(26)]
CROSSES = [("C5", "C8"), ("C1", "C14"), ("C19", "C2")]
CHUNK_ROWS = 65_536


def text_column(rng: np.random.Generator, cardinality: int, rows: int) -> tuple[pa.Array, pa.Array]:
    """Values of a column and its vocabulary, which knows 95 of 100 distinct values."""
    words = pa.array([f"{(i * 2654435761) % 2**32:08x}" for i in range(cardinality)])
    codes = np.minimum(rng.pareto(0.7, rows) * cardinality / 200, cardinality - 1).astype(np.int64)
    return words.take(pa.array(codes)), words.slice(0, max(1, cardinality * 95 // 100))


def make_data(rows: int, full: bool) -> tuple[Schema, pa.Table]:
    """A schema and a table of chunks as a Parquet reader yields them."""
    rng = np.random.default_rng(0)
    columns, vocabularies, numerics = {}, {}, {}
    for name, cardinality in zip(TEXTS, CARDINALITIES, strict=True):
        columns[name], words = text_column(rng, cardinality, rows)
        vocabularies[name] = Vocabulary(
            values=words.cast(pa.large_binary()), counts=np.zeros(len(words), np.int64)
        )
    features: list[object] = [*wd.categorical(*TEXTS)]
    if full:
        features += [*wd.numeric(*NUMBERS), *(wd.crossed(*pair) for pair in CROSSES)]
    for name in NUMBERS if full else []:
        columns[name] = pa.array(rng.exponential(10, rows), mask=rng.random(rows) < 0.2)
        numerics[name] = numeric_fit(rng)
    for pair in CROSSES if full else []:
        sizes = [2 + len(vocabularies[name]) for name in pair]
        pairs = np.unique(rng.integers(0, sizes, (200_000, 2)), axis=0)
        vocabularies["_x_".join(pair)] = Vocabulary(
            values=pairs, counts=np.zeros(len(pairs), np.int64)
        )
    schema = Schema(
        spec=wd.FeatureSpec(features=features),
        columns={
            name: ColumnType(kind="float" if name in NUMBERS else "string") for name in columns
        },
        vocabularies=vocabularies,
        boundaries={},
        numerics=numerics,
    )
    table = pa.table(columns)
    return schema, pa.Table.from_batches(table.to_batches(max_chunksize=CHUNK_ROWS))


def numeric_fit(rng: np.random.Generator) -> NumericFit:
    """256 quantiles of an exponential distribution."""
    one = np.ones(1)
    return NumericFit(
        boundaries=(np.unique(rng.exponential(10, 256)),),
        shift=0 * one,
        scale=one,
        fill=np.zeros(1, np.float32),
        minimum=one,
        maximum=one,
        mean=one,
    )


def with_dictionaries(table: pa.Table) -> pa.Table:
    """Each chunk with a dictionary of its own, as Parquet stores it."""
    batches = []
    for batch in table.to_batches():
        arrays = [
            column.dictionary_encode() if pa.types.is_string(column.type) else column
            for column in batch.columns
        ]
        batches.append(pa.RecordBatch.from_arrays(arrays, batch.schema.names))
    return pa.Table.from_batches(batches)


def measure(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds and CPU seconds of a call, after one that warms up."""
    call()
    seconds, cpu = [], []
    for _ in range(repeats):
        started, started_cpu = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    return median(seconds), median(cpu)


def report(name: str, rows: int, timing: tuple[float, float]) -> None:
    seconds, cpu = timing
    print(f"{name:34} {rows / seconds / 1e6:8.2f} M rows/s {rows / cpu / 1e6:8.2f} M rows/CPU-s")


def bench_chunks(name: str, schema: Schema, table: pa.Table, threads: int, repeats: int) -> None:
    """The chunks one after the other, as training reads them."""
    transform = Transform(schema, threads=threads)
    chunks = table.to_batches()

    def encode_all() -> None:
        for chunk in chunks:
            transform(chunk, targets=False)

    report(name, table.num_rows, measure(encode_all, repeats))


def bench_requests(schema: Schema, table: pa.Table, repeats: int) -> None:
    """Rows as dicts, one at a time and 200 at a time."""
    transform = Transform(schema)
    for size in (1, 200):
        rows = table.slice(0, size).to_pylist()
        calls = 2000 // size

        def call(rows: list[dict[str, object]] = rows, calls: int = calls) -> None:
            for _ in range(calls):
                transform.rows(rows)

        seconds, _ = measure(call, repeats)
        print(f"a request of {size:3} rows as dicts     {seconds / calls * 1e6:8.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads")
    for full in (False, True):
        kind = "model S" if full else "26 text columns"
        schema, table = make_data(options.rows, full)
        encoded = with_dictionaries(table)
        for name, rows in ((f"{kind}, plain", table), (f"{kind}, dictionaries", encoded)):
            bench_chunks(name, schema, rows, options.threads, options.repeats)
        if full:
            bench_requests(schema, table, options.repeats)


if __name__ == "__main__":
    main()
