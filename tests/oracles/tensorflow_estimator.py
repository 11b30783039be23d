"""Joint-training vectors: DNNLinearCombinedClassifier from known weights, step by step."""

from __future__ import annotations

import tempfile
from importlib import import_module
from typing import Any

import numpy as np

from tests.oracles.tensorflow_columns import build_column, build_features, column_ids

__all__ = ["estimator_vectors"]

tf: Any = import_module("tensorflow")

STEPS = 3
EXAMPLES = 8
EDUCATION = ["Bachelors", "HS-grad", "Masters", "Doctorate"]
JOBS = ["Sales", "Tech", "Clerk", "Farming", "Armed", "Other"]

EDUCATION_COLUMN = {
    "kind": "vocabulary",
    "key": "education",
    "dtype": "string",
    "vocabulary": EDUCATION,
}
JOBS_COLUMN = {"kind": "hash_bucket", "key": "jobs", "dtype": "string", "buckets": 7}
NUMBERS = {"kind": "numeric", "key": "numbers", "shape": 2}
LINEAR: dict[str, dict[str, Any]] = {
    "education": EDUCATION_COLUMN,
    "jobs": JOBS_COLUMN,
    "education_X_jobs": {"kind": "crossed", "parts": ["education", "jobs"], "buckets": 12},
}


def _embedding(source: dict[str, Any], rows: int, seed: int) -> dict[str, Any]:
    table = np.random.default_rng(seed).normal(size=(rows, 3)).round(3).tolist()
    return {"kind": "embedding", "source": source, "combiner": "mean", "table": table}


DEEP: dict[str, dict[str, Any]] = {
    "education_embedding": _embedding(EDUCATION_COLUMN, 4, 11),
    "jobs_embedding": _embedding(JOBS_COLUMN, 7, 12),
    "numbers": NUMBERS,
}


def _batch(step: int, weighted: bool) -> dict[str, Any]:
    """A few examples: unseen words, bags of several jobs and of none, sample weights."""
    rng = np.random.default_rng(100 + step)
    education = rng.choice([*EDUCATION, "unseen"], size=EXAMPLES).tolist()
    jobs = [rng.choice(JOBS, size=size).tolist() for size in rng.integers(0, 4, size=EXAMPLES)]
    numbers = rng.normal(size=(EXAMPLES, 2)).astype(np.float32).round(4).tolist()
    batch: dict[str, Any] = {
        "features": {
            "education": {"dtype": "string", "rows": [[word] for word in education]},
            "jobs": {"dtype": "string", "rows": jobs},
            "numbers": {"dtype": "float32", "dense": True, "rows": numbers},
        },
        "labels": rng.integers(0, 2, size=EXAMPLES).tolist(),
    }
    if weighted:
        weights = [[float(weight)] for weight in rng.choice([0.0, 0.5, 1.0, 2.5], size=EXAMPLES)]
        batch["features"]["weight"] = {"dtype": "float32", "dense": True, "rows": weights}
    return batch


def _dataset(batches: list[dict[str, Any]]) -> Any:
    whole = None
    for batch in batches:
        tensors = (build_features(batch["features"]), tf.constant(batch["labels"]))
        part = tf.data.Dataset.from_tensors(tensors)
        whole = whole.concatenate(part) if whole else part
    return whole


class _Recorder(tf.compat.v1.train.SessionRunHook):  # type: ignore[misc]
    """Sets the starting weights, then keeps the loss and every variable after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, dict[str, Any]]] = []
        self.losses: list[Any] = []

    def begin(self) -> None:
        self._variables = {
            variable.name.removesuffix(":0"): variable
            for variable in tf.compat.v1.global_variables()
            if variable.shape.rank > 0
        }
        (self._loss,) = tf.compat.v1.get_collection(tf.compat.v1.GraphKeys.LOSSES)

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Random kernels and biases; the tables come from the columns; the wide part is zero."""
        rng = np.random.default_rng(5)
        for name, variable in sorted(self._variables.items()):
            if name.startswith("dnn/") and "input_layer" not in name:
                value = rng.normal(size=variable.shape, scale=0.5).round(3)
                variable.load(value.astype(np.float32), session)
        self._keep(session)

    def before_run(self, run_context: Any) -> Any:
        return tf.compat.v1.train.SessionRunArgs(self._loss)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        self.losses.append(run_values.results)
        self._keep(run_context.session)

    def _keep(self, session: Any) -> None:
        state: dict[str, dict[str, Any]] = {"weights": {}, "accumulator": {}, "linear": {}}
        for name, value in session.run(self._variables).items():
            slot = name.rsplit("/", 1)[1] if name.startswith("training/") else "weights"
            state[slot][_short_name(name)] = value
        self.states.append(state)


