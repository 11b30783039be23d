"""The seams: any tower, any heads, one table for two features; each equals dense autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from tests.dense_reference import DenseReference
from widedeep.data.batch import Batch
from widedeep.deep import DeepInput
from widedeep.deep_layout import DeepLayout
from widedeep.training.dense_update import DenseUpdate
from widedeep.training.step import TrainStep

LR = 0.125


class FactorizationMachine(nn.Module):
    """Rendle 2010: the sum of all pairwise products of embeddings, in linear time."""

    def __init__(self, layout: DeepLayout) -> None:
        super().__init__()
        self.names = [name for name in layout.dims if name in layout.columns]

    def forward(self, inputs: DeepInput) -> Tensor:
        fields = torch.stack(
            [inputs.concat_BX[:, inputs.layout[name]] for name in self.names], dim=1
        )
        square_of_sum, sum_of_squares = fields.sum(1).square(), fields.square().sum(1)
        return 0.5 * (square_of_sum - sum_of_squares)


class TwoTask(nn.Module):
    """A shared layer and one of its own for each task."""

    def __init__(self, layout: DeepLayout) -> None:
        super().__init__()
        self.shared = nn.Linear(layout.width, 8)
        self.own = nn.ModuleList(nn.Linear(8, 4) for _ in range(2))

    def forward(self, inputs: DeepInput) -> Tensor:
        shared = torch.tanh(self.shared(inputs.concat_BX))
        return torch.cat([torch.tanh(layer(shared)) for layer in self.own], dim=1)


class TargetAttention(nn.Module):
    """Zhou et al. 2018: the history, weighted by its likeness to the candidate."""

    def forward(self, inputs: DeepInput) -> Tensor:
        target = inputs.concat_BX[:, inputs.layout["item"]]
        history = inputs.sequences["history"]
        example = torch.repeat_interleave(torch.arange(len(target)), history.offsets.diff())
        likeness = torch.sigmoid((history.values_ND * target[example]).sum(1, keepdim=True))
        pooled = torch.zeros_like(target).index_add(0, example, likeness * history.values_ND)
        return torch.cat([pooled, target], dim=1)


def rows(count: int, seed: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    made: list[dict[str, object]] = []
    for _ in range(count):
        job, item, age = int(rng.integers(5)), int(rng.integers(6)), float(rng.normal())
        made.append(
            {
                "age": age,
                "job": "abcde"[job],
                "item": item,
                "history": rng.integers(6, size=rng.integers(4)).tolist(),
                "weight": float(rng.integers(1, 4)),
                "click": int((job + item) % 2),
                "buy": int(item > 2),
            }
        )
    return made


def make_schema(label: object = "click") -> wd.Schema:
    spec = wd.FeatureSpec(
        label=label,
        weight="weight",
        features=[
            wd.numeric("age", transform="none"),
            wd.categorical("job", embedding_dim=4, combiner="sqrtn"),
            wd.categorical("item", embedding_dim=4, table="item"),
            wd.categorical("history", embedding_dim=4, table="item", combiner=None),
            wd.crossed("job", "item"),
        ],
    )
    return wd.fit_schema(spec, rows(200, 0))


def sgd_step(model: wd.WideDeep) -> TrainStep:
    sgd = wd.SGD(lr=LR)
    dense = DenseUpdate(dict(model.named_parameters()), sgd)
    return TrainStep(model, wide=sgd, deep=sgd, dense=dense, loss_reduction="sum", threads=2)


def encode(model: wd.WideDeep, count: int, seed: int) -> Batch:
    import pyarrow as pa

    from widedeep.data.transform import Transform

    return Transform(model.schema)(pa.Table.from_pylist(rows(count, seed)))


TOWERS: dict[str, Callable[[DeepLayout], nn.Module] | None] = {
    "mlp": None,
    "fm": FactorizationMachine,
    "two_task": TwoTask,
    "attention": lambda layout: TargetAttention(),
}


@pytest.mark.parametrize("tower", TOWERS)
def test_steps_equal_dense_autograd(tower: str) -> None:
    label = ["click", "buy"] if tower == "two_task" else "click"
    make = TOWERS[tower]
    model = wd.WideDeep(
        make_schema(label),
        hidden_units=[8] if make is None else None,
        towers=None if make is None else {tower: make},
        seed=2,
    )
    step = sgd_step(model)
    for seed in range(3):
        batch = encode(model, 12, seed)
        reference = DenseReference(model)
        model.zero_grad(set_to_none=True)
        reference.loss(batch).backward()
        wanted = {name: moved(p) for name, p in model.named_parameters()}
        tables = {name: moved(p) for name, p in reference.tables.items()}
        wide = {name: moved(p) for name, p in reference.wide.items()}
        step(batch)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-5, atol=1e-6)
        assert model.wide_table is not None
        for name, weight in model.wide_table.named_weights().items():
            torch.testing.assert_close(weight, wide[name], rtol=1e-5, atol=1e-6)
        for table in model.deep_tables.values():
            for name, weight in table.named_weights().items():
                torch.testing.assert_close(weight, tables[name], rtol=1e-5, atol=1e-6)


def moved(parameter: Tensor) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return (parameter - LR * gradient).detach()


@pytest.mark.parametrize("tower", TOWERS)
def test_training_lowers_the_loss(tower: str) -> None:
    label = ["click", "buy"] if tower == "two_task" else "click"
    make = TOWERS[tower]
    model = wd.WideDeep(
        make_schema(label),
        hidden_units=[8] if make is None else None,
        towers=None if make is None else {tower: make},
    )
    trainer = wd.Trainer(model, batch_size=32, progress=False)
    history = trainer.fit(rows(200, 0), epochs=30)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_forward_equals_the_dense_reference() -> None:
    model = wd.WideDeep(make_schema(), hidden_units=[8, 4], wide_combiner="mean")
    assert model.wide_table is not None
    for weight in model.wide_table.named_weights().values():
        weight.uniform_(-1, 1)
    batch = encode(model, 9, 1)
    torch.testing.assert_close(
        model(batch), DenseReference(model).logits(batch).detach(), rtol=1e-5, atol=1e-6
    )
