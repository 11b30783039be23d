"""This library with default settings: wide and deep, three learned crosses.

    python benchmarks/peers/widedeep_itself.py TRAIN TEST [--batch 2048] [--wide-only | --encode]

Preparation is the schema (vocabularies, quantiles); training encodes the rows in memory. With
`--encode` the library reads the file by itself, a part at a time, and preparation encodes its rows
into a folder that training maps into memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow as pa
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


def prepare(asked: argparse.Namespace, train: pa.Table | Path, cache: Path | None) -> wd.Schema:
    """Fit the schema, and encode the rows if they are to be kept."""
    schema = wd.fit_schema(make_spec(asked), train)
    if cache is not None:
        transform, types = Transform(schema), schema.input_types()
        with open_source(train, columns=transform.columns(), column_types=types) as source:
            EncodedRows.write(cache, transform, source)
    return schema


@wd.reuse_inputs()
def train_and_report(asked: argparse.Namespace, folder: Path) -> None:
    """Prepare, learn, judge."""
    cache = folder / "encoded" if asked.encode else None
    start = time.process_time()
    train = asked.train if asked.encode else task.read_rows(asked.train)
    schema = prepare(asked, train, cache)
    prepare_s = time.process_time() - start
    model = wd.WideDeep(schema, seed=asked.seed)
    trainer = wd.Trainer(model, batch_size=asked.batch, seed=asked.seed, threads=1, progress=False)
    start = time.process_time()
    trainer.fit(train, cache=cache)
    train_s = time.process_time() - start
    test = task.read_rows(asked.test)
    bundle = trainer.export(folder / "bundle", warmup=False)
    rows = [task.request_of(test, n).drop_columns(["label"]) for n in range(task.REQUESTS)]
    encoding = (
        "reads the file by itself and encodes it beforehand"
        if asked.encode
        else "training encodes the text"
    )
    task.report(
        "widedeep",
        table=test,
        probabilities=trainer.predict(test),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=sum(1 for _ in asked.train.open()) - 1,
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
    with tempfile.TemporaryDirectory() as folder:
        train_and_report(asked, Path(folder))


if __name__ == "__main__":
    main()