def _short_name(name: str) -> str:
    """``training/Ftrl/linear/linear_model/jobs/weights/linear`` becomes ``linear/jobs``."""
    if name.startswith("training/"):
        name = name.split("/", 2)[2].rsplit("/", 1)[0]
    name = name.replace("input_from_feature_columns/input_layer/", "")
    name = name.replace("linear_model/bias_weights", "bias").replace("linear_model/", "")
    return name.removesuffix("/weights").removesuffix("/embedding_weights")


def _entry(name: str, options: dict[str, Any]) -> dict[str, Any]:
    weighted = options["weight_column"] is not None
    batches = [_batch(step, weighted) for step in range(STEPS)]
    legacy = tf.keras.optimizers.legacy
    recorder = _Recorder()
    with tempfile.TemporaryDirectory() as folder:
        tf.estimator.DNNLinearCombinedClassifier(
            model_dir=folder,
            linear_feature_columns=[build_column(column) for column in LINEAR.values()],
            linear_optimizer=legacy.Ftrl(
                options["ftrl"]["lr"], l1_regularization_strength=options["ftrl"]["l1"]
            ),
            dnn_feature_columns=[build_column(column) for column in DEEP.values()],
            dnn_optimizer=legacy.Adagrad(options["adagrad"]["lr"]),
            dnn_hidden_units=[4, 3],
            weight_column=options["weight_column"],
            loss_reduction=options["loss_reduction"],
            linear_sparse_combiner=options["linear_sparse_combiner"],
        ).train(lambda: _dataset(batches), hooks=[recorder])
    if len(recorder.losses) != STEPS:
        raise AssertionError(f"{len(recorder.losses)} steps recorded, expected {STEPS}")
    steps = [
        {**batch, "ids": _column_ids(batch["features"]), "loss": loss, "after": state}
        for batch, loss, state in zip(batches, recorder.losses, recorder.states[1:], strict=True)
    ]
    return {
        "name": name,
        **options,
        "linear_columns": LINEAR,
        "deep_columns": {key: _without_table(column) for key, column in DEEP.items()},
        "initial": recorder.states[0],
        "steps": steps,
    }


def _without_table(column: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in column.items() if key != "table"}


def _column_ids(features: dict[str, Any]) -> dict[str, list[list[int]]]:
    return {name: column_ids(column, features) for name, column in LINEAR.items()}


def estimator_vectors() -> dict[str, Any]:
    """Everything that goes into ``tensorflow_estimator.json``."""
    plain = {
        "loss_reduction": "sum_over_batch_size",
        "weight_column": None,
        "linear_sparse_combiner": "sum",
        "ftrl": {"lr": 0.2, "l1": 0.0, "initial_accumulator": 0.1},
        "adagrad": {"lr": 0.05, "epsilon": 1e-7, "initial_accumulator": 0.1},
    }
    changed = {
        "loss_reduction": "sum",
        "weight_column": "weight",
        "linear_sparse_combiner": "sqrtn",
        "ftrl": {"lr": 0.1, "l1": 0.5, "initial_accumulator": 0.1},
    }
    weighted_mean = {"weight_column": "weight"}
    return {
        "training": [
            _entry("mean loss", plain),
            _entry("mean loss with example weights", {**plain, **weighted_mean}),
            _entry("summed loss, example weights, l1, sqrtn", {**plain, **changed}),
        ]
    }
