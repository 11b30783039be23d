"""LightGBM: boosted trees, for the quality that trees reach on the same rows.

    python benchmarks/peers/lightgbm_trees.py TRAIN TEST

Each text column and cross becomes the codes of the values seen at least ten times; the library's
other settings are its defaults with 100 trees, so it reads the rows many times, not once.
"""

from __future__ import annotations

import os
import time
from typing import Any

# Its threads otherwise spin at every barrier, which on a busy machine makes it ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shared_task as task
from coded_rows import texts

LEAST = 10
TREES = 100


def vocabularies(words: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """Return the values of each text column that were seen often enough."""
    found = {}
    for name, column in words.items():
        counts = pc.value_counts(column)
        found[name] = counts.field("values").filter(pc.greater_equal(counts.field("counts"), LEAST))
    return found


def main() -> None:
    """Prepare, learn, judge."""
    asked = task.arguments(__doc__).parse_args()
    crosses = task.CROSSES[asked.crosses]
    start = time.process_time()
    train = task.read_rows(asked.train)
    known = vocabularies(texts(train, crosses))

    def matrix(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return numbers and codes; NaN stands for the missing and the unseen."""
        codes = [
            pc.index_in(column, known[name]).cast(pa.float32()).to_numpy(zero_copy_only=False)
            for name, column in texts(table, crosses).items()
        ]
        return np.column_stack([task.numbers_of(table), *codes])

    inputs = matrix(train)
    prepare_s = time.process_time() - start
    first_word = len(task.NUMBERS)
    start = time.process_time()
    data = lightgbm.Dataset(
        inputs,
        task.labels_of(train),
        categorical_feature=list(range(first_word, first_word + len(known))),
    )
    settings = {"objective": "binary", "verbosity": -1, "seed": asked.seed}
    model = lightgbm.train(settings, data, num_boost_round=TREES)
    train_s = time.process_time() - start
    test = task.read_rows(asked.test)
    task.report(
        "lightgbm",
        table=test,
        probabilities=model.predict(matrix(test)),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=task.latency_ms(lambda n: model.predict(matrix(task.request_of(test, n)))),
        note=f"{TREES} trees, not one pass; values seen {LEAST} times",
    )


if __name__ == "__main__":
    main()
