"""CatBoost: boosted trees over categories as such, and its own combinations of them.

    python benchmarks/peers/catboost_trees.py TRAIN TEST

Its settings are its defaults with 100 trees, so it reads the rows many times, not once.
"""

from __future__ import annotations

import time
from typing import Any

import catboost
import numpy as np
import pyarrow as pa
import shared_task as task
from coded_rows import texts

TREES = 100


def inputs_of(table: pa.Table, crosses: list[tuple[str, str]]) -> Any:
    """Return the rows as CatBoost reads them."""
    words = [
        np.array(column.cast(pa.binary()).to_pylist(), dtype=object)
        for column in texts(table, crosses).values()
    ]
    return catboost.FeaturesData(
        num_feature_data=task.numbers_of(table), cat_feature_data=np.stack(words, axis=1)
    )


def main() -> None:
    """Prepare, learn, judge."""
    asked = task.arguments(__doc__).parse_args()
    crosses = task.CROSSES[asked.crosses]
    start = time.process_time()
    train = task.read_rows(asked.train)
    inputs = catboost.Pool(inputs_of(train, crosses), task.labels_of(train))
    prepare_s = time.process_time() - start
    model = catboost.CatBoostClassifier(
        iterations=TREES,
        random_seed=asked.seed,
        thread_count=1,
        verbose=False,
        allow_writing_files=False,
    )
    start = time.process_time()
    model.fit(inputs)
    train_s = time.process_time() - start
    test = task.read_rows(asked.test)

    def predict(table: pa.Table) -> Any:
        return model.predict_proba(inputs_of(table, crosses), thread_count=1)[:, 1]

    task.report(
        "catboost",
        table=test,
        probabilities=predict(test),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=task.latency_ms(lambda n: predict(task.request_of(test, n))),
        note=f"{TREES} trees, not one pass",
    )


if __name__ == "__main__":
    main()
