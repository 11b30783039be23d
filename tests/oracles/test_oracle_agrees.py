"""The float64 references agree with TensorFlow, and the two FTRL conventions with each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracles import ftrl_adagrad_float64 as reference

FOLDER = Path(__file__).parent
OPTIMIZERS = json.loads((FOLDER / "tensorflow_optimizers.json").read_text())
ESTIMATOR = json.loads((FOLDER / "tensorflow_estimator.json").read_text())

SLOTS = {
    "ftrl": ("accumulator", "linear"),
    "adagrad": ("accumulator",),
    "sgd": (),
    "adam": ("first_moment", "second_moment"),
    "momentum": ("velocity",),
    "rmsprop": ("square", "velocity"),
    "centered rmsprop": ("square", "mean", "velocity"),
}
STEPS: dict[str, Callable[..., None]] = {
    "ftrl": reference.ftrl_step,
    "adagrad": reference.adagrad_step,
    "sgd": reference.sgd_step,
    "adam": reference.lazy_adam_step,
    "momentum": reference.momentum_step,
}


def starting_state(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights as stored; an accumulator at its start value, every other slot at zero."""
    weights = np.array(case["initial"]["weights"])
    state = {"weights": weights}
    for slot in SLOTS[case["optimizer"]]:
        start = case["hyper"]["initial_accumulator"] if slot in ("accumulator", "square") else 0.0
        state[slot] = np.full_like(weights, start)
    return state


def apply_step(
    case: dict[str, Any], state: dict[str, np.ndarray], ids: Any, gradients: Any, step: int
) -> None:
    """One reference step in place."""
    hyper = {key: value for key, value in case["hyper"].items() if key != "initial_accumulator"}
    if case["optimizer"] == "adam":
        hyper["step"] = step
    if case["optimizer"].endswith("rmsprop"):
        slots = {name: values for name, values in state.items() if name != "weights"}
        reference.rmsprop_step(state["weights"], slots, np.array(ids), np.array(gradients), **hyper)
        return
    STEPS[case["optimizer"]](*state.values(), np.array(ids), np.array(gradients), **hyper)


def named(cases: list[dict[str, Any]]) -> list[Any]:
    """The cases as parameters under their names."""
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("case", named(OPTIMIZERS["dense"]))
def test_dense_steps_equal_tensorflow_in_float64(case: dict[str, Any]) -> None:
    state = starting_state(case)
    for name, start in case["initial"].items():
        np.testing.assert_array_equal(state[name], start)
    rows = np.arange(len(state["weights"]))
    for step, gradients in enumerate(OPTIMIZERS["dense_gradients"], start=1):
        apply_step(case, state, rows, gradients, step)
        for name, values in state.items():
            expected = case["after"][name][step - 1]
            np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("case", named(OPTIMIZERS["sparse"]))
def test_sparse_steps_with_duplicate_ids_equal_tensorflow(case: dict[str, Any]) -> None:
    tolerance = 1e-6 if case["dtype"] == "float32" else 1e-12
    state = starting_state(case)
    for step, batch in enumerate(case["steps"], start=1):
        apply_step(case, state, batch["ids"], batch["gradients"], step)
        for name, values in state.items():
            error = np.abs(values - batch[name]) / np.maximum(1.0, np.abs(values))
            assert error.max() <= tolerance, f"step {step}, {name}"


def test_the_sparse_vectors_hold_duplicates_and_an_untouched_row() -> None:
    batches = OPTIMIZERS["sparse"][0]["steps"]
    assert any(len(set(batch["ids"])) < len(batch["ids"]) for batch in batches)
    assert not any(4 in batch["ids"] for batch in batches)
    assert len(OPTIMIZERS["sparse"][0]["initial"]["weights"]) == 5


def test_squaring_before_summing_would_not_pass() -> None:
    case = next(case for case in OPTIMIZERS["sparse"] if case["name"] == "adagrad: v1")
    state = starting_state(case)
    for step, batch in enumerate(case["steps"], start=1):
        for row, gradient in zip(batch["ids"], batch["gradients"], strict=True):
            apply_step(case, state, [row], [gradient], step)
    assert np.abs(state["accumulator"] - case["steps"][-1]["accumulator"]).max() > 0.1


def test_mcmahans_l2_is_twice_tensorflows() -> None:
    rng = np.random.default_rng(0)
    once, twice = ([np.zeros((4, 3)) for _ in range(3)] for _ in range(2))
    options: dict[str, Any] = {"lr": 0.3, "l1": 4.0, "beta": 1.0}
    for _ in range(30):
        batch = rng.integers(0, 4, size=5), rng.normal(size=(5, 3))
        STEPS["ftrl"](*once, *batch, l2=0.6, l2_convention="mcmahan", **options)
        STEPS["ftrl"](*twice, *batch, l2=0.3, l2_convention="tensorflow", **options)
    np.testing.assert_allclose(once[0], twice[0], rtol=1e-14)
    assert 0 < (once[0] == 0.0).sum() < once[0].size


