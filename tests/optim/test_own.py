"""An optimizer of one's own moves the weights itself, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import widedeep as wd
from widedeep.errors import ConfigError
from widedeep.optim import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Optimizer,
    describe_optimizer,
    make_optimizer,
)
from widedeep.optim.base import Step

ROWS = [{"job": "abc"[i % 3], "x": i / 64, "y": i % 2} for i in range(64)]


def moved(weights: Tensor, rows_U: Tensor | None, grads_UD: Tensor, step: Step) -> None:
    at = slice(None) if rows_U is None else rows_U
    weights[at] -= step.lr * (grads_UD * step.grad_scale).sign()


@dataclass(frozen=True, kw_only=True)
class Sign(Optimizer):
    """From the contract itself."""

    lr: float = 0.125

    def start_state(self, weights: Tensor, state: Mapping[str, Tensor]) -> None:
        pass

    def update_tensors(
        self, weights: Tensor, state: Mapping[str, Tensor], rows_U: Tensor | None,
        grads_UD: Tensor, step: Step,
    ) -> int:  # fmt: skip
        moved(weights, rows_U, grads_UD, step)
        return 0


@dataclass(frozen=True, kw_only=True)
class Momentum(Optimizer, name="test-momentum"):
    """One equation in torch operations and a state that starts from zeros, nothing else."""

    lr: float = 0.125
    decay: float = 0.5
    state_names: ClassVar[tuple[str, ...]] = ("velocity",)

    def update_tensors(
        self, weights: Tensor, state: Mapping[str, Tensor], rows_U: Tensor | None,
        grads_UD: Tensor, step: Step,
    ) -> int:  # fmt: skip
        rows = slice(None) if rows_U is None else rows_U
        velocity = self.decay * state["velocity"][rows] + grads_UD * step.grad_scale
        state["velocity"][rows] = velocity
        weights[rows] -= step.lr * velocity
        return 0


class SignOfSGD(SGD):
    def update_tensors(self, weights, state, rows_U, grads_UD, step):  # type: ignore[no-untyped-def]
        moved(weights, rows_U, grads_UD, step)
        return 0


class SignOfAdagrad(Adagrad):
    update_tensors = SignOfSGD.update_tensors


class SignOfFTRL(FTRL):
    """Its base counts weights that are not zero, and learns rates by its kernel."""

    update_tensors = SignOfSGD.update_tensors


class Renamed(Adagrad):
    """Overrides nothing: its base's kernel does what it did."""


OWN: list[Any] = [
    Sign(lr=0.125),
    SignOfSGD(lr=0.125),
    SignOfAdagrad(lr=0.125),
    SignOfFTRL(lr=0.125, adapt=0.0),
]


def trainer(**options: Any) -> wd.Trainer:
    features = [*wd.categorical("job"), *wd.numeric("x")]
    schema = wd.fit_schema(wd.FeatureSpec(label="y", features=features), ROWS)
    model = wd.WideDeep(schema, hidden_units=[4], embedding_dim=2)
    return wd.Trainer(model, batch_size=64, threads=1, progress=False, **options)


@pytest.mark.parametrize("own", OWN, ids=lambda own: type(own).__name__)
@pytest.mark.parametrize("part", ["wide", "deep", "dense"])
def test_a_step_is_its_own(part: str, own: Any) -> None:
    made = trainer(**{part: own})
    tensors = {
        "wide": lambda: made.model.tables["wide"].weight,
        "deep": lambda: made.model.tables["deep/2"].weight,
        "dense": lambda: made.model.towers["mlp"].layers[0].weight.detach(),  # type: ignore[union-attr, index]
    }
    before = tensors[part]().clone()
    made.fit(ROWS)
    steps = (tensors[part]() - before).abs()
    assert steps.max() > 0
    torch.testing.assert_close(steps[steps > 0], torch.full_like(steps[steps > 0], 0.125))
    wide = made.model.wide_table
    assert wide is not None and wide.nonzero == int(torch.count_nonzero(wide.weight))


