"""scikit-learn: logistic regression by stochastic gradient descent on hashed words.

    python benchmarks/peers/sklearn_sgd.py TRAIN TEST [--rate 0.03] [--alpha 1e-6]

Words, crosses made by hand and buckets of numbers are hashed by its FeatureHasher, a part of the
rows at a time; one pass of `partial_fit`, which learns example by example at one rate for all
weights and averages them. The rate and the penalty are the best of those tried.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import shared_task as task
from coded_rows import Buckets, tokens
from scipy import sparse
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier

BITS = 22


def main() -> None:
    """Prepare, learn, judge."""
    parser = task.arguments(__doc__)
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument("--alpha", type=float, default=1e-6)
    asked = parser.parse_args()
    crosses = task.CROSSES[asked.crosses]
    hasher = FeatureHasher(1 << BITS, input_type="string", alternate_sign=False, dtype=np.float32)
    start = time.process_time()
    train = task.read_rows(asked.train)
    buckets = Buckets(train)

    def matrix(table: pa.Table) -> Any:
        parts = [hasher.transform(tokens(p, crosses, buckets)) for p in task.slices_of(table)]
        return sparse.vstack(parts, format="csr")

    inputs = matrix(train)
    prepare_s = time.process_time() - start
    model = SGDClassifier(
        loss="log_loss",
        alpha=asked.alpha,
        learning_rate="constant",
        eta0=asked.rate,
        average=True,
        random_state=asked.seed,
    )
    start = time.process_time()
    model.partial_fit(inputs, task.labels_of(train), classes=[0, 1])
    train_s = time.process_time() - start
    test = task.read_rows(asked.test)

    def predict(table: pa.Table) -> Any:
        return model.predict_proba(matrix(table))[:, 1]

    task.report(
        "scikit-learn",
        table=test,
        probabilities=predict(test),
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=task.latency_ms(lambda n: predict(task.request_of(test, n))),
        note=f"wide only, {BITS} bits, averaged, rate {asked.rate}, alpha {asked.alpha}",
    )


if __name__ == "__main__":
    main()
