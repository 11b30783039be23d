"""TensorFlow's own Wide & Deep tutorial (release 0.10, UCI Adult) by TensorFlow 2.15's estimators.

    python benchmarks/peers/tf_estimator_tutorial.py [--data FOLDER] [--seeds 3] [--out FILE]

The tutorial's columns (hashed words, ages in buckets, three crosses, embeddings of 8, raw numbers),
hidden layers of 100 and 50, and 200 steps, each over the whole training split. Three settings: the
defaults of the estimator of TensorFlow 2, those of TensorFlow 1, and the rates 0.2 and 0.05. Runs
in the environment of requirements-tf_estimator_dnn_linear.txt; prints one line of JSON for each
setting and seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf

STEPS = 200
LABEL = "income"
NUMBERS = ["age", "education_num", "capital_gain", "capital_loss", "hours_per_week"]
HASHED = {
    "education": 1000,
    "relationship": 100,
    "workclass": 100,
    "occupation": 1000,
    "native_country": 1000,
}
AGES = [18, 25, 30, 35, 40, 45, 50, 55, 60, 65]
EMBEDDED = ["workclass", "education", "gender", "relationship", "native_country", "occupation"]
SETTINGS = ("tensorflow_2_defaults", "tensorflow_1_defaults", "rates_0.2_and_0.05")
METRICS = ("accuracy", "auc", "auc_precision_recall", "average_loss", "loss")


def columns() -> tuple[list[Any], list[Any]]:
    """Return the wide and the deep columns of the tutorial."""
    column = tf.feature_column
    words = {
        name: column.categorical_column_with_hash_bucket(name, size)
        for name, size in HASHED.items()
    }
    words["gender"] = column.categorical_column_with_vocabulary_list("gender", ["female", "male"])
    numbers = {name: column.numeric_column(name) for name in NUMBERS}
    ages = column.bucketized_column(numbers["age"], AGES)
    wide = [
        *words.values(),
        ages,
        column.crossed_column(["education", "occupation"], 10_000),
        column.crossed_column([ages, "education", "occupation"], 1_000_000),
        column.crossed_column(["native_country", "occupation"], 10_000),
    ]
    deep = [column.embedding_column(words[name], 8) for name in EMBEDDED]
    return wide, [*deep, *numbers.values()]


def read_split(path: Path) -> tuple[dict[str, Any], Any]:
    """Return a split's columns and labels; a null word is "?", as in UCI's file."""
    table = pq.read_table(path)
    inputs: dict[str, Any] = {}
    for name in [*HASHED, "gender"]:
        words = pc.fill_null(table[name], "?")
        if name == "gender":  # the tutorial's keys are lower case
            words = pc.utf8_lower(words)
        inputs[name] = np.array(words.to_pylist(), dtype=bytes)[:, None]
    for name in NUMBERS:
        inputs[name] = table[name].to_numpy().astype(np.float32)[:, None]
    return inputs, table[LABEL].to_numpy().astype(np.int64)[:, None]


def estimator(setting: str, seed: int, folder: str) -> Any:
    """Return the tutorial's model under a setting."""
    wide, deep = columns()
    module = tf.compat.v1.estimator if setting == "tensorflow_1_defaults" else tf.estimator
    options: dict[str, Any] = {}
    if setting == "rates_0.2_and_0.05":
        keras = tf.keras.optimizers.legacy
        options = {"linear_optimizer": keras.Ftrl(0.2), "dnn_optimizer": keras.Adagrad(0.05)}
    return module.DNNLinearCombinedClassifier(
        model_dir=folder,
        linear_feature_columns=wide,
        dnn_feature_columns=deep,
        dnn_hidden_units=[100, 50],
        config=tf.estimator.RunConfig(
            tf_random_seed=seed, save_checkpoints_steps=10**9, save_summary_steps=10**9
        ),
        **options,
    )


def run(setting: str, seed: int, train: Any, test: Any) -> dict[str, Any]:
    """Train, evaluate, and return TensorFlow's own metrics of the test split."""
    with tempfile.TemporaryDirectory() as folder:
        model = estimator(setting, seed, folder)
        start = time.perf_counter()
        model.train(lambda: tf.data.Dataset.from_tensors(train).cache().repeat(STEPS))
        train_s = time.perf_counter() - start
        metrics = model.evaluate(lambda: tf.data.Dataset.from_tensors(test))
    figures = {name: round(float(metrics[name]), 6) for name in METRICS}
    return {"setting": setting, "seed": seed, **figures, "train_s": round(train_s, 1)}


def main() -> None:
    """Run every setting and seed; print each, and write them with their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(__file__).parents[2] / "src" / "widedeep" / "census",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    options = parser.parse_args()
    train, test = (read_split(options.data / f"{name}.parquet") for name in ("train", "test"))
    runs = []
    for seed in range(options.seeds):
        for setting in SETTINGS:
            runs.append(run(setting, seed, train, test))
            print(json.dumps(runs[-1]), flush=True)
            if options.out:
                medians = {
                    name: {
                        key: statistics.median(one[key] for one in runs if one["setting"] == name)
                        for key in METRICS
                    }
                    for name in {one["setting"] for one in runs}
                }
                found = {"made_with": f"tensorflow {tf.__version__}", "steps": STEPS}
                text = json.dumps({**found, "medians": medians, "runs": runs}, indent=1)
                options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
