"""Lazy RMSProp: the contract, and PyTorch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.optim.optimizer_contract import OptimizerContract, oracle
from widedeep.optim import RMSProp


class TestRMSProp(OptimizerContract):
    cases = (
        RMSProp(lr=0.01),
        RMSProp(lr=0.01, decay=0.5, momentum=0.8, eps=1e-3, initial_accumulator=1.0),
        RMSProp(lr=0.01, momentum=0.5, eps=1e-2, centered=True, convention="tensorflow"),
    )
    wrong = (
        {"lr": 0.0},
        {"decay": 1.0},
        {"momentum": -0.1},
        {"eps": 0.0},
        {"initial_accumulator": -1.0},
        {"centered": "yes"},
        {"convention": "keras"},
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
        oracle.rmsprop_step(
            arrays["weight"], arrays, rows, grads, lr=lr, decay=optimizer.decay,
            momentum=optimizer.momentum, epsilon=optimizer.eps, centered=optimizer.centered,
            epsilon_inside=optimizer.convention == "tensorflow",
        )  # fmt: skip


@pytest.mark.parametrize(("momentum", "centered"), [(0.0, False), (0.9, False), (0.9, True)])
def test_equals_torchs(momentum: float, centered: bool) -> None:
    rmsprop = RMSProp(lr=0.05, decay=0.99, eps=1e-8, momentum=momentum, centered=centered)
    weight = torch.linspace(-1, 1, 8).view(4, 2).clone()
    parameter = torch.nn.Parameter(weight.clone())
    theirs = torch.optim.RMSprop([parameter], lr=0.05, momentum=momentum, centered=centered)
    state = rmsprop.initial_state(weight)
    for step in range(1, 8):
        grads = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
        rmsprop.update_dense(weight, grads, state, step=step)
        parameter.grad = grads
        theirs.step()
    torch.testing.assert_close(weight, parameter.detach(), rtol=1e-5, atol=1e-5)
