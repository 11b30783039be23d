"""TensorFlow 2.15's DNNLinearCombinedClassifier: FTRL for wide, Adagrad for deep, feature columns.

    python benchmarks/peers/tf_estimator_dnn_linear.py TRAIN TEST [--batch 2048]

Ids are hashed (it learns no vocabularies), crosses are its own; numbers are standardised logarithms
with nulls at the mean. Its input is arrays in memory, cut into batches; hashing happens inside the
graph, so training includes it. Building the graph counts as preparation.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import pyarrow as pa
import shared_task as task
import tensorflow as tf

WIDTH = 16
WIDE_RATE, DEEP_RATE = 0.1, 0.05

Inputs = dict[str, np.ndarray[Any, Any]]


def inputs_of(table: pa.Table, center: Any, scale: Any) -> Inputs:
    """Return one array a column."""
    found: Inputs = {name: np.array(table[name].to_pylist(), dtype=bytes) for name in task.WORDS}
    for place, name in enumerate(task.NUMBERS):
        logs = np.log1p(table[name].to_numpy(zero_copy_only=False).astype(np.float32))
        found[name] = np.nan_to_num((logs - center[place]) / scale[place])
    return found


def make_estimator(sizes: dict[str, int], asked: Any, folder: str) -> Any:
    """Return the estimator; a hashed column has twice its distinct values."""
    column = tf.feature_column
    words = [
        column.categorical_column_with_hash_bucket(name, 2 * size) for name, size in sizes.items()
    ]
    crosses = [column.crossed_column(list(parts), 100_000) for parts in task.CROSSES[asked.crosses]]
    deep = [column.embedding_column(word, WIDTH) for word in words]
    numbers = [column.numeric_column(name) for name in task.NUMBERS]
    keras = tf.keras.optimizers.legacy
    return tf.estimator.DNNLinearCombinedClassifier(
        model_dir=folder,
        linear_feature_columns=[*words, *crosses],
        linear_optimizer=keras.Ftrl(WIDE_RATE),
        dnn_feature_columns=[*deep, *numbers],
        dnn_optimizer=keras.Adagrad(DEEP_RATE),
        dnn_hidden_units=[256, 128],
        config=tf.estimator.RunConfig(
            tf_random_seed=asked.seed, save_checkpoints_steps=10**9, log_step_count_steps=10**9
        ),
    )


class StepClock(tf.estimator.SessionRunHook):
    """Times the steps alone, without building the graph and saving the model."""

    start = stop = 0.0

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Note when the first step may begin."""
        self.start = time.process_time()

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Note when a step ended."""
        self.stop = time.process_time()


def batches_of(inputs: Inputs, labels: Any, batch: int) -> Any:
    """Return an input function that cuts arrays into batches.

    A generator, for arrays given to a data set would become constants of the graph, which the
    estimator writes to disk.
    """
    kinds = {name: tf.string if name in task.WORDS else tf.float32 for name in inputs}
    signature = (
        {name: tf.TensorSpec([None], kind) for name, kind in kinds.items()},
        tf.TensorSpec([None, 1], tf.float32),
    )

    def generate() -> Any:
        for at in range(0, len(labels), batch):
            rows = slice(at, at + batch)
            yield {name: values[rows] for name, values in inputs.items()}, labels[rows]

    def read() -> Any:
        return tf.data.Dataset.from_generator(generate, output_signature=signature).prefetch(2)

    return read


def main() -> None:
    """Prepare, learn, judge."""
    asked = task.arguments(__doc__).parse_args()
    start = time.process_time()
    train = task.read_rows(asked.train)
    logs = np.stack(
        [np.log1p(train[n].to_numpy(zero_copy_only=False).astype(np.float32)) for n in task.NUMBERS]
    )
    center, scale = np.nanmean(logs, axis=1), np.nanstd(logs, axis=1)
    inputs = inputs_of(train, center, scale)
    sizes = {name: len(train[name].unique()) for name in task.WORDS}
    prepare_s = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        model = make_estimator(sizes, asked, folder)
        start = time.process_time()
        clock = StepClock()
        model.train(batches_of(inputs, task.labels_of(train)[:, None], asked.batch), hooks=[clock])
        train_s = clock.stop - clock.start
        prepare_s += time.process_time() - start - train_s
        test = task.read_rows(asked.test)
        judged = inputs_of(test, center, scale)
        answers = model.predict(
            batches_of(judged, task.labels_of(test)[:, None], 8192), yield_single_examples=False
        )
        probabilities = np.concatenate([answer["logistic"][:, 0] for answer in answers])
    task.report(
        "tensorflow-cpu",
        table=test,
        probabilities=probabilities,
        prepare_s=prepare_s,
        train_s=train_s,
        train_rows=train.num_rows,
        latency=None,
        note=f"FTRL {WIDE_RATE}, Adagrad {DEEP_RATE}, batch {asked.batch}; the estimator loads its "
        "checkpoint at each call to predict, so no latency",
    )


if __name__ == "__main__":
    main()
