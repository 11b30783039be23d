"""Activations by name and with options: what trains them, what serves them, mistakes in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import widedeep as wd
from widedeep.errors import ConfigError
from widedeep.kernels.torch_layers import BiasedBatchNorm
from widedeep.models import MLP, registered_towers
from widedeep.models.config import ModelConfig
from widedeep.models.layer_options import (
    ACTIVATIONS,
    NATIVE_ACTIVATIONS,
    batch_norm_options,
    make_activation,
)
from widedeep.models.mlp import HiddenConfig
from widedeep.models.tower import tower_config, tower_table
from widedeep.training.evaluation import evaluating, standard_tower
from widedeep.training.export import describe_towers

WITH_OPTIONS = [
    {"name": "leaky_relu", "negative_slope": 0.2},
    {"name": "elu", "alpha": 0.5},
    {"name": "gelu", "approximate": "tanh"},
    {"name": "softplus", "beta": 2.0},
]


def model_of(activation: Any) -> wd.WideDeep:
    rows = [{"x": i / 8, "y": i % 2} for i in range(8)]
    spec = wd.FeatureSpec(label="y", features=[wd.numeric("x")])
    return wd.WideDeep(wd.fit_schema(spec, rows), hidden_units=[4, 3], activation=activation)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *WITH_OPTIONS], ids=str)
def test_every_activation_is_served_natively(activation: Any) -> None:
    if activation == "threshold":
        activation = {"name": activation, "threshold": 0.1, "value": 0.5}
    model = model_of(activation)
    if activation in NATIVE_ACTIVATIONS:
        assert standard_tower(model) is model.towers["mlp"]
        return
    assert standard_tower(model) is None
    with evaluating(model):
        assert describe_towers(model).onnx is None


def test_bounds_that_torch_asserts_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_val"):
        make_activation({"name": "hardtanh", "min_val": 2.0, "max_val": 1.0})


def test_a_table_gives_torchs_options() -> None:
    act = make_activation({"name": "leaky_relu", "negative_slope": 0.25})
    assert isinstance(act, nn.LeakyReLU)
    assert act(torch.tensor([-4.0])).item() == -1.0
    assert MLP(activation={"name": "relu"}).activation == "relu"


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("rleu", r"\[model\]: got activation='rleu'; did you mean 'relu'\?"),
        ({"slope": 0.2}, r"got activation=\{'slope': 0\.2\}, expected a name"),
        ({"name": "elu", "slope": 0.2}, r"expected the options of torch\.nn\.ELU \(.*'slope'"),
        ("threshold", r"expected the options of torch\.nn\.Threshold \(.*missing"),
        ({"name": "elu", "alpha": "a"}, r"expected the options of torch\.nn\.ELU"),
    ],
)
def test_mistakes_in_activations(activation: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(activation=activation)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"momentums": 0.9}, r"\[batch_norm\]: got the unknown key 'momentums'; did you mean"),
        ({"momentum": 1.0}, r"batch_norm: got momentum=1\.0, expected 0 <= momentum < 1"),
        ({"eps": 0.0}, r"got eps=0\.0, expected a number > 0"),
    ],
)
def test_mistakes_in_batch_norm(value: Any, message: str) -> None:
    for make in (ModelConfig, MLP):
        with pytest.raises(ConfigError, match=message):
            make(batch_norm=value)


def test_batch_norm_takes_tensorflows_momentum() -> None:
    options = batch_norm_options("tensorflow")
    assert options is not None
    assert (options.momentum, options.eps, options.biased) == (0.999, 1e-3, True)
    layers = MLP(batch_norm={"momentum": 0.75}).hidden_layers(4)
    (norm, _) = layers.norms or (None, None)
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.momentum, norm.eps) == (0.25, 1e-5)


@pytest.mark.parametrize(
    "config", [c for c in registered_towers().values() if issubclass(c, HiddenConfig)], ids=str
)
def test_every_tower_with_hidden_layers_takes_both(config: type[HiddenConfig]) -> None:
    needed = {"item": "ad"} if config.name == "two_tower" else {}
    needed |= {"dice": False} if config.name in ("din", "dien") else {}
    options: dict[str, Any] = {"structure": "parallel"} if config.name == "masknet" else {}
    activation = {"name": "softplus", "beta": 2.0}
    tower = config(activation=activation, batch_norm="tensorflow", **needed, **options)
    layers = tower.hidden_layers(3, [4])
    (norm,) = layers.norms or (None,)
    assert isinstance(norm, BiasedBatchNorm)
    assert norm.eps == 1e-3
    assert isinstance(layers.act, nn.Softplus)
    assert tower_config(tower_table(tower)) == tower
