"""TabM is an ensemble of perceptrons, each trained by its own loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import widedeep as wd
from tests.models.deep_inputs import assert_same_function, make_tower
from widedeep import models
from widedeep.data.transform import Transform
from widedeep.errors import ConfigError
from widedeep.training.dense import DenseUpdate
from widedeep.training.step import TrainStep


@pytest.mark.parametrize("n_logits", [1, 2])
def test_members_are_perceptrons_of_scaled_matrices(n_logits: int) -> None:
    tower: Any
    config = models.TabM(members=3, hidden_units=(4, 2), activation="tanh")
    tower, inputs = make_tower(config, n_logits=n_logits)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        members = []
        for m in range(3):
            hidden = torch.cat([x, numbers])
            for layer in tower.layers:
                weight = torch.diag(layer.s[m]) @ layer.weight @ torch.diag(layer.r[m])
                hidden = torch.tanh(weight @ hidden + layer.bias[m])
            members.append(hidden @ tower.output[m])
        return torch.stack(members)

    assert_same_function(tower, inputs, expected)


def test_members_part_at_the_start_by_signs_alone() -> None:
    tower: Any
    torch.manual_seed(0)
    layout = wd_model(models.TabM(members=4, hidden_units=(8, 4))).layout
    tower = models.TabM(members=4, hidden_units=(8, 4)).make(layout)
    first, second = tower.layers
    assert set(first.r.unique().tolist()) == {-1.0, 1.0}
    assert len(first.r.unique(dim=0)) == 4
    assert all((scale == 1).all() for scale in (first.s, second.r, second.s))


RNG = np.random.default_rng(0)
ROWS = pa.table(
    {
        "a": [f"a{i}" for i in RNG.integers(0, 5, 40)],
        "b": [f"b{i}" for i in RNG.integers(0, 3, 40)],
        "click": RNG.integers(0, 2, 40),
        "price": RNG.normal(size=40),
        "weight": RNG.uniform(0.5, 2.0, 40),
    }
)


def wd_model(*deep: models.TowerConfig, labels: object = "click", weight: str | None = None) -> Any:
    spec = wd.FeatureSpec(label=labels, weight=weight, features=wd.categorical("a", "b"))  # type: ignore[arg-type]
    schema = wd.fit_schema(spec, ROWS)
    head = None if labels == "click" else {"click": "binary", "price": "regression"}
    return wd.WideDeep(schema, deep=list(deep), head=head, embedding_std=0.3)  # type: ignore[arg-type]


def test_the_loss_is_the_mean_of_the_members_losses() -> None:
    deep = models.TabM(members=3, hidden_units=(4,)), models.FM()
    model = wd_model(*deep, labels=["click", "price"], weight="weight")
    dense = wd.SGD(lr=0.1)
    step = TrainStep(model, wide=wd.SGD(lr=0.1), deep=wd.SGD(lr=0.1), dense=dense)
    assert isinstance(step.dense, DenseUpdate)
    batch = Transform(model.schema)(ROWS)
    gathered = step.group_and_gather(batch)
    result = step.dense_pass(batch, gathered)
    assert gathered.inputs is not None
    concat_BX = gathered.inputs.concat_BX.clone().requires_grad_()
    inputs = models.DeepInput(concat_BX, model.layout.columns, concat_BX[:, model.layout.dense])
    base_BC = model.wide_logits(batch, bias=False) + model.bias
    members_BMC = (
        base_BC[:, None] + model.towers["tabm"](inputs) + model.towers["fm"](inputs)[:, None]
    )
    assert batch.labels_BL is not None and batch.weight_B is not None
    click_B, price_B = torch.from_numpy(batch.labels_BL).unbind(1)
    losses_BM = torch.stack(
        [
            F.binary_cross_entropy_with_logits(one[:, 0], click_B, reduction="none")
            + (one[:, 1] - price_B) ** 2
            for one in members_BMC.unbind(1)
        ],
        dim=1,
    )
    torch.testing.assert_close(result.losses_B, losses_BM.mean(dim=1).detach())
    total = (losses_BM.mean(dim=1) * torch.from_numpy(batch.weight_B)).sum()
    tower = list(model.towers["tabm"].parameters())
    gradients = torch.autograd.grad(total, [concat_BX, model.bias, *tower])
    assert result.grad_BX is not None
    own = [result.grad_BX, model.bias.grad, *(parameter.grad for parameter in tower)]
    for gradient, expected in zip(own, gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.grad_BC.sum(dim=0), gradients[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(batch), members_BMC.mean(dim=1).detach())


def test_towers_of_other_numbers_of_members_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"numbers of members, \{'tabm': 2, 'tabm_2': 3\}"):
        wd_model(*(models.TabM(members=m, hidden_units=(4,)) for m in (2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members=0"),
        ({"hidden_units": ()}, "got no hidden_units"),
        ({"dropout": 1.0}, "dropout=1.0"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.TabM(**options)
