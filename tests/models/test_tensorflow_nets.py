"""Batch norm, the wide part's bias and optimizers of dense layers: twenty steps of TensorFlow's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import widedeep as wd

VECTORS = json.loads((Path(__file__).parents[1] / "oracles" / "tensorflow_nets.json").read_text())
NAMES = {
    "bias": "dnn/logits/bias",
    "wide_bias": "linear/bias",
    "outputs.mlp.weight": "dnn/logits/kernel",
    **{
        f"towers.mlp.{ours}": f"dnn/hiddenlayer_{i}/{theirs}"
        for i in range(2)
        for ours, theirs in {
            f"layers.{i}.weight": "kernel",
            f"layers.{i}.bias": "bias",
            f"norms.{i}.weight": f"batchnorm_{i}/gamma",
            f"norms.{i}.bias": f"batchnorm_{i}/beta",
            f"norms.{i}.running_mean": f"batchnorm_{i}/moving_mean",
            f"norms.{i}.running_var": f"batchnorm_{i}/moving_variance",
        }.items()
    },
}
ACTIVATIONS: dict[str, Any] = {"leaky_relu": {"name": "leaky_relu", "negative_slope": 0.2}}
OPTIMIZERS = {
    "adagrad": {"optimizer": "adagrad", "lr": 0.05, "initial_accumulator": 0.1},
    "sgd": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "rmsprop": {"optimizer": "rmsprop", "lr": 0.01, "decay": 0.8},
}


class Losses:
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, metrics: dict[str, Any]) -> None:
        self.found.append(metrics["loss"])


def rows_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"word": word, "numbers": numbers, "y": label}
        for word, numbers, label in zip(
            batch["word"], batch["numbers"], batch["labels"], strict=True
        )
    ]


def trainer_of(case: dict[str, Any], losses: Losses) -> wd.Trainer:
    features = [
        wd.categorical("word", vocabulary=case["words"], oov="drop"),
        wd.numeric("numbers", size=3, transform="none"),
    ]
    spec = wd.FeatureSpec(label="y", features=features, wide=["word"], deep=["numbers"])
    model = wd.WideDeep(
        wd.fit_schema(spec, rows_of(VECTORS["batches"][0])),
        hidden_units=[4, 3],
        activation=ACTIVATIONS.get(case["activation"], case["activation"]),
        batch_norm="tensorflow",
        wide_bias=True,
        bias_init="zeros",
    )
    ftrl = {"lr": 0.2, "l1": case["l1"], "beta": 0.0, "initial_accumulator": 0.1, "adapt": 0.0}
    trainer = wd.Trainer(
        model,
        wide=wd.FTRL(convention="tensorflow", **ftrl),
        dense=OPTIMIZERS[case["optimizer"]],
        grad_scale=1 / 8,
        batch_size=8,
        shuffle=False,
        schedule="constant",
        threads=1,
        callbacks=[losses],
        progress=False,
    )
    state = model.state_dict()
    for ours, theirs in NAMES.items():
        start = torch.tensor(case["initial"][theirs]).float()
        state[ours] = start.t() if start.ndim == 2 else start
    model.load_state_dict(state)
    return trainer


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in VECTORS["nets"]])
def test_twenty_steps_equal_tensorflow(case: dict[str, Any]) -> None:
    losses = Losses()
    trainer = trainer_of(case, losses)
    trainer.fit([row for batch in VECTORS["batches"] for row in rows_of(batch)])
    np.testing.assert_allclose(losses.found, case["losses"], atol=3e-6)
    state = trainer.model.state_dict()
    # RMSProp makes whole steps of gradients near 0, as those below a norm are: TensorFlow itself is
    # 2.2e-6 off the equations in float64.
    atol = 1e-5 if case["optimizer"] == "rmsprop" else 3e-6
    for ours, theirs in NAMES.items():
        expected = np.array(case["final"][theirs])
        got = state[ours].numpy()
        np.testing.assert_allclose(got.T if got.ndim == 2 else got, expected, atol=atol)
    wide = state["wide/word"].numpy()[-3:]
    np.testing.assert_allclose(wide, np.array(case["final"]["linear/word"]), atol=3e-6)
    slots = trainer.step.dense_tensors()
    for ours, theirs in (("z", "linear"), ("n", "accumulator")):
        expected = np.array(case["final_bias_slots"][theirs])
        np.testing.assert_allclose(slots[f"wide_bias/{ours}"].numpy(), expected, atol=3e-6)
