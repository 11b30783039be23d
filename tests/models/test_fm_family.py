"""The models of factorization machines' family equal their equations, written as plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import widedeep as wd
from tests.models.deep_inputs import assert_same_function, make_layout, make_tower, pairs
from widedeep import models
from widedeep.errors import ConfigError

D, K = 3, 2  # width of an embedding, and of a field-aware one


def weighed(parameter: nn.Parameter | None, products_D: Tensor) -> Tensor:
    """Return the sum over dimensions, weighed for several logits."""
    return products_D.sum()[None] if parameter is None else parameter @ products_D


def aware(x: Tensor, i: int, j: int, slots: int, copies: int = 0) -> Tensor:
    """Return v_(i,j) by its position: field i's block, then the other fields in order."""
    slot = copies + (j if j < i else j - 1)
    return x[(i * slots + slot) * K :][:K]


@pytest.mark.parametrize("n_logits", [1, 2])
def test_lr(n_logits: int) -> None:
    tower: Any
    tower, inputs = make_tower(models.LR(), n_logits=n_logits)
    assert_same_function(
        tower, inputs, lambda x, numbers: tower.output.weight @ torch.cat([x, numbers])
    )


@pytest.mark.parametrize("n_logits", [1, 2])
def test_mlr(n_logits: int) -> None:
    tower: Any
    tower, inputs = make_tower(models.MLR(regions=3), n_logits=n_logits)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        x = torch.cat([x, numbers])
        u, w = tower.region(x), tower.expert(x)
        logits = []
        for c in range(n_logits):
            own = slice(3 * c, 3 * c + 3)
            p = (torch.softmax(u[own], 0) * torch.sigmoid(w[own])).sum()
            logits.append(torch.log(p / (1 - p)))
        return torch.stack(logits)

    assert_same_function(tower, inputs, expected)


def test_mlr_stays_finite_where_its_probability_rounds_to_one() -> None:
    tower, inputs = make_tower(models.MLR(regions=2))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(1e4)
    logits = tower(inputs)
    logits.sum().backward()
    assert logits.isfinite().all() and logits.abs().max() > 1e3
    assert inputs.concat_BX.grad is not None and inputs.concat_BX.grad.isfinite().all()


@pytest.mark.parametrize("n_logits", [1, 2])
def test_ffm(n_logits: int) -> None:
    tower: Any
    tower, inputs = make_tower(models.FFM(dim=K), n_logits=n_logits)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        products = [aware(x, i, j, 3) * aware(x, j, i, 3) for i, j in pairs()]
        return weighed(tower.output.weight_CD, sum(products))  # type: ignore[arg-type]

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("product", ["hadamard", "inner"])
def test_deep_ffm(product: Any) -> None:
    tower: Any
    tower, inputs = make_tower(
        models.DeepFFM(dim=K, product=product, hidden_units=(4,), activation="tanh")
    )

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        products = [aware(x, i, j, 3) * aware(x, j, i, 3) for i, j in pairs()]
        if product == "inner":
            products = [p.sum()[None] for p in products]
        return torch.tanh(tower.hidden.layers[0](torch.cat([*products, numbers])))

    assert_same_function(tower, inputs, expected)


def test_onn() -> None:
    tower: Any
    tower, inputs = make_tower(models.ONN(dim=K, hidden_units=(4,), activation="tanh"))

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        copies = [x[i * 4 * K :][:K] for i in range(4)]
        products = [
            (aware(x, i, j, 4, copies=1) * aware(x, j, i, 4, copies=1)).sum()[None]
            for i, j in pairs()
        ]
        return torch.tanh(tower.hidden.layers[0](torch.cat([*copies, *products, numbers])))

    assert_same_function(tower, inputs, expected)


def test_nfm() -> None:
    tower: Any
    tower, inputs = make_tower(models.NFM(hidden_units=(4,), activation="tanh"))

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v = x.view(4, D)
        pooled = torch.stack([v[i] * v[j] for i, j in pairs()]).sum(0)
        return torch.tanh(tower.hidden.layers[0](torch.cat([pooled, numbers])))

    assert_same_function(tower, inputs, expected)


