"""This library with default settings: wide and deep, three learned crosses.

    python benchmarks/peers/widedeep_itself.py FILE [--batch 2048] [--wide-only | --encode]

Preparation is the schema (vocabularies, quantiles); training reads and encodes the raw rows again.
With `--encode` preparation encodes them too, into a folder that training maps into memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shared_task as task

import widedeep as wd
from widedeep.data.encoded import EncodedRows
from widedeep.data.sources import open_source
from widedeep.data.transform import Transform


def make_spec(asked: argparse.Namespace) -> wd.FeatureSpec:
    """Numbers, text and crosses; a wide part alone takes the numbers in twenty buckets each."""
    if asked.wide_only:
        numbers = [wd.bucketized(f"{n}_bucket", source=n, quantiles=20) for n in task.NUMBERS]
    else:
        numbers = wd.numeric(*task.NUMBERS)
    return wd.FeatureSpec(
        label="label",
        deep=[] if asked.wide_only else None,
        features=[
            *numbers,
            *wd.categorical(*task.WORDS),
            *(wd.crossed(*parts) for parts in task.CROSSES[asked.crosses]),
        ],
    )


def prepare(asked: argparse.Namespace, train: Any, cache: Path | None) -> wd.Schema:
    """Fit the schema, and encode the rows if they are to be kept."""
    schema = wd.fit_schema(make_spec(asked), train)
    if cache is not None:
        transform = Transform(schema)
        with open_source(train, columns=transform.columns()) as source:
            EncodedRows.write(cache, transform, source)
    return schema


def train_and_report(
    asked: argparse.Namespace, train: pa.Table, test: pa.Table, folder: Path
) -> None:
    """Prepare, learn, judge."""
    cache, data = None, train
    if asked.encode:
        cache, data = folder / "encoded", folder / "train.parquet"
        pq.write_table(train, data, row_group_size=65_536)
    start = time.perf_counter()
    schema = prepare(asked, data, cache)
    prepare_s = time.perf_counter() - start
    model = wd.WideDeep(schema, seed=asked.seed)
    trainer = wd.Trainer(model, batch_size=asked.batch, seed=asked.seed, progress=False)
    start = time.perf_counter()
    trainer.fit(data, cache=cache)
    train_s = time.perf_counter() - start
    bundle = trainer.export(folder / "bundle", warmup=False)
    rows = [task.request_of(test, n).drop_columns(["label"]) for n in range(task.REQUESTS)]
    encoding = "from rows encoded beforehand" if asked.encode else "training encodes raw rows"
    task.report(
        "widedeep",
        table=test,
        probabilities=trainer.predict(test),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=task.latency_ms(lambda n: bundle.score(rows[n])),
        version=wd.__version__,
        note=f"{'wide only' if asked.wide_only else 'wide and deep'}, default rates, batch "
        f"{asked.batch}; {encoding}",
    )


def main() -> None:
    """Read the rows and train."""
    parser = task.arguments(__doc__)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--wide-only", action="store_true")
    way.add_argument("--encode", action="store_true")
    asked = parser.parse_args()
    train, test = task.read_rows(asked)
    with tempfile.TemporaryDirectory() as folder:
        train_and_report(asked, train, test, Path(folder))


if __name__ == "__main__":
    main()
