"""SGD: the contract."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.optim.optimizer_contract import OptimizerContract, oracle
from widedeep.optim import SGD


class TestSGD(OptimizerContract):
    cases = (
        SGD(),
        SGD(lr=0.5),
    )
    wrong = (
        {"lr": 0.0},
        {"lr": float("inf")},
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
        oracle.sgd_step(arrays["weight"], rows, grads, lr=lr)
