"""River: logistic regression that learns one example at a time from dictionaries, by FTRL-Proximal.

    python benchmarks/peers/river_ftrl.py TRAIN TEST [--alpha 0.1]

Preparation reads the file and finds the numbers' buckets; making a row's dictionary of words is
part of learning it, as in a stream.
"""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import shared_task as task
from coded_rows import Buckets, tokens
from river import linear_model, optim

BETA, L1 = 0.5, 0.3


def main() -> None:
    """Prepare, learn, judge."""
    parser = task.arguments(__doc__)
    parser.add_argument("--alpha", type=float, default=0.1)
    asked = parser.parse_args()
    crosses = task.CROSSES[asked.crosses]
    start = time.process_time()
    train = task.read_rows(asked.train)
    buckets = Buckets(train)
    prepare_s = time.process_time() - start
    rule = optim.FTRLProximal(alpha=asked.alpha, beta=BETA, l1=L1, l2=0.0)
    model = linear_model.LogisticRegression(rule, intercept_lr=0.01)
    start = time.process_time()
    for part in task.slices_of(train):
        rows = zip(tokens(part, crosses, buckets), task.labels_of(part) > 0.5, strict=True)
        for words, label in rows:
            model.learn_one(dict.fromkeys(words, 1.0), bool(label))
    train_s = time.process_time() - start
    test = task.read_rows(asked.test)

    def predict(table: pa.Table) -> list[Any]:
        rows = tokens(table, crosses, buckets)
        return [model.predict_proba_one(dict.fromkeys(words, 1.0))[True] for words in rows]

    task.report(
        "river",
        table=test,
        probabilities=predict(test),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=task.latency_ms(lambda n: predict(task.request_of(test, n))),
        note=f"wide only, one by one from dictionaries; alpha {asked.alpha}, beta {BETA}, l1 {L1}",
    )


if __name__ == "__main__":
    main()