def test_one_that_overrides_nothing_is_its_base() -> None:
    assert Renamed.by_kernels and Adagrad.by_kernels and FTRL.by_kernels and Adam.by_kernels
    bits = []
    for optimizer in (Adagrad(), Renamed()):
        made = trainer(deep=optimizer)
        made.fit(ROWS, epochs=2)
        bits.append(made.logits(ROWS))
    np.testing.assert_array_equal(bits[0], bits[1])


def test_learned_rates_need_the_kernel_that_they_are_learned_with() -> None:
    with pytest.raises(ConfigError, match=r"SignOfFTRL.*adapt=0"):
        trainer(wide=SignOfFTRL())


def test_a_whole_parameter_is_seen_where_update_dense_says_so() -> None:
    shapes: list[tuple[int, ...]] = []

    class Whole(SGD):
        def update_dense(self, parameter, grad, state, **options):  # type: ignore[no-untyped-def]
            shapes.append(tuple(parameter.shape))

    made = trainer(dense=Whole(lr=0.1))
    before = made.model.bias.clone()
    made.fit(ROWS)
    assert sorted(shapes) == sorted(tuple(p.shape) for p in made.model.parameters())
    assert torch.equal(made.model.bias, before)


def test_it_resumes_and_exports(tmp_path: Path) -> None:
    made = trainer(wide=Sign(), deep=Sign(), checkpoints=tmp_path / "c")
    made.fit(ROWS, epochs=2)
    again = trainer(wide=Sign(), deep=Sign(), checkpoints=tmp_path / "c")
    again.fit(ROWS, epochs=2, resume=True)
    np.testing.assert_array_equal(again.logits(ROWS), made.logits(ROWS))
    scores = made.export(tmp_path / "b").score(ROWS)
    np.testing.assert_allclose(scores, made.predict(ROWS), atol=1e-6)


def test_one_of_torch_operations_alone_trains_resumes_and_warm_starts(tmp_path: Path) -> None:
    parts = {"wide": Momentum(), "deep": Momentum(decay=0.25), "dense": Momentum()}
    whole = trainer(**parts)
    whole.fit(ROWS, epochs=4)
    half = trainer(**parts, checkpoints=tmp_path / "c")
    half.fit(ROWS, epochs=2)
    tables = {name: t.named_state() for name, t in half.model.tables.items()}
    assert all(bool(state.any()) for t in tables.values() for state in t.values())
    again = trainer(**parts, checkpoints=tmp_path / "c")
    again.fit(ROWS, epochs=4, resume=True)
    np.testing.assert_array_equal(again.logits(ROWS), whole.logits(ROWS))
    warm = trainer(**parts)
    report = warm.warm_start(tmp_path / "c")
    assert {tensor.optimizer for tensor in report.tensors} == {"carried"}
    for name, table in warm.model.tables.items():
        for key, tensor in table.named_state().items():
            assert torch.equal(tensor, again.model.tables[name].named_state()[key]), key
    np.testing.assert_array_equal(warm.logits(ROWS), again.logits(ROWS))


def test_a_registered_one_is_described_and_made_by_name() -> None:
    table = {"optimizer": "test-momentum", "lr": 0.125, "decay": 0.25}
    assert make_optimizer(table) == Momentum(decay=0.25)
    assert describe_optimizer(Momentum(decay=0.25)) == table


@pytest.mark.parametrize("change", [None, NotImplemented])
def test_rows_move_once_on_a_device(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's kernel that returns nothing has moved them; NotImplemented: torch must."""
    calls = []
    module = SimpleNamespace(adagrad_rows=lambda *_, **__: calls.append("kernel") or change)
    monkeypatch.setattr("widedeep.optim.base.triton_kernels", lambda device: module)
    monkeypatch.setattr(Adagrad, "update_tensors", lambda *_: calls.append("torch") or 0)
    weights = torch.zeros(2, 1, device="meta")
    assert Adagrad().update_rows(weights, {"accumulator": weights}, None, weights) == 0
    assert calls == (["kernel"] if change is None else ["kernel", "torch"])
