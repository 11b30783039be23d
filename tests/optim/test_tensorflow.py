"""The optimizers against TensorFlow's answers, duplicates and untouched rows included."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from widedeep.optim import FTRL, SGD, Adagrad, Adam, Optimizer, RMSProp
from widedeep.tables.embedding_table import EmbeddingTable

VECTORS = json.loads(
    (Path(__file__).parents[1] / "oracles" / "tensorflow_optimizers.json").read_text()
)
OUR_NAME = {
    "accumulator": "n",
    "linear": "z",
    "first_moment": "mean",
    "second_moment": "square",
}


def make(case: dict[str, Any]) -> Optimizer:
    hyper = dict(case["hyper"])
    if case["optimizer"] == "ftrl":
        return FTRL(**hyper, convention="tensorflow")
    if case["optimizer"] == "adagrad":
        return Adagrad(eps=hyper.pop("epsilon", 0.0), **hyper)
    if case["optimizer"].endswith("rmsprop"):
        return RMSProp(eps=hyper.pop("epsilon"), **hyper, convention="tensorflow")
    if case["optimizer"] in ("sgd", "momentum"):
        return SGD(**hyper)
    betas = hyper.pop("beta1"), hyper.pop("beta2")
    return Adam(betas=betas, eps=hyper.pop("epsilon"), **hyper)


def our_name(case: dict[str, Any], name: str) -> str:
    if name == "weights":
        return "f.weight"
    return f"f.{name if case['optimizer'] == 'adagrad' else OUR_NAME.get(name, name)}"


def table_for(case: dict[str, Any], optimizer: Optimizer) -> EmbeddingTable:
    """A table with the case's first weights; slots as TensorFlow starts them."""
    weights = np.array(case["initial"]["weights"], np.float32)
    table = EmbeddingTable({"f": len(weights)}, {"f": "f"}, dim=weights.shape[1])
    table.attach(optimizer)
    start = {name: tensor.numpy().copy() for name, tensor in table.named_state().items()}
    table.load_named_state({**start, "f.weight": weights})
    return table


def check(case: dict[str, Any], table: EmbeddingTable, expected: dict[str, Any]) -> None:
    held = table.named_state()
    for name, values in expected.items():
        exact = np.array(values)
        error = np.abs(held[our_name(case, name)].numpy() - exact)
        # A float32 z that came back from 80 to 1 keeps the rounding of 80.
        size = np.abs(exact) if name == "weights" else np.abs(exact).max()
        assert (error <= 1e-6 * np.maximum(1.0, size)).all(), name


def learn(table: EmbeddingTable, optimizer: Optimizer, ids: Any, grads: Any, step: int) -> None:
    batch = SimpleNamespace(ids_N=np.array(ids), offsets_BF=np.arange(len(ids) + 1), values_N=None)
    slots = [SimpleNamespace(name="f", combiner="sum", wide_combiner=str)]
    groups = table.group(batch, slots)
    grad_BC = torch.tensor(grads, dtype=torch.float32)
    sums = table.sum_wide(batch, groups, slots, "sum", grad_BC)
    table.apply(groups, sums, optimizer, step=step)


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("on_device", [False, True], ids=["kernels", "twins"])
@pytest.mark.parametrize("case", named(VECTORS["sparse"]))
def test_sparse_steps_equal_tensorflows(case: dict[str, Any], on_device: bool) -> None:
    optimizer = make(case)
    table = table_for(case, optimizer)
    table._on_device = on_device
    for step, batch in enumerate(case["steps"], start=1):
        learn(table, optimizer, batch["ids"], batch["gradients"], step)
        names = [name for name in batch if name not in ("ids", "gradients")]
        check(case, table, {name: batch[name] for name in names})


@pytest.mark.parametrize("case", named(VECTORS["dense"]))
def test_dense_steps_equal_tensorflows(case: dict[str, Any]) -> None:
    optimizer = make(case)
    table = table_for(case, optimizer)
    rows = range(len(case["initial"]["weights"]))
    for step, grads in enumerate(VECTORS["dense_gradients"], start=1):
        learn(table, optimizer, list(rows), grads, step)
        check(case, table, {name: case["after"][name][step - 1] for name in case["after"]})
