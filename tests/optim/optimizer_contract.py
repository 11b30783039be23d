"""What every optimizer promises, tested once for all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles import ftrl_adagrad_float64 as oracle
from widedeep.errors import ConfigError
from widedeep.optim import Optimizer, describe_optimizer, make_optimizer

ROWS, STEPS = 12, 40


class OptimizerContract:
    """Inherit, give `cases` and `oracle_step`; pytest runs every test for every case."""

    cases: tuple[Optimizer, ...]
    wrong: tuple[dict[str, Any], ...]

    def oracle_step(
        self,
        optimizer: Any,
        arrays: dict[str, np.ndarray],
        rows: np.ndarray,
        grads: np.ndarray,
        step: int,
        lr: float,
    ) -> None:
        """Move float64 arrays in place."""
        raise NotImplementedError

    def start(self, optimizer: Optimizer, width: int, seed: int = 0) -> dict[str, Tensor]:
        """Weights that are not zero and their first state, in one record a row."""
        rng = np.random.default_rng(seed)
        weights = torch.from_numpy(rng.normal(size=(ROWS, width)).astype(np.float32))
        weights[rng.random((ROWS, width)) < 0.4] = 0
        parts = {"weight": weights, **optimizer.initial_state(weights)}
        record = torch.cat([*parts.values(), torch.ones(ROWS, 3)], dim=1)
        ends = np.cumsum([part.shape[1] for part in parts.values()]).tolist()
        return {
            name: record[:, end - part.shape[1] : end]
            for (name, part), end in zip(parts.items(), ends, strict=True)
        }

    def batches(self, width: int, seed: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        """Distinct rows and gradients, batch after batch; the last two rows never move."""
        rng = np.random.default_rng(seed)
        found = []
        for _ in range(STEPS):
            rows = rng.permutation(ROWS - 2)[: rng.integers(0, ROWS - 1)]
            grads = rng.normal(size=(len(rows), width)) * rng.choice([0.01, 1.0], (len(rows), 1))
            found.append((rows.astype(np.int64), grads.astype(np.float32)))
        return found

    def run(
        self,
        optimizer: Optimizer,
        parts: dict[str, Tensor],
        batches: list[tuple[np.ndarray, np.ndarray]],
        *,
        first: int = 1,
        **options: Any,
    ) -> None:
        state = {name: part for name, part in parts.items() if name != "weight"}
        for step, (rows, grads) in enumerate(batches, start=first):
            optimizer.update_rows(
                parts["weight"], state, torch.from_numpy(rows), torch.from_numpy(grads),
                step=step, **options,
            )  # fmt: skip

    @pytest.mark.parametrize("width", [1, 7, 16])
    def test_equals_the_float64_equations(self, width: int) -> None:
        for optimizer in self.cases:
            for lr, scale in ((None, 1.0), (0.03, 0.5)):
                parts = self.start(optimizer, width)
                exact = {name: part.double().numpy() for name, part in parts.items()}
                batches = self.batches(width)
                self.run(optimizer, parts, batches, lr=lr, grad_scale=scale)
                for step, (rows, grads) in enumerate(batches, start=1):
                    self.oracle_step(
                        optimizer, exact, rows, grads.astype(np.float64) * scale, step,
                        optimizer.lr if lr is None else lr,
                    )  # fmt: skip
                for name, part in parts.items():
                    error = np.abs(part.numpy() - exact[name])
                    size = np.maximum(1.0, np.abs(exact[name]).max())
                    assert error.max() <= 1e-6 * size, (optimizer, name)

    @pytest.mark.parametrize("width", [1, 7])
    def test_tensors_equal_kernels(self, width: int) -> None:
        for optimizer in self.cases:
            kernel, twin = self.start(optimizer, width), self.start(optimizer, width)
            state = {name: part for name, part in twin.items() if name != "weight"}
            for step, (rows, grads) in enumerate(self.batches(width), start=1):
                self.run(optimizer, kernel, [(rows, grads)], first=step, grad_scale=0.5)
                before = torch.count_nonzero(twin["weight"])
                change = optimizer.update_tensors(
                    twin["weight"], state, torch.from_numpy(rows), torch.from_numpy(grads),
                    _step(optimizer, step),
                )  # fmt: skip
                if optimizer.counts_nonzero:
                    assert change == torch.count_nonzero(twin["weight"]) - before
            for name, part in twin.items():
                torch.testing.assert_close(part, kernel[name], rtol=2e-6, atol=2e-6)

    def test_untouched_rows_and_neighbours_keep_their_bits(self) -> None:
        for optimizer in self.cases:
            parts = self.start(optimizer, 3)
            old = {name: part.clone() for name, part in parts.items()}
            self.run(optimizer, parts, self.batches(3))
            for name, part in parts.items():
                assert torch.equal(part[ROWS - 2 :], old[name][ROWS - 2 :])
                assert not torch.equal(part, old[name])

    def test_all_rows_equal_a_dense_update(self) -> None:
        for optimizer in self.cases:
            sparse, dense = self.start(optimizer, 5), self.start(optimizer, 5)
            dense = {name: part.contiguous() for name, part in dense.items()}
            state = {name: part for name, part in dense.items() if name != "weight"}
            rng = np.random.default_rng(3)
            for step in range(1, 6):
                grads = rng.normal(size=(ROWS, 5)).astype(np.float32)
                self.run(optimizer, sparse, [(np.arange(ROWS), grads)], first=step)
                optimizer.update_dense(
                    dense["weight"], torch.from_numpy(grads), state, step=step, threads=2
                )
            for name, part in dense.items():
                assert torch.equal(part, sparse[name])

    def test_a_bias_moves_as_a_row(self) -> None:
        for optimizer in self.cases:
            bias, row = torch.ones(4), torch.ones(1, 4)
            states = optimizer.initial_state(bias), optimizer.initial_state(row)
            grad = torch.tensor([1.0, -2.0, 0.0, 3.0])
            optimizer.update_dense(bias, grad, states[0])
            optimizer.update_rows(row, states[1], None, grad[None])
            assert torch.equal(bias, row[0])
            assert not torch.equal(bias, torch.ones(4))

    def test_resuming_equals_not_stopping(self) -> None:
        for optimizer in self.cases:
            whole, first = self.start(optimizer, 2), self.start(optimizer, 2)
            batches = self.batches(2)
            self.run(optimizer, whole, batches)
            self.run(optimizer, first, batches[:17])
            second = {name: torch.from_numpy(p.numpy().copy()) for name, p in first.items()}
            again = make_optimizer(describe_optimizer(optimizer))
            self.run(again, second, batches[17:], first=18)
            for name, part in whole.items():
                assert torch.equal(part, second[name])

    def test_threads_do_not_matter(self) -> None:
        for optimizer in self.cases:
            one, three = self.start(optimizer, 4), self.start(optimizer, 4)
            self.run(optimizer, one, self.batches(4), threads=1)
            self.run(optimizer, three, self.batches(4), threads=3)
            for name, part in one.items():
                assert torch.equal(part, three[name])

    def test_the_first_state_keeps_the_weights(self) -> None:
        for optimizer in self.cases:
            parts = self.start(optimizer, 3)
            old = parts["weight"].clone()
            rows = np.arange(ROWS)
            self.run(optimizer, parts, [(rows, np.zeros((ROWS, 3), np.float32))])
            # FTRL's l2 is no pull of the first state; its shrinkage, and the decay of others, are.
            decay = getattr(optimizer, "l2_shrinkage", getattr(optimizer, "l2", 0.0))
            decay += optimizer.lr * getattr(optimizer, "weight_decay", 0.0)
            torch.testing.assert_close(parts["weight"], old, rtol=1e-5 + decay, atol=0)

    def test_a_description_makes_the_same_optimizer(self) -> None:
        for optimizer in self.cases:
            assert make_optimizer(describe_optimizer(optimizer)) == optimizer

    def test_values_outside_their_range_are_named(self) -> None:
        kind = type(self.cases[0])
        for wrong in self.wrong:
            (name,) = wrong
            with pytest.raises(ConfigError, match=f"{kind.__name__}: got {name}="):
                kind(**wrong)
        with pytest.raises(dataclasses.FrozenInstanceError):
            self.cases[0].lr = 1.0


def _step(optimizer: Optimizer, number: int) -> Any:
    from widedeep.optim.base import Step

    return Step(lr=optimizer.lr, grad_scale=0.5, number=number, threads=1)


__all__ = ["OptimizerContract", "oracle"]