def test_afm() -> None:
    tower: Any
    tower, inputs = make_tower(models.AFM(attention_units=5))

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v = x.view(4, D)
        products = [v[i] * v[j] for i, j in pairs()]
        pool = tower.attention
        scores = [pool.score(torch.relu(pool.hidden(p)))[0] for p in products]
        total = sum(score.exp() for score in scores)
        return sum(6 * s.exp() / total * p for s, p in zip(scores, products, strict=True))

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("product", ["inner", "outer", "both"])
def test_pnn(product: Any) -> None:
    tower: Any
    tower, inputs = make_tower(models.PNN(product=product, hidden_units=(4,), activation="tanh"))

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v, features = x.view(4, D), [x, numbers]
        if product != "outer":
            features.append(torch.stack([v[i] @ v[j] for i, j in pairs()]))
        if product != "inner":
            kernels = tower.products[-1].kernels_DPD
            outer = [v[i] @ kernels[:, p] @ v[j] for p, (i, j) in enumerate(pairs())]
            features.append(torch.stack(outer))
        return torch.tanh(tower.hidden.layers[0](torch.cat(features)))

    assert_same_function(tower, inputs, expected)


def test_ccpm() -> None:
    n_fields = 7
    config = models.CCPM(kernel_widths=(4, 3), filters=(2, 3), hidden_units=(4,), activation="tanh")
    tower: Any
    tower, inputs = make_tower(config, n_fields=n_fields)

    def convolve(layer: Any, maps: list[list[list[Tensor]]], k: int) -> list[list[list[Tensor]]]:
        """Maps by dimension by field; the k largest, descending."""
        weights, bias = layer.filters.weight[:, :, 0], layer.filters.bias
        width = weights.shape[2]
        out = []
        for n in range(len(weights)):
            out.append([])
            for d in range(D):
                values = []
                for start in range(-((width - 1) // 2), len(maps[0][d]) - (width - 1) // 2):
                    total = bias[n]
                    for m, each in enumerate(maps):
                        for step in range(width):
                            if 0 <= start + step < len(each[d]):
                                total = total + weights[n, m, step] * each[d][start + step]
                    values.append(torch.tanh(total))
                out[-1].append(sorted(values, key=Tensor.item, reverse=True)[:k])
        return out

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v = x.view(n_fields, D)
        maps = [[[v[f, d] for f in range(n_fields)] for d in range(D)]]
        maps = convolve(tower.convolutions[0], maps, int((1 - 1 / 2) * n_fields))
        maps = convolve(tower.convolutions[1], maps, 3)
        flat = torch.stack([value for each in maps for row in each for value in row])
        return torch.tanh(tower.hidden.layers[0](torch.cat([flat, numbers])))

    assert_same_function(tower, inputs, expected)


def test_ccpm_of_two_fields_and_one_layer() -> None:
    tower, inputs = make_tower(
        models.CCPM(kernel_widths=(9,), filters=(2,), hidden_units=(4,)), n_fields=2
    )
    assert tower(inputs).shape == (5, 4)


def factorization(tower: Any, v: Tensor, m: Tensor) -> Tensor:
    """A factorization machine of both orders over embeddings that are weighed by m."""
    first = sum(m[i] * (tower.fm.first_order.weight[:, D * i : D * i + D] @ v[i]) for i in range(4))
    products = [m[i] * v[i] * m[j] * v[j] for i, j in pairs()]
    return first + weighed(tower.fm.second_order.weight_CD, sum(products))  # type: ignore[arg-type]


@pytest.mark.parametrize("n_logits", [1, 2])
def test_ifm(n_logits: int) -> None:
    tower: Any
    tower, inputs = make_tower(models.IFM(hidden_units=(5,), activation="tanh"), n_logits=n_logits)

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        scores = tower.factors(torch.tanh(tower.hidden.layers[0](x)))
        return factorization(tower, x.view(4, D), 4 * scores.exp() / scores.exp().sum())

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize("n_logits", [1, 2])
def test_difm(n_logits: int) -> None:
    units, heads = 2, 3
    tower: Any
    tower, inputs = make_tower(
        models.DIFM(hidden_units=(5,), activation="tanh", attention_units=units, heads=heads),
        n_logits=n_logits,
    )

    def expected(x: Tensor, numbers: Tensor) -> Tensor:
        v, rows = x.view(4, D), []
        q, k, value, residual = tower.attention.weight.chunk(4)
        for i in range(4):
            parts = []
            for h in range(heads):
                own = slice(units * h, units * h + units)
                scores = [((q[own] @ v[i]) @ (k[own] @ v[j])).exp() for j in range(4)]
                mixed = [scores[j] / sum(scores) * (value[own] @ v[j]) for j in range(4)]
                parts.append(torch.stack(mixed).sum(0))
            rows.append(torch.relu(torch.cat(parts) + residual @ v[i]))
        by_vector = tower.by_vector(torch.cat(rows))
        by_bit = tower.by_bit(torch.tanh(tower.hidden.layers[0](x)))
        return factorization(tower, v, by_vector + by_bit)

    assert_same_function(tower, inputs, expected)


@pytest.mark.parametrize(
    ("options", "deviation"),
    [
        ({"deep": "fibinet"}, 0.1),
        ({"deep": {"name": "ensemble", "of": {"name": "fibinet"}, "members": 2}}, 0.1),
        ({"deep": ["fibinet", "fm"]}, 0.02),
        ({"deep": "fibinet", "hidden_units": [4]}, 0.02),
        ({"deep": "fibinet", "embedding_std": 0.5}, 0.5),
        ({}, 0.02),
    ],
)
def test_initial_embeddings_suit_each_tower(options: dict[str, Any], deviation: float) -> None:
    rows = [{"a": str(i), "b": str(i % 7), "y": i % 2} for i in range(500)]
    spec = wd.FeatureSpec(label="y", features=wd.categorical("a", "b"))
    model = wd.WideDeep(wd.fit_schema(spec, rows), embedding_dim=8, **options)
    (embeddings,) = model.deep_tables.values()
    assert embeddings.weight.std().item() == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (models.FFM(dim=4), "got embeddings of width 3, expected 12, which is 4 for each of 3"),
        (models.ONN(dim=4), "got embeddings of width 3, expected 16, which is 4 for each of 4"),
    ],
)
def test_field_aware_towers_refuse_embeddings_of_another_width(
    config: models.TowerConfig, says: str
) -> None:
    layout = make_layout({f"f{i}": 3 for i in range(4)}, {"": slice(0, 1)})
    with pytest.raises(ConfigError, match=says):
        config.make(layout)