def test_ftrl_without_regularisation_is_adagrad() -> None:
    ftrl = next(case for case in OPTIMIZERS["dense"] if case["name"].startswith("ftrl: plain"))
    weights, accumulator = np.zeros((2, 3)), np.full((2, 3), 0.1)
    for gradients, expected in zip(
        OPTIMIZERS["dense_gradients"], ftrl["after"]["weights"], strict=True
    ):
        reference.adagrad_step(weights, accumulator, np.arange(2), np.array(gradients), lr=0.1)
        np.testing.assert_allclose(weights, expected, atol=1e-12)


def test_the_linear_term_of_given_weights_reproduces_them() -> None:
    weights = np.array([[0.5, -2.0, 0.0]])
    accumulator = np.array([[0.1, 3.0, 0.7]])
    options: dict[str, Any] = {"lr": 0.2, "l1": 0.3, "l2": 0.1, "beta": 1.0}
    linear = reference.ftrl_linear_for(weights, accumulator, **options)
    moved = weights.copy()
    reference.ftrl_step(moved, accumulator, linear, np.array([0]), np.zeros((1, 3)), **options)
    np.testing.assert_allclose(moved, weights, rtol=1e-14)
    forgotten = weights.copy()
    zeros = np.zeros_like(weights)
    reference.ftrl_step(forgotten, accumulator, zeros, np.array([0]), np.zeros((1, 3)), **options)
    assert (forgotten == 0.0).all()


# A joint step of tf.estimator's DNNLinearCombinedClassifier, in float64 with torch's autograd.


def pool(table: torch.Tensor, bags: list[list[int]], combiner: str) -> torch.Tensor:
    """Pooled rows of each bag; an id below 0 is dropped, an empty bag gives zeros."""
    rows = []
    for bag in bags:
        ids = [value for value in bag if value >= 0]
        divisor = {"sum": 1.0, "mean": len(ids) or 1, "sqrtn": (len(ids) or 1) ** 0.5}[combiner]
        rows.append(table[ids].sum(dim=0) / divisor)
    return torch.stack(rows)


def joint_logits(
    case: dict[str, Any], weights: dict[str, torch.Tensor], step: dict[str, Any]
) -> torch.Tensor:
    """Wide logit plus deep logit of each example."""
    wide = weights["linear/bias"]
    for name, bags in step["ids"].items():
        wide = wide + pool(weights[f"linear/{name}"], bags, case["linear_sparse_combiner"])
    numbers = torch.tensor(step["features"]["numbers"]["rows"], dtype=torch.float64)
    embedded = [
        pool(weights[f"dnn/{name}_embedding"], step["ids"][name], "mean")
        for name in ("education", "jobs")
    ]
    hidden = torch.cat([*embedded, numbers], dim=1)
    for layer in ("hiddenlayer_0", "hiddenlayer_1"):
        hidden = hidden @ weights[f"dnn/{layer}/kernel"] + weights[f"dnn/{layer}/bias"]
        hidden = hidden.relu()
    deep = hidden @ weights["dnn/logits/kernel"] + weights["dnn/logits/bias"]
    return (wide + deep).squeeze(1)


def joint_loss(case: dict[str, Any], logits: torch.Tensor, step: dict[str, Any]) -> torch.Tensor:
    """Weighted log loss, summed or divided by the batch size (not by the sum of the weights)."""
    labels = torch.tensor(step["labels"], dtype=torch.float64)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if case["weight_column"]:
        rows = step["features"][case["weight_column"]]["rows"]
        losses = losses * torch.tensor(rows, dtype=torch.float64).squeeze(1)
    return losses.mean() if case["loss_reduction"] == "sum_over_batch_size" else losses.sum()


def update(case: dict[str, Any], name: str, state: dict[str, Any], gradient: np.ndarray) -> None:
    """FTRL for the linear part, Adagrad for the rest; a row without ids has no gradient."""
    part = "ftrl" if name.startswith("linear/") else "adagrad"
    slots = [state[slot][name] for slot in ("weights", *SLOTS[part])]
    tables = [slot.reshape(len(slot), -1) for slot in slots]
    gradient = gradient.reshape(len(gradient), -1)
    ids = np.flatnonzero(gradient.any(axis=1))
    hyper = {key: value for key, value in case[part].items() if key != "initial_accumulator"}
    STEPS[part](*tables, ids, gradient[ids], **hyper)


@pytest.mark.parametrize("case", named(ESTIMATOR["training"]))
def test_joint_training_equals_the_estimator(case: dict[str, Any]) -> None:
    state = {
        slot: {name: np.array(values) for name, values in tables.items()}
        for slot, tables in case["initial"].items()
    }
    for step in case["steps"]:
        weights = {name: torch.tensor(values) for name, values in state["weights"].items()}
        for tensor in weights.values():
            tensor.requires_grad_()
        loss = joint_loss(case, joint_logits(case, weights, step), step)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.item() == pytest.approx(step["loss"], rel=1e-6)
        for name, tensor in weights.items():
            assert tensor.grad is not None
            update(case, name, state, tensor.grad.numpy())
        for slot, tables in state.items():
            for name, values in tables.items():
                expected = step["after"][slot][name]
                np.testing.assert_allclose(values, expected, rtol=2e-6, atol=2e-6, err_msg=name)
