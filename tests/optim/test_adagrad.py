"""Adagrad: the contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.optim.optimizer_contract import OptimizerContract, oracle
from widedeep.optim import Adagrad


class TestAdagrad(OptimizerContract):
    cases = (
        Adagrad(),
        Adagrad(lr=0.3, initial_accumulator=0.0, eps=1e-3),
        Adagrad(eps=0.0),
        Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025),
        Adagrad(lr=0.2, row_wise=True),
        Adagrad(lr=0.2, initial_accumulator=0.1, l2=0.025, row_wise=True),
    )
    wrong = (
        {"lr": -1.0},
        {"lr": True},
        {"eps": -1e-7},
        {"initial_accumulator": -0.1},
        {"l2": -0.1},
        {"row_wise": 1},
    )

    def oracle_step(
        self,
        optimizer: Any,
        arrays: dict[str, np.ndarray],
        rows: np.ndarray,
        grads: np.ndarray,
        step: int,
        lr: float,
    ) -> None:
        if optimizer.row_wise:  # one sum a row, of the mean of its squares
            weight, total = arrays["weight"], arrays["accumulator"]
            grads = grads + optimizer.l2 * weight[rows]
            total[rows] += (grads**2).mean(axis=1, keepdims=True)
            weight[rows] -= lr * grads / (np.sqrt(total[rows]) + optimizer.eps)
            return
        oracle.adagrad_step(
            arrays["weight"], arrays["accumulator"], rows, grads,
            lr=lr, epsilon=optimizer.eps, l2=optimizer.l2,
        )  # fmt: skip
