"""FTRL: the contract, its two conventions, and weights carried over."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.optim.optimizer_contract import OptimizerContract, oracle
from widedeep.optim import FTRL, Adagrad


class TestFTRL(OptimizerContract):
    cases = (
        FTRL(),
        FTRL(lr=0.1, l1=1.0),
        FTRL(lr=0.3, l1=0.5, l2=0.2, beta=0.0, initial_accumulator=0.1),
        FTRL(lr=0.2, l1=0.3, l2=0.2, beta=0.5, convention="tensorflow", initial_accumulator=0.2),
        FTRL(lr=0.2, l1=0.3, lr_power=-0.7, l2_shrinkage=0.01, initial_accumulator=0.1),
        FTRL(lr=0.2, l1=0.3, lr_power=0.0),
    )
    wrong = (
        {"lr": 0.0}, {"lr": "fast"}, {"l1": -1.0}, {"l2": float("nan")}, {"beta": -0.1},
        {"initial_accumulator": -1.0}, {"lr_power": 0.5}, {"l2_shrinkage": -1.0},
        {"convention": "keras"},
    )  # fmt: skip

    def oracle_step(
        self,
        optimizer: Any,
        arrays: dict[str, np.ndarray],
        rows: np.ndarray,
        grads: np.ndarray,
        step: int,
        lr: float,
    ) -> None:
        oracle.ftrl_step(
            arrays["weight"], arrays["n"], arrays["z"], rows, grads,
            lr=lr, l1=optimizer.l1, l2=optimizer.l2, beta=optimizer.beta,
            lr_power=optimizer.lr_power, l2_shrinkage=optimizer.l2_shrinkage,
            l2_convention=optimizer.convention,
        )  # fmt: skip


def test_l1_keeps_a_weight_at_zero_until_its_gradients_agree() -> None:
    ftrl = FTRL(lr=1.0, l1=1.0, beta=1.0)
    weight, grad = torch.zeros(1, 1), torch.full((1, 1), 0.4)
    state = ftrl.initial_state(weight)
    found = []
    for _ in range(4):
        found.append(int(ftrl.update_rows(weight, state, torch.tensor([0]), grad)))
    assert found == [0, 0, 1, 0]  # |z| is 0.4, 0.8, 1.2 > l1, 1.6
    back = int(ftrl.update_rows(weight, state, torch.tensor([0]), -grad * 2))
    assert back == -1 and float(weight) == 0.0 and not np.signbit(float(weight))


def test_mcmahans_l2_is_twice_tensorflows() -> None:
    one = FTRL(l2=0.6, l1=0.1)
    other = FTRL(l2=0.3, l1=0.1, convention="tensorflow")
    weights = torch.zeros(5, 1), torch.zeros(5, 1)
    states = one.initial_state(weights[0]), other.initial_state(weights[1])
    for seed in range(10):
        grad = torch.randn(5, 1, generator=torch.Generator().manual_seed(seed))
        one.update_rows(weights[0], states[0], None, grad)
        other.update_rows(weights[1], states[1], None, grad)
    assert torch.equal(weights[0], weights[1])
    assert int(torch.count_nonzero(weights[0])) > 0


def test_without_regularisation_it_is_adagrad() -> None:
    ftrl = FTRL(l1=0.0, beta=0.0, initial_accumulator=0.1)
    adagrad = Adagrad(lr=0.1, initial_accumulator=0.1, eps=0.0)
    weights = torch.zeros(5, 2), torch.zeros(5, 2)
    states = ftrl.initial_state(weights[0]), adagrad.initial_state(weights[1])
    for seed in range(30):
        grad = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
        ftrl.update_rows(weights[0], states[0], None, grad)
        adagrad.update_rows(weights[1], states[1], None, grad)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_carried_weights_are_forgotten_without_their_z() -> None:
    ftrl = FTRL(lr=0.1, l1=0.5, l2=0.1)
    weight = torch.tensor([[0.8], [-0.3], [0.0]])
    state = ftrl.initial_state(weight)
    exact = oracle.ftrl_linear_for(
        weight.double().numpy(), np.zeros((3, 1)), lr=0.1, l1=0.5, l2=0.1, beta=1.0,
        l2_convention="mcmahan",
    )  # fmt: skip
    np.testing.assert_allclose(state["z"].numpy(), exact, rtol=1e-6)
    kept, forgotten, nothing = weight.clone(), weight.clone(), torch.zeros(3, 1)
    ftrl.update_rows(kept, state, None, nothing)
    torch.testing.assert_close(kept, weight)
    ftrl.update_rows(forgotten, {"z": torch.zeros(3, 1), "n": torch.zeros(3, 1)}, None, nothing)
    assert not forgotten.any()