@pytest.mark.parametrize("name", ["ffm", "onn", "nfm", "afm", "pnn", "ccpm", "ifm", "difm"])
def test_a_model_of_pairs_refuses_one_field(name: str) -> None:
    config = models.registered_towers()[name]()
    width = config.embedding_dim(1) or 3
    with pytest.raises(ConfigError, match=f"tower '{name}': got 1 embedded features"):
        config.make(make_layout({"only": width}, {"": slice(0, 1)}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: models.MLR(regions=0), "tower 'mlr': got regions=0"),
        (lambda: models.FFM(dim=0), "tower 'ffm': got dim=0"),
        (lambda: models.AFM(dropout=1.0), "tower 'afm': got dropout=1.0"),
        (lambda: models.NFM(pooling_dropout=-0.1), "tower 'nfm': got pooling_dropout=-0.1"),
        (lambda: models.CCPM(filters=(4,)), "got 2 kernel_widths and 1 filters"),
        (lambda: models.DIFM(heads=0), "tower 'difm': got heads=0"),
    ],
)
def test_options_outside_their_range(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_pooled_values_follow_the_flexible_sizes() -> None:
    config = models.CCPM(kernel_widths=(3, 3, 3), filters=(2, 2, 2), hidden_units=(4,))
    tower: Any
    tower, _ = make_tower(config, n_fields=10)
    kept = [int((1 - (i / 3) ** (3 - i)) * 10) for i in (1, 2)]
    assert [layer.k for layer in tower.convolutions] == [*kept, 3]
    assert kept == [math.floor(10 * 8 / 9), math.floor(10 / 3)]
