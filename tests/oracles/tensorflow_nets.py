"""Twenty joint steps of a DNN with batch norm beside a linear part whose bias FTRL trains."""

from __future__ import annotations

import tempfile
from importlib import import_module
from typing import Any

import numpy as np

from tests.oracles.tensorflow_estimator import _Recorder, _short_name

__all__ = ["net_vectors"]

tf: Any = import_module("tensorflow")

STEPS = 20
EXAMPLES = 8
WORDS = ["a", "b", "c"]


def _batches() -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    return [
        {
            "word": rng.choice([*WORDS, "unseen"], size=EXAMPLES).tolist(),
            "numbers": rng.normal(size=(EXAMPLES, 3)).astype(np.float32).round(3).tolist(),
            "labels": rng.integers(0, 2, size=EXAMPLES).tolist(),
        }
        for _ in range(STEPS)
    ]


def _dataset(batches: list[dict[str, Any]]) -> Any:
    def rows() -> Any:
        for batch in batches:
            numbers = np.array(batch["numbers"], np.float32)
            features = {"word": np.array(batch["word"])[:, None], "numbers": numbers}
            yield features, np.array(batch["labels"])[:, None]

    spec = ({"word": tf.string, "numbers": tf.float32}, tf.int64)
    shapes = ({"word": (EXAMPLES, 1), "numbers": (EXAMPLES, 3)}, (EXAMPLES, 1))
    return tf.data.Dataset.from_generator(rows, spec, shapes)


class _NetRecorder(_Recorder):
    """Keeps the slots of FTRL alone; other slots follow from the weights that they move."""

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Random starts, as the other vectors' are; a variance is positive."""
        super().after_create_session(session, coord)
        for name, variable in self._variables.items():
            if name.endswith("moving_variance"):
                variable.load(np.abs(session.run(variable)), session)
        self.states.clear()
        self._keep(session)

    def _keep(self, session: Any) -> None:
        state: dict[str, dict[str, Any]] = {"weights": {}, "accumulator": {}, "linear": {}}
        for name, value in session.run(self._variables).items():
            slot = name.rsplit("/", 1)[1] if name.startswith("training/") else "weights"
            if slot in state:
                state[slot][_short_name(name)] = value
        self.states.append(state)


def _entry(name: str, activation: str, l1: float, optimizer: str) -> dict[str, Any]:
    batches, recorder = _batches(), _NetRecorder()
    fc, legacy = tf.feature_column, tf.keras.optimizers.legacy
    functions = {"relu": tf.nn.relu, "leaky_relu": tf.nn.leaky_relu, "softplus": tf.nn.softplus}
    optimizers = {
        "adagrad": lambda: legacy.Adagrad(0.05),
        "sgd": lambda: legacy.SGD(0.05, momentum=0.9, nesterov=True),
        "rmsprop": lambda: legacy.RMSprop(0.01, rho=0.8),
    }
    with tempfile.TemporaryDirectory() as folder:
        tf.estimator.DNNLinearCombinedClassifier(
            model_dir=folder,
            linear_feature_columns=[fc.categorical_column_with_vocabulary_list("word", WORDS)],
            linear_optimizer=legacy.Ftrl(0.2, l1_regularization_strength=l1),
            dnn_feature_columns=[fc.numeric_column("numbers", shape=(3,))],
            dnn_optimizer=optimizers[optimizer](),
            dnn_hidden_units=[4, 3],
            dnn_activation_fn=functions[activation],
            batch_norm=True,
        ).train(lambda: _dataset(batches), hooks=[recorder])
    last = recorder.states[-1]
    return {
        "name": name,
        "activation": activation,
        "l1": l1,
        "optimizer": optimizer,
        "words": WORDS,
        "initial": recorder.states[0]["weights"],
        "losses": recorder.losses,
        "final": last["weights"],
        "final_bias_slots": {slot: last[slot]["linear/bias"] for slot in ("accumulator", "linear")},
    }


def net_vectors() -> dict[str, Any]:
    """Everything that goes into ``tensorflow_nets.json``."""
    assert _short_name("linear/linear_model/bias_weights") == "linear/bias"
    return {
        "batches": _batches(),
        "nets": [
            _entry("relu, adagrad", "relu", 0.0, "adagrad"),
            _entry("leaky_relu of slope 0.2, l1, momentum", "leaky_relu", 0.5, "sgd"),
            _entry("softplus, rmsprop", "softplus", 0.1, "rmsprop"),
        ],
    }
