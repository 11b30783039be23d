"""The seams: any tower, any heads, one table for two features; each equals dense autograd."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from tests.dense_reference import DenseReference
from widedeep.data.batch import Batch
from widedeep.models.tower import DeepInput, DeepLayout
from widedeep.training.config import TrainConfig
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
    config = TrainConfig(loss_reduction="sum")
    return TrainStep(model, config, wide=sgd, deep=sgd, dense=sgd, threads=2)


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
    trainer = wd.Trainer(model, batch_size=32, threads=1, progress=False)
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


# ---- seeds --------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Draws from every global generator, when it is made and when it is trained."""

    def __init__(self, layout: DeepLayout) -> None:
        super().__init__()
        self.linear = nn.Linear(layout.width, 6)
        self.start = nn.Parameter(torch.full((6,), random.random() + float(np.random.rand())))

    def forward(self, inputs: DeepInput) -> Tensor:
        out: Tensor = nn.functional.dropout(self.linear(inputs.concat_BX), 0.5, self.training)
        noise = random.random() + float(np.random.rand()) if self.training else 1.0
        return torch.tanh(out) * noise + self.start


def global_states() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.random.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), *rest


def dropping(seed: int = 3, **options: object) -> wd.Trainer:
    spec = wd.FeatureSpec(label="click", features=[*wd.categorical("job"), *wd.numeric("age")])
    model = wd.WideDeep(
        wd.fit_schema(spec, rows(256, 1)), embedding_dim=2, towers={"own": Dropping}, seed=seed
    )
    options |= {"batch_size": 32, "schedule": "constant"}
    return wd.Trainer(model, threads=1, progress=False, **options)  # type: ignore[arg-type]


def bits(trainer: wd.Trainer) -> bytes:
    return trainer.logits(rows(256, 1)).tobytes()


def test_equal_seeds_make_equal_towers_whatever_was_drawn_before() -> None:
    first = bits(dropping())
    torch.rand(7), random.random(), np.random.rand(2)
    assert bits(dropping()) == first
    assert bits(dropping(seed=4)) != first


def test_making_and_training_leave_the_callers_generators_alone(tmp_path: Path) -> None:
    before = global_states()
    trainer = dropping(checkpoints=tmp_path)
    trainer.fit(rows(256, 1), epochs=2, valid=rows(64, 2), early_stopping=1)
    trainer.predict(rows(64, 2))
    trainer.fit_stream([("a", rows(64, 3))])
    wd.WideDeep(make_schema(), hidden_units=[4], dropout=0.5)
    assert global_states() == before


def test_training_does_not_depend_on_who_draws_meanwhile() -> None:
    class Drawing:
        def on_step(self, figures: object) -> None:
            torch.rand(3), random.random(), np.random.rand()

    quiet, noisy = dropping(), dropping(callbacks=[Drawing()])
    quiet.fit(rows(256, 1), epochs=2)
    torch.manual_seed(123)
    noisy.fit(rows(256, 1), epochs=2, valid=rows(64, 2), eval_every=3)
    assert bits(noisy) == bits(quiet)
    other = dropping(seed=3)
    other.step.config = dataclasses.replace(other.step.config, seed=1)
    other.fit(rows(256, 1), epochs=2)
    assert bits(other) != bits(quiet)


@pytest.mark.parametrize("stop", [1, 5, 8, 11])
def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(stop: int, tmp_path: Path) -> None:
    whole = dropping()
    whole.fit(rows(256, 1), epochs=2)
    dropping(checkpoints=tmp_path).fit(rows(256, 1), epochs=2, steps=stop)
    torch.rand(5)
    resumed = dropping(checkpoints=tmp_path)
    resumed.fit(rows(256, 1), epochs=2, resume=True)
    assert bits(resumed) == bits(whole)
