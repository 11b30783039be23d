"""Models of several tasks equal their equations, written as plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from tests.models.deep_inputs import assert_same_function, make_layout, make_tower
from widedeep import models
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError

HEADS = {"click": slice(0, 1), "rating": slice(1, 3)}  # one logit, and two
SMALL: dict[str, Any] = {"hidden_units": (4, 3), "task_units": (2,), "activation": "tanh"}


def through(layers: nn.Module, x: Tensor) -> Tensor:
    """Return what hidden layers make of one example."""
    for layer in getattr(layers, "layers", ()):
        x = torch.tanh(layer.weight @ x + layer.bias)
    return x


def gated(gate: Any, x: Tensor, experts: list[Tensor]) -> Tensor:
    """Return the mixture of experts' outputs that a gate makes."""
    scores = gate.output.weight @ through(gate.hidden, x)
    weights = scores.exp() / scores.exp().sum()
    return torch.stack([w * each for w, each in zip(weights, experts, strict=True)]).sum(0)


def logits(tasks: Any, inputs: list[Tensor]) -> Tensor:
    return torch.cat(
        [
            output.weight @ through(hidden, x)
            for output, hidden, x in zip(tasks.outputs, tasks.hidden, inputs, strict=True)
        ]
    )


def test_shared_bottom() -> None:
    tower: Any
    tower, inputs = make_tower(models.SharedBottom(**SMALL), heads=HEADS)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        shared = through(tower.bottom, torch.cat([x, numbers]))
        return logits(tower.tasks, [shared, shared])

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("gate_units", [(), (5,)])
def test_mmoe(gate_units: tuple[int, ...]) -> None:
    tower: Any
    tower, inputs = make_tower(models.MMoE(experts=3, gate_units=gate_units, **SMALL), heads=HEADS)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        x = torch.cat([x, numbers])
        experts = [through(expert, x) for expert in tower.experts.experts]
        return logits(tower.tasks, [gated(gate, x, experts) for gate in tower.gates])

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("levels", [1, 3])
def test_ple(levels: int) -> None:
    tower: Any
    tower, inputs = make_tower(
        models.PLE(levels=levels, shared_experts=2, task_experts=3, **SMALL), heads=HEADS
    )

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        click = rating = shared = torch.cat([x, numbers])
        for level in tower.levels:
            of_click, of_rating, of_all = (
                [through(expert, state) for expert in group.experts]
                for group, state in zip(level.experts, [click, rating, shared], strict=True)
            )
            click = gated(level.gates[0], click, of_click + of_all)
            rating = gated(level.gates[1], rating, of_rating + of_all)
            if level is not tower.levels[-1]:
                shared = gated(level.gates[2], shared, of_click + of_rating + of_all)
        return logits(tower.tasks, [click, rating])

    assert_same_function(tower, inputs, expected)


def test_esmm() -> None:
    tower: Any
    tower, inputs = make_tower(models.ESMM(**SMALL), heads=HEADS)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        x = torch.cat([x, numbers])
        return logits(tower.tasks, [through(bottom, x) for bottom in tower.bottoms])

    assert_same_function(tower, inputs, expected)


CHAIN = {"view": slice(0, 1), "click": slice(1, 3), "buy": slice(3, 4)}


@pytest.mark.parametrize("links", [None, {"buy": ("view",)}])
@pytest.mark.parametrize("task_units", [(), (2,)])
def test_dbmtl(links: Any, task_units: tuple[int, ...]) -> None:
    tower: Any
    small = {**SMALL, "task_units": task_units}
    tower, inputs = make_tower(models.DBMTL(links=links, link_units=(5,), **small), heads=CHAIN)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        shared = through(tower.bottom, torch.cat([x, numbers]))
        view, click, buy = (through(own, shared) for own in tower.own)
        if links is None:
            click = through(tower.linked[1], torch.cat([click, view]))
            buy = through(tower.linked[2], torch.cat([buy, view, click]))
        else:
            buy = through(tower.linked[2], torch.cat([buy, view]))
        states = zip(tower.outputs, (view, click, buy), strict=True)
        return torch.cat([output.weight @ state for output, state in states])

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: models.SharedBottom(hidden_units=()), r"got hidden_units=\[\], expected one or"),
        (lambda: models.MMoE(experts=0), "tower 'mmoe': got experts=0"),
        (lambda: models.MMoE(gate_units=(0,)), "tower 'mmoe': got gate_units=0"),
        (lambda: models.PLE(levels=0), "tower 'ple': got levels=0"),
        (lambda: models.ESMM(task_units=(-1,)), "tower 'esmm': got task_units=-1"),
        (lambda: models.DBMTL(links={"buy": "click"}), "tower 'dbmtl': got links"),
    ],
)
def test_options_outside_their_range(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ({"bye": ("click",)}, "got links with 'bye'; did you mean 'buy'"),
        ({"buy": ("clic",)}, "got links with 'clic'; did you mean 'click'"),
        ({"click": ("buy",)}, r"links.click = \['buy'\], expected labels before it: view"),
        ({"view": ("view",)}, "expected labels before it: it is the first"),
    ],
)
def test_links_name_earlier_labels(links: Any, says: str) -> None:
    layout = make_layout({"a": 3, "b": 3}, CHAIN)
    with pytest.raises(ConfigError, match=says):
        models.DBMTL(links=links).make(layout)


