"""This library with default settings: wide and deep, three learned crosses.

    python benchmarks/peers/widedeep_itself.py FILE [--batch 2048]

Preparation is the schema (vocabularies, quantiles); training reads and encodes the raw rows again.
"""

from __future__ import annotations

import tempfile
import time

import shared_task as task

import widedeep as wd


def main() -> None:
    """Prepare, learn, judge."""
    asked = task.arguments(__doc__).parse_args()
    train, test = task.read_rows(asked)
    spec = wd.FeatureSpec(
        label="label",
        features=[
            *wd.numeric(*task.NUMBERS),
            *wd.categorical(*task.WORDS),
            *(wd.crossed(*parts) for parts in task.CROSSES[asked.crosses]),
        ],
    )
    start = time.perf_counter()
    schema = wd.fit_schema(spec, train)
    prepare_s = time.perf_counter() - start
    model = wd.WideDeep(schema, seed=asked.seed)
    trainer = wd.Trainer(model, batch_size=asked.batch, seed=asked.seed, progress=False)
    start = time.perf_counter()
    trainer.fit(train)
    train_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        bundle = trainer.export(f"{folder}/bundle", warmup=False)
        rows = [task.request_of(test, n).drop_columns(["label"]) for n in range(task.REQUESTS)]
        latency = task.latency_ms(lambda n: bundle.score(rows[n]))
    task.report(
        "widedeep",
        table=test,
        probabilities=trainer.predict(test),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=latency,
        note=f"wide and deep, batch {asked.batch}; training encodes raw rows",
    )


if __name__ == "__main__":
    main()
