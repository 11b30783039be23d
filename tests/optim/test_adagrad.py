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
    )
    wrong = (
        {"lr": -1.0},
        {"lr": True},
        {"eps": -1e-7},
        {"initial_accumulator": -0.1},
        {"l2": -0.1},
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
        oracle.adagrad_step(
            arrays["weight"], arrays["accumulator"], rows, grads,
            lr=lr, epsilon=optimizer.eps, l2=optimizer.l2,
        )  # fmt: skip
