"""SGD: the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.optim.optimizer_contract import OptimizerContract, oracle
from widedeep.optim import SGD


class TestSGD(OptimizerContract):
    cases = (
        SGD(),
        SGD(lr=0.5),
        SGD(lr=0.02, momentum=0.9),
        SGD(lr=0.02, momentum=0.7, nesterov=True),
    )
    wrong = (
        {"lr": 0.0},
        {"lr": float("inf")},
        {"momentum": 1.0},
        {"nesterov": True},
        {"nesterov": 1},
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
        if optimizer.momentum:
            options = {"momentum": optimizer.momentum, "nesterov": optimizer.nesterov}
            weight, velocity = arrays["weight"], arrays["velocity"]
            oracle.momentum_step(weight, velocity, rows, grads, lr=lr, **options)
        else:
            oracle.sgd_step(arrays["weight"], rows, grads, lr=lr)


@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_torchs_momentum(nesterov: bool) -> None:
    sgd = SGD(lr=0.05, momentum=0.9, nesterov=nesterov)
    weight = torch.linspace(-1, 1, 8).view(4, 2).clone()
    parameter = torch.nn.Parameter(weight.clone())
    theirs = torch.optim.SGD([parameter], lr=0.05, momentum=0.9, nesterov=nesterov)
    state = sgd.initial_state(weight)
    for step in range(1, 8):
        grads = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
        sgd.update_dense(weight, grads, state, step=step)
        parameter.grad = grads
        theirs.step()
    torch.testing.assert_close(weight, parameter.detach(), rtol=1e-6, atol=1e-6)
