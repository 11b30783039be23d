"""Lazy Adam: the contract, and PyTorch's own sparse Adam."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.optim.optimizer_contract import OptimizerContract, oracle
from widedeep.optim import Adam


class TestAdam(OptimizerContract):
    cases = (
        Adam(lr=0.01),
        Adam(lr=0.1, betas=(0.5, 0.9), eps=1e-3),
        Adam(lr=0.01, weight_decay=2.0),
    )
    wrong = (
        {"lr": 0.0},
        {"betas": (0.9, 1.0)},
        {"betas": 0.9},
        {"eps": 0.0},
        {"weight_decay": -1.0},
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
        beta1, beta2 = optimizer.betas
        oracle.lazy_adam_step(
            arrays["weight"], arrays["mean"], arrays["square"], rows, grads,
            step=step, lr=lr, beta1=beta1, beta2=beta2, epsilon=optimizer.eps,
            weight_decay=optimizer.weight_decay,
        )  # fmt: skip


def test_equals_torchs_sparse_adam() -> None:
    adam = Adam(lr=0.05)
    weight = torch.linspace(-1, 1, 8).view(4, 2).clone()
    parameter = torch.nn.Parameter(weight.clone())
    theirs = torch.optim.SparseAdam([parameter], lr=0.05)
    state = adam.initial_state(weight)
    for step in range(1, 8):
        rows = torch.tensor([step % 4, (step + 1) % 4]).sort().values
        grads = torch.randn(2, 2, generator=torch.Generator().manual_seed(step))
        adam.update_rows(weight, state, rows, grads, step=step)
        parameter.grad = torch.sparse_coo_tensor(
            rows[None], grads, (4, 2), is_coalesced=True, check_invariants=True
        )
        theirs.step()
    torch.testing.assert_close(weight, parameter.detach(), rtol=1e-6, atol=1e-6)


def test_equals_torchs_adam_with_decoupled_decay() -> None:
    adam = Adam(lr=0.05, weight_decay=0.7)
    weight = torch.linspace(-1, 1, 8).view(4, 2).clone()
    parameter = torch.nn.Parameter(weight.clone())
    theirs = torch.optim.AdamW([parameter], lr=0.05, weight_decay=0.7)
    state = adam.initial_state(weight)
    for step in range(1, 8):
        grads = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
        adam.update_dense(weight, grads, state, step=step)
        parameter.grad = grads
        theirs.step()
    torch.testing.assert_close(weight, parameter.detach(), rtol=1e-6, atol=1e-6)