def two_tasks(rows: int, seed: int, *, rate: float) -> pa.Table:
    """A frequent label and a rare one that are the same function of two features' hidden signs."""
    signs_2I = np.random.default_rng(7).permuted(np.tile([-1, 1], (2, 20)), axis=1)
    rng = np.random.default_rng(seed)
    ids_NF = rng.integers(40, size=(rows, 2))
    likes_N = signs_2I[0][ids_NF[:, 0]] * signs_2I[1][ids_NF[:, 1]] > 0
    buys_N = likes_N & (rng.random(rows) < rate)
    columns = {"user": ids_NF[:, 0], "ad": ids_NF[:, 1]}
    return pa.table({**columns, "click": likes_N.astype(int), "buy": buys_N.astype(int)})


def rare_auc(label: Any, metric: str, train: pa.Table, test: pa.Table, deep: Any) -> float:
    spec = wd.FeatureSpec(label=label, features=wd.categorical("user", "ad"), wide=[])
    model = wd.WideDeep(wd.fit_schema(spec, train), deep=deep, embedding_dim=8)
    adam = wd.Adam(lr=0.01)
    trainer = wd.Trainer(model, deep=adam, dense=adam, batch_size=128, threads=1, progress=False)
    trainer.fit(train, epochs=12)
    return trainer.evaluate(test)[metric]


@pytest.mark.parametrize(
    "name",
    [
        "mmoe",
        "esmm",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("shared_bottom", "ple", "dbmtl")),
    ],
)
def test_a_rare_task_learns_from_a_frequent_one(name: str) -> None:
    train, test = two_tasks(1500, 1, rate=0.05), two_tasks(3000, 2, rate=0.5)
    deep = {"name": name, "hidden_units": (16,)}
    alone = rare_auc("buy", "auc", train, test, models.MLP(hidden_units=(16, 64)))
    assert rare_auc(["click", "buy"], "buy/auc", train, test, deep) > alone + 0.1


def make_esmm(label: list[str], **options: Any) -> wd.WideDeep:
    table = two_tasks(400, 1, rate=0.3)
    if "view" in label:
        table = table.append_column("view", table["click"])
    spec = wd.FeatureSpec(label=label, features=wd.categorical("user", "ad"))
    return wd.WideDeep(wd.fit_schema(spec, table), deep=models.ESMM(hidden_units=(4,)), **options)


def test_esmm_predicts_a_purchase_as_a_product(tmp_path: Path) -> None:
    model = make_esmm(["click", "buy"])
    trainer = wd.Trainer(model, batch_size=64, threads=1, progress=False)
    rows = two_tasks(400, 1, rate=0.3)
    trainer.fit(rows, epochs=3)
    predictions = trainer.predict(rows)
    batch = Transform(model.schema)(rows)
    click, buy = torch.sigmoid(model(batch)).T.numpy()
    np.testing.assert_allclose(predictions["click"], click, rtol=1e-5)
    np.testing.assert_allclose(predictions["buy"], click * buy, rtol=1e-5)
    assert np.abs(buy - 0.5).max() > 0.01
    scores = trainer.export(tmp_path / "bundle").score(rows)
    np.testing.assert_allclose(scores["buy"], click * buy, rtol=1e-5)


def test_esmm_asks_for_two_binary_labels_unless_heads_are_linked() -> None:
    says = "tower 'esmm': got the heads view binary, click binary, buy binary, expected two binary"
    with pytest.raises(ConfigError, match=says):
        make_esmm(["view", "click", "buy"])
    linked = {"buy": {"kind": "binary", "through": "click"}}
    heads = make_esmm(["view", "click", "buy"], heads=linked).heads
    assert [getattr(head, "through", None) for head in heads] == [None, None, "click"]
